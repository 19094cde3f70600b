"""What notebook 02 takes from the rooms below its own."""

from nafld_utils.cohort import open_cohort as open_cohort
from nafld_utils.images import find_region as find_region
from nafld_utils.images import to_float as to_float
from nafld_utils.images import warp_map as warp_map
