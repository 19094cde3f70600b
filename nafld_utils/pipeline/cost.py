"""What training and sampling will cost, as `sampling` measures it: notebook 03 asks before anything is trained."""

from nafld_utils.sampling import estimate as estimate
from nafld_utils.sampling import networks as networks
