"""Settings of the cohort, preprocessing, quality, sweep, SHAP, the Turing test and the engine."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_serializer, model_validator

from nafld_utils.params import arms
from nafld_utils.params.fields import Count, Features, NonNegative, PlainName, Positive, Precision, Rate, Section, Share
from nafld_utils.params.generators import Balance, Variant

REGION_KEYS = tuple(f"preprocess.{key}" for key in ("region", "region_box", "threshold", "closing_radius"))

IMAGE_SIZE_LEAST = 32  # pixels (choice)
# Forms of time of Slurm: a bare number is read as minutes.
_WALLTIME = re.compile(r"(\d+-)?\d+(:\d\d){1,2}|\d+-\d+")


class CohortSettings(Section):
    """Where the images come from."""

    source: Literal["file", "simulated"]
    path: str | None
    doi: str
    class_names: tuple[PlainName, PlainName]
    leave_out: tuple[PlainName, ...]
    grade_name: PlainName | None
    subject: PlainName | None
    fat_threshold: Annotated[float, Field(ge=0, le=100)]
    frames_per_patient: Count | None
    alike_names: Literal["stop", "same", "different"]
    join: str | None
    patient_numbers: Literal["counted", "own"]
    burned_in: Literal["stop", "allow"]
    external: str | None
    n_patients: Annotated[int, Field(ge=2, le=100_000)]
    simulation_seed: NonNegative

    @model_validator(mode="after")
    def _two_classes(self) -> CohortSettings:
        first, second = (name.casefold() for name in self.class_names)
        if first == second:
            raise ValueError(f"class_names must be two different names, got {list(self.class_names)}")
        if both := {name.casefold() for name in self.leave_out} & {first, second}:
            raise ValueError(f"leave_out must name none of class_names, got {sorted(both)}")
        return self


class FoldSettings(Section):
    """Patient-level cross-validation."""

    n_splits: Annotated[int, Field(ge=2)]
    seed: NonNegative


class PreprocessSettings(Section):
    """Region, crops and semantic maps."""

    threshold: Annotated[int, Field(ge=0, le=254)]
    closing_radius: NonNegative
    region: Literal["largest", "box", "none"]
    region_box: tuple[NonNegative, NonNegative, Count, Count] | None
    crop: Literal["auto", "spacing", "fit"]
    crop_size: Annotated[int, Field(ge=32)]
    image_size: Annotated[int, Field(ge=IMAGE_SIZE_LEAST)]
    crop_scale: tuple[Share, Share]
    crop_ratio: tuple[Positive, Positive]
    crops_per_image: Count
    map_classes: Annotated[int, Field(ge=2, le=16)]
    map_size: Annotated[int, Field(ge=8, multiple_of=8)]
    map_order: Literal["downsample_first", "threshold_first"]
    map_blur: Annotated[int, Field(ge=1)]
    map_bins: Annotated[int, Field(ge=8, le=256)]
    warp_points: Annotated[int, Field(ge=2)]
    warp_strength: Annotated[float, Field(ge=0.0, le=0.2)]

    @model_validator(mode="after")
    def _ranges(self) -> PreprocessSettings:
        if (self.region == "box") != (self.region_box is not None):
            raise ValueError(
                "region_box must be [top, left, height, width] with region box and null with others,"
                f" got {self.region_box} with {self.region}"
            )
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high, got [{low}, {high}]")
        return self


class QualitySettings(Section):
    """Distances between synthetic and real images, and whether they are copies."""

    features: Features
    second_features: Features | None
    weights: str | None
    n_reference: Annotated[int, Field(ge=2)]
    kid_subsets: Count
    kid_subset_size: Annotated[int, Field(ge=2)]
    neighbours: Count
    subset_repeats: Count
    half_samples: Annotated[int, Field(ge=2)]
    n_planted: Annotated[int, Field(ge=1)]
    filter_of: str | None
    filter_keep: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _two_spaces(self) -> QualitySettings:
        if self.second_features == self.features:
            raise ValueError(f"second_features must differ from features {self.features}, got the same")
        return self


def _arm(name: str) -> str:
    try:
        return arms.parse(name).name
    except ValueError as error:
        raise ValueError(str(error).removesuffix(".")) from None


Arm = Annotated[str, AfterValidator(_arm)]
Use = Literal["mix", "pretrain"]
Freeze = Annotated[str, Field(pattern=r"^[a-z_]+[0-9]*(\.[0-9]+)?$")]
PLAIN = "plain"


class ExperimentSettings(Section):
    """A named grid of trainings; what it leaves out is as in section ``sweep``."""

    about: str
    backbones: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    freeze: Freeze | None = None
    balance: Balance | None = None
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] | None = None
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)] | None = None
    use: Annotated[tuple[Use, ...], Field(min_length=1)] | None = None
    n_seeds: Count | None = None
    level: Literal["image", "fold", "patient"] | None = None

    @model_serializer(mode="wrap")
    def _as_written(self, handler: Any) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


class SweepSettings(Section):
    """The grid of classifier trainings."""

    experiments: Annotated[tuple[str, ...], Field(min_length=1)]
    backbones: Annotated[tuple[str, ...], Field(min_length=1)]
    weights: Annotated[str, Field(min_length=1)]
    freeze: Freeze
    balance: Balance
    crops: Literal["fresh", "fixed"]
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)]
    use: Annotated[tuple[Use, ...], Field(min_length=1)]
    pretrain_share: Annotated[float, Field(gt=0, lt=1)]
    n_seeds: Count
    steps: Count
    batch_size: Count
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    features: Literal["float16", "float32"]
    precision: Precision
    cuda_graphs: bool
    at_once: Count
    retry_failed: bool
    allow_missing: bool
    rotation: Annotated[float, Field(ge=0, le=45)]
    rotation_probability: Share
    primary_arm: Arm
    primary_rate: Rate
    secondary_arms: tuple[Arm, ...]
    declared_gains: Annotated[tuple[Annotated[float, Field(gt=0, lt=0.5)], ...], Field(min_length=1, max_length=6)]
    n_resamples: Annotated[int, Field(ge=100)]
    baseline_splits: Count
    baseline_weights: Literal["bundled", "hub"]
    interval_method: Literal["newcombe", "logit"]
    specificity: Annotated[float, Field(gt=0, lt=1)]
    canary_shuffles: Count
    baseline_backbone: str

    @model_validator(mode="after")
    def _primary(self) -> SweepSettings:
        used = {arms.parse(name).used(use) for name in self.arms for use in self.use}
        if self.primary_arm not in {*self.arms, *used} or self.primary_rate not in self.rates:
            raise ValueError(
                f"primary_arm and primary_rate must be in arms {list(self.arms)} and rates {list(self.rates)},"
                f" got {self.primary_arm} and {self.primary_rate}"
            )
        return self


class SimulatedOnlySettings(Section):
    """Classifiers that see simulated patients alone, and how many real patients these are worth."""

    n_cohorts: NonNegative
    n_seeds: Count
    n_patients: Annotated[int, Field(ge=4)]
    n_frames: Count
    crops: Count
    steps: Count
    look_every: Count
    learning_rate: Positive
    norm: Literal["train", "frozen"]
    variants: tuple[Variant, ...]
    variant_seeds: Count
    real_patients: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)]
    real_seeds: NonNegative


class ShapSettings(Section):
    """Which classifier and images are explained, and what the attributions are held against."""

    backbone: str | None
    fold: NonNegative
    seed: NonNegative
    arm: Arm | Literal["real"]
    rate: Annotated[float, Field(ge=0.0, le=10.0)]
    explainer: Literal["gradient", "partition"]
    n_per_class: Count
    n_background: Count
    n_samples: Annotated[int, Field(ge=2)]
    n_held_out: Annotated[int, Field(ge=2)]
    n_compared: Count
    n_classifiers: Count
    smoothing: Annotated[float, Field(gt=0.0, le=0.1)]
    border: Annotated[float, Field(gt=0.0, le=0.1)]
    feature_patients: NonNegative
    feature_steps: Count
    feature_explained: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _trial(self) -> ShapSettings:
        if (self.arm == "real") != (self.rate == 0):
            raise ValueError(f"rate must be 0 with arm real and above 0 with others, got {self.arm} and {self.rate:g}")
        if 0 < self.feature_patients < 8:
            raise ValueError(f"feature_patients must be 0 or at least 8, got {self.feature_patients}")
        if self.n_compared > self.n_held_out:
            raise ValueError(f"n_compared must not exceed n_held_out {self.n_held_out}, got {self.n_compared}")
        return self


class TuringSettings(Section):
    """The image set shown to raters and their answers."""

    n_real_unhealthy: NonNegative
    n_real_healthy: NonNegative
    n_synthetic_unhealthy: NonNegative
    n_synthetic_healthy: NonNegative
    seed: NonNegative
    language: Annotated[str, Field(pattern=r"^[A-Za-z-]{2,20}$")]
    contact: Annotated[str, Field(max_length=200)] | None
    ratings: str | None
    n_simulated_raters: Annotated[int, Field(ge=1)]
    equivalence_margin_d_prime: Annotated[float, Field(gt=0, le=2)]
    equivalence_power: Annotated[float, Field(gt=0, lt=1)]


class TlsSettings(Section):
    """Files in PEM with which a Dask scheduler, its workers and this process know one another."""

    ca: str | None
    cert: str | None
    key: str | None

    @model_validator(mode="after")
    def _whole(self) -> TlsSettings:
        if len({value is None for value in (self.ca, self.cert, self.key)}) > 1:
            raise ValueError("ca, cert and key must be three files, or null all three")
        return self


class EngineSettings(Section):
    """Where work runs; never part of a result's hash, but for the arithmetic of the sweep's trainings (CPU or GPU)."""

    mode: Literal["serial", "local", "cluster"]
    n_workers: Count | None
    threads: Count
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    compile: bool
    address: str | None
    slurm: dict[str, Any]
    tls: TlsSettings
    min_free_gib: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _job(self) -> EngineSettings:
        walltime, memory = self.slurm.get("walltime"), self.slurm.get("memory")
        if walltime is not None and not (isinstance(walltime, str) and _WALLTIME.fullmatch(walltime)):
            raise ValueError(f"slurm.walltime must be hours, minutes and seconds such as '08:00:00', got {walltime!r}")
        for key in ("cores", "processes"):
            value = self.slurm.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"slurm.{key} must be a whole number, got {value!r}")
        if memory is not None and not isinstance(memory, str):
            raise ValueError(f"slurm.memory must be text with its unit such as 16GB, got {memory!r}")
        return self
