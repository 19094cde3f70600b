"""Typed settings of a run: ``params/paper.yaml`` merged with a profile and with overrides, then validated.

Contract: every function here is pure but for reading ``params/*.yaml``; a bad key or value raises `SettingsError`
with one sentence that names the key, what was expected and what was found, before any work starts.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from nafld_utils import arms

PARAMS_DIR = Path(__file__).resolve().parent.parent / "params"
BASE_PROFILE = "paper"
DEFAULT_PROFILE = "demo"  # of make and of the notebooks as committed
PROTOCOL = "protocol"  # params/protocol.yaml, the declared analysis: no profile
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same values, ten times faster where libyaml is there

Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Rate = Annotated[float, Field(gt=0.0, le=10.0)]
# Names that stand in tables and figures: no character that HTML, a spreadsheet or matplotlib gives a meaning.
PLAIN_NAME = re.compile(r"[^\W_][\w .,:;%°/()+-]{0,59}")
PLAIN_NAME_RULE = (
    "a name of at most 60 letters, digits, blanks and . , : ; % / ( ) + - that starts with a letter or digit"
)


def _plain(name: str) -> str:
    if not PLAIN_NAME.fullmatch(name):
        raise ValueError(f"expected {PLAIN_NAME_RULE}")
    return name


PlainName = Annotated[str, AfterValidator(_plain)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
OTHER_REPORTS = {"compare": "the comparisons of runs", "bench": "the records of `make bench`"}

_REGION = tuple(f"preprocess.{key}" for key in ("region", "region_box", "threshold", "closing_radius"))
# The sections a stage reads itself; what it inherits arrives through the stage before it.
STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "01_data_analysis": ("seed", "cohort", *_REGION),
    "02_preprocessing": ("seed", "cohort", "folds", "preprocess"),
    "03_ldm_training": ("seed", "preprocess", "autoencoder", "ldm", "gan"),
    "04_sampling": ("seed", "preprocess", "ldm", *arms.BASELINES, "sampling"),
    "05_quality_metrics": ("seed", "ldm", *arms.BASELINES, "quality", "sweep.rotation", "sweep.rotation_probability"),
    "06_classification_sweep": ("seed", "preprocess", "sweep", "experiments"),
    "07_shap": ("seed", "sweep", "experiments", "shap"),
    "08_turing_test": ("seed", "turing"),
}


_KEY = r"[A-Za-z_][\w.]*\s*="
_OVERRIDE = re.compile(
    rf"""\s*(?P<key>[A-Za-z_][\w.]*)\s*=\s*
    (?P<value>"(?:\\.|[^"\\])*" | '(?:''|[^'])*' | .*?)
    (?= \s+{_KEY} | \s*$ )""",
    re.VERBOSE | re.DOTALL,
)


class SettingsError(ValueError):
    """A setting is unknown, misspelled, mistyped or out of range."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class CohortSettings(_Section):
    """Where the images come from."""

    source: Literal["file", "simulated"]
    path: str | None
    doi: str
    class_names: tuple[PlainName, PlainName]
    grade_name: PlainName | None
    subject: PlainName | None
    fat_threshold: Annotated[float, Field(ge=0, le=100)]
    frames_per_patient: Count | None
    n_patients: Annotated[int, Field(ge=2, le=100_000)]
    simulation_seed: NonNegative

    @model_validator(mode="after")
    def _two_classes(self) -> CohortSettings:
        first, second = (name.casefold() for name in self.class_names)
        if first == second:
            raise ValueError(f"class_names must be two different names, got {list(self.class_names)}")
        return self


class FoldSettings(_Section):
    """Patient-level cross-validation."""

    n_splits: Annotated[int, Field(ge=2)]
    seed: NonNegative


class PreprocessSettings(_Section):
    """Region, crops and semantic maps."""

    threshold: Annotated[int, Field(ge=0, le=254)]
    closing_radius: NonNegative
    region: Literal["largest", "box", "none"]
    region_box: tuple[NonNegative, NonNegative, Count, Count] | None
    crop: Literal["auto", "spacing", "fit"]
    crop_size: Annotated[int, Field(ge=32)]
    image_size: Annotated[int, Field(ge=32, multiple_of=8)]
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


NETWORKS = {("vq", 4), ("vq", 8), ("kl", 8), ("tiny", 8)}


class AutoencoderSettings(_Section):
    """The first stage of one model."""

    source: Literal["shipped", "hub", "path", "ldm_checkpoint", "train", "random"]
    kind: Literal["vq", "kl", "tiny"]
    factor: Literal[4, 8]
    base_channels: Annotated[int, Field(ge=32, multiple_of=32)]
    hub_id: str | None
    subfolder: str | None
    revision: str | None
    path: str | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None
    scale: Positive
    train_steps: Annotated[int, Field(ge=2)]

    @model_validator(mode="after")
    def _origin(self) -> AutoencoderSettings:
        if self.source == "hub" and not self.hub_id:
            raise ValueError("hub_id must name a hub repository when source is hub")
        if self.source == "path" and not self.path:
            raise ValueError("path must name a diffusers folder when source is path")
        if self.source == "ldm_checkpoint" and not (self.path and self.sha256):
            raise ValueError("path and sha256 must name a checkpoint and its SHA-256 when source is ldm_checkpoint")
        if self.source in ("ldm_checkpoint", "train", "random") and (self.kind, self.factor) not in NETWORKS:
            raise ValueError(f"kind and factor must be one of {sorted(NETWORKS)}, got ({self.kind!r}, {self.factor})")
        if self.kind == "vq" and self.source in ("hub", "path", "ldm_checkpoint") and self.scale != 1.0:
            raise ValueError(f"scale must be 1.0 with kind vq, whose latents are used unscaled, got {self.scale:g}")
        return self


class AutoencodersSettings(_Section):
    """One first stage a model."""

    semantic: AutoencoderSettings
    class_: AutoencoderSettings = Field(alias="class")


class DenoiserSettings(_Section):
    """The network of one model and its noise schedule."""

    model_channels: Annotated[int, Field(ge=32, multiple_of=32)]
    channel_mult: tuple[Count, ...]
    layers_per_block: Count
    attention: bool
    heads: Count
    head_channels: Count
    loss: Literal["l1", "l2"]
    beta_start: Positive
    beta_end: Positive
    cross_attention_dim: Count
    cross_attention_from: Annotated[int, Field(ge=0)]


Conditioning = Literal["semantic", "class"]
Guidance = Annotated[float, Field(ge=1.0, le=20.0)]
Balance = Literal["none", "oversample"]
Precision = Literal["fp32", "tf32", "bf16"]


class LdmSettings(_Section):
    """Training of the diffusion models."""

    conditionings: Annotated[tuple[Conditioning, ...], Field(min_length=1)]
    folds: tuple[NonNegative, ...] | None
    semantic: DenoiserSettings
    class_: DenoiserSettings = Field(alias="class")
    balance: Annotated[tuple[Balance, ...], Field(min_length=1)]
    latents: Literal["pool", "on_the_fly"]
    init_from: Name | None
    prediction: Literal["epsilon", "v_prediction"]
    min_snr_gamma: Positive | None
    train_timesteps: Annotated[int, Field(ge=10)]
    steps: Count
    batch_size: Count
    learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_steps: NonNegative
    gradient_clip: Positive
    condition_dropout: Share
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    precision: Precision
    accumulate: Count
    checkpoint_every: Count
    keep_checkpoints: Count
    preview_every: NonNegative
    log_every: Count

    @model_validator(mode="after")
    def _batches(self) -> LdmSettings:
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate must divide batch_size {self.batch_size}, got {self.accumulate}")
        if "none" not in self.balance or len(set(self.balance)) != len(self.balance):
            raise ValueError(f"balance must hold none, and each value once, got {list(self.balance)}")
        return self


class SamplingSettings(_Section):
    """Synthetic sets."""

    n_images: Count
    n_null: Count
    scheduler: Literal["ddim", "dpmsolver++", "unipc"]
    steps: Count
    eta: Share
    guidance: Guidance
    precision: Precision
    batch_size: Count
    n_compared: NonNegative
    compared_guidance: tuple[Guidance, ...]
    compared_steps: tuple[Count, ...]

    @model_validator(mode="after")
    def _deterministic(self) -> SamplingSettings:
        if self.scheduler != "ddim" and self.eta > 0:
            raise ValueError(f"eta must be 0 with {self.scheduler}, which draws no noise, got {self.eta:g}")
        return self


def ddim_strides(steps: int, train_timesteps: int) -> bool:
    """Whether so many equal strides of whole timesteps lead from the last of them to the first, as DDIM walks them.

    Notes
    -----
    The stride is ``train_timesteps // steps``. Where what remains is a stride or more, the walk begins below the last
    timestep, at noise that is weaker than what it is given; with strides of one it begins beyond it.
    """
    stride = train_timesteps // steps
    return stride > 1 and train_timesteps - steps * stride < stride


def _ddim_steps(steps: int, train_timesteps: int) -> str:
    """The numbers of steps nearest to one that DDIM cannot walk, for a message."""
    fit = [n for n in range(1, train_timesteps // 2 + 1) if ddim_strides(n, train_timesteps)]
    below, above = (max((n for n in fit if n < steps), default=None), min((n for n in fit if n > steps), default=None))
    return " or ".join(str(n) for n in (below, above) if n is not None)


class GanSettings(_Section):
    """The GAN that the diffusion models are compared with."""

    enabled: bool
    steps: Count | None
    base_channels: Annotated[int, Field(ge=4, multiple_of=4)]
    max_channels: Annotated[int, Field(ge=8, multiple_of=8)]
    batch_size: Annotated[int, Field(ge=2, multiple_of=2)]
    learning_rate: Positive
    penalty: Positive
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    checkpoint_every: Count
    keep_checkpoints: Count
    log_every: Count


Features = Literal["inception", "lite0", "lite1", "random"]


class QualitySettings(_Section):
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
Freeze = Annotated[str, Field(pattern=r"^[a-z_]+[0-9]*(\.[0-9]+)?$")]
PLAIN = "plain"


class ExperimentSettings(_Section):
    """A named grid of trainings; what it leaves out is as in section ``sweep``."""

    about: str
    backbones: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    freeze: Freeze | None = None
    balance: Balance | None = None
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)] | None = None
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)] | None = None
    n_seeds: Count | None = None
    level: Literal["image", "fold", "patient"] | None = None

    @model_serializer(mode="wrap")
    def _as_written(self, handler: Any) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}


class SweepSettings(_Section):
    """The grid of classifier trainings."""

    experiments: Annotated[tuple[str, ...], Field(min_length=1)]
    backbones: Annotated[tuple[str, ...], Field(min_length=1)]
    weights: Annotated[str, Field(min_length=1)]
    freeze: Freeze
    balance: Balance
    crops: Literal["fresh", "fixed"]
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)]
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
    n_resamples: Annotated[int, Field(ge=100)]
    baseline_splits: Count
    baseline_weights: Literal["bundled", "hub"]
    interval_method: Literal["percentile", "bca"]
    specificity: Annotated[float, Field(gt=0, lt=1)]
    canary_shuffles: Count
    baseline_backbone: str

    @model_validator(mode="after")
    def _primary(self) -> SweepSettings:
        if self.primary_arm not in self.arms or self.primary_rate not in self.rates:
            raise ValueError(
                f"primary_arm and primary_rate must be in arms {list(self.arms)} and rates {list(self.rates)},"
                f" got {self.primary_arm} and {self.primary_rate}"
            )
        return self


class ShapSettings(_Section):
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


class TuringSettings(_Section):
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
    equivalence_margin: Annotated[float, Field(gt=0, lt=0.5)]
    equivalence_power: Annotated[float, Field(gt=0, lt=1)]


class EngineSettings(_Section):
    """Where work runs; never part of a result's hash, but for the arithmetic of the sweep's trainings (CPU or GPU)."""

    mode: Literal["serial", "local", "cluster"]
    n_workers: Count | None
    threads: Count
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    compile: bool
    address: str | None
    slurm: dict[str, Any]
    min_free_gib: Annotated[float, Field(ge=0)]


class Settings(_Section):
    """All settings of a run; the keys and their reasons are in ``params/paper.yaml``."""

    profile: Name
    seed: NonNegative
    run: Name | None
    cohort: CohortSettings
    folds: FoldSettings
    preprocess: PreprocessSettings
    autoencoder: AutoencodersSettings
    ldm: LdmSettings
    gan: GanSettings
    sampling: SamplingSettings
    quality: QualitySettings
    sweep: SweepSettings
    experiments: dict[Name, ExperimentSettings]
    shap: ShapSettings
    turing: TuringSettings
    engine: EngineSettings

    @model_validator(mode="after")
    def _across_sections(self) -> Settings:
        if self.run in OTHER_REPORTS:
            raise ValueError(f"run must be another name: reports/{self.run} holds {OTHER_REPORTS[self.run]}")
        if self.shap.fold >= self.folds.n_splits:
            raise ValueError(f"shap.fold must be below folds.n_splits {self.folds.n_splits}, got {self.shap.fold}")
        if self.quality.filter_of not in (None, *self.generators):
            found = f"{self.generators}, got {self.quality.filter_of}"
            raise ValueError(f"quality.filter_of must be a generator of this run {found}")
        for name in self.sweep.experiments:
            if name not in (PLAIN, *self.experiments):
                known = [PLAIN, *self.experiments]
                raise ValueError(
                    f"sweep.experiments must name some of {', '.join(known)}, got {name!r}{_nearest(name, known)}"
                )
        outside = [fold for fold in self.ldm.folds or () if fold >= self.folds.n_splits]
        if outside:
            raise ValueError(f"ldm.folds must be below folds.n_splits {self.folds.n_splits}, got {outside}")
        steps, limit = self.sampling.steps, self.ldm.train_timesteps
        most = max((steps, *self.sampling.compared_steps))
        if most > limit:
            raise ValueError(
                f"sampling.steps and sampling.compared_steps must not exceed ldm.train_timesteps {limit}, got {most}"
            )
        if self.sampling.scheduler == "ddim" and not ddim_strides(steps, limit):
            raise ValueError(
                f"sampling.steps must be {_ddim_steps(steps, limit)} or another number of equal strides through"
                f" {limit} timesteps with ddim, got {steps}"
            )
        if self.preprocess.image_size > self.preprocess.crop_size:
            raise ValueError(
                f"preprocess.image_size must not exceed preprocess.crop_size {self.preprocess.crop_size},"
                f" got {self.preprocess.image_size}"
            )
        return self

    @property
    def name(self) -> str:
        """Name of the run: ``run`` where given, else the profile."""
        return self.run or self.profile

    @property
    def generators(self) -> list[str]:
        """Generators of the run, by name: diffusion models, then the baselines that are enabled."""
        return [*self.ldm.conditionings, *(name for name in arms.BASELINES if getattr(self, name).enabled)]

    @property
    def filtered_generator(self) -> str:
        """Generator whose images the quality filter chooses from: ``quality.filter_of``, else the first model."""
        return self.quality.filter_of or self.ldm.conditionings[0]

    def section(self, name: str) -> dict[str, Any]:
        """One section, e.g. ``"sweep"`` or ``"ldm.class"``, as plain JSON-able values under the YAML's own keys."""
        value: Any = self.model_dump(mode="json", by_alias=True)
        for part in name.split("."):
            value = value[part]
        return value


def load(profile: str, overrides: str | Iterable[str] | Mapping[str, Any] = ()) -> Settings:
    """Merge ``paper.yaml``, the profile and the overrides, and validate the result.

    Parameters
    ----------
    profile : str
        Name of a file in ``params/`` without its ending: smoke, demo, cpu or paper.
    overrides : str, iterable of str, or mapping
        As `parse_overrides` reads them.

    Returns
    -------
    Settings
        Frozen, complete.

    Raises
    ------
    SettingsError
        Unknown profile; unknown, misspelled, mistyped or out-of-range key, in the declared analysis too. One sentence
        names the key.

    Examples
    --------
    >>> load("smoke", ["sweep.n_seeds=3"]).sweep.n_seeds
    3
    """
    names = sorted(path.stem for path in PARAMS_DIR.glob("*.yaml") if path.stem != PROTOCOL)
    if profile not in names:
        raise SettingsError(f"profile {profile!r} is not one of {', '.join(names)}{_nearest(profile, names)}.")
    merged = _read_yaml(PARAMS_DIR / f"{BASE_PROFILE}.yaml")
    if profile != BASE_PROFILE:
        merged = _merge(merged, _read_yaml(PARAMS_DIR / f"{profile}.yaml"), f"params/{profile}.yaml")
    for key, value in parse_overrides(overrides).items():
        merged = _merge(merged, _nest(key, value), "the overrides")
    protocol()  # a fault in it stops a run before it starts, not when the first unit is sealed
    return _validated(merged, profile, f"profile {profile}", f"params/{profile}.yaml or in SET")


def _validated(values: Mapping[str, Any], profile: str, source: str, place: str) -> Settings:
    try:
        return Settings.model_validate({"profile": profile, **values})
    except ValidationError as error:
        raise SettingsError(_sentence(error, source, place)) from None


def parse_overrides(overrides: str | Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key to value of overrides, however they are given, in their order.

    Parameters
    ----------
    overrides : str, iterable of str, or mapping
        Text of ``SET``: ``key=value`` pairs apart from each other by blanks, values in YAML, so they may hold blanks
        too; several such texts; or a mapping, nested or with dotted keys.

    Raises
    ------
    SettingsError
        Something is not ``key=value``, or a value is not YAML.

    Examples
    --------
    >>> parse_overrides("ldm.folds=[0, 1] turing.ratings='a b.csv'")
    {'ldm.folds': [0, 1], 'turing.ratings': 'a b.csv'}
    """
    if isinstance(overrides, Mapping):
        return flat(overrides)
    text = overrides if isinstance(overrides, str) else " ".join(overrides)
    pairs: dict[str, Any] = {}
    position = 0
    while text[position:].strip():
        found = _OVERRIDE.match(text, position)
        if not found:
            raise SettingsError(f'SET: expected pairs such as "sweep.n_seeds=5", found {text[position:].strip()!r}.')
        try:
            pairs[found["key"]] = yaml.safe_load(found["value"])
        except yaml.YAMLError:
            message = f"SET: the value of {found['key']} is not YAML, found {found['value']!r}; quote it."
            raise SettingsError(message) from None
        position = found.end()
    return flat(pairs)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted keys, in order; `engine.slurm` stays a mapping."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name != "engine.slurm":
            out.update(flat(value, f"{name}."))
        else:
            out[name] = value
    return out


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _YAML) or {}
    except yaml.YAMLError as error:
        place = " ".join(str(error).split())
        raise SettingsError(f"{path.name}: expected YAML, found {place}; correct that line.") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path.name}: expected sections with keys, found {type(values).__name__}.")
    return values


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(base: dict[str, Any], new: Mapping[Any, Any], origin: str, prefix: str = "") -> dict[str, Any]:
    """`base` with the values of `new`; a key that `base` lacks is refused, since paper.yaml is complete."""
    out = dict(base)
    for key, value in new.items():
        name = f"{prefix}{key}"
        if key not in base:
            raise SettingsError(f"{name} in {origin} is not a setting{_nearest(name, _every_key())}.")
        if isinstance(base[key], dict) and name != "engine.slurm":
            if not isinstance(value, Mapping):
                raise SettingsError(f"{name} in {origin}: expected a section with keys, found {value!r}.")
            out[key] = _merge(base[key], value, origin, f"{name}.")
        else:
            out[key] = value
    return out


def _every_key() -> list[str]:
    complete = _read_yaml(PARAMS_DIR / f"{BASE_PROFILE}.yaml")
    return [*flat(complete), *complete]


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; the nearest is {close[0]}" if close else ""


def _sentence(error: ValidationError, source: str, place: str) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    found = "" if isinstance(first["input"], dict | BaseModel) else f", found {first['input']!r}"
    more = f" ({error.error_count() - 1} more settings are wrong)" if error.error_count() > 1 else ""
    return f"setting {key} of {source}: {message}{found}; correct it in {place}{more}."


# ---------------------------------------------------------------- the declared analysis


class Decision(_Section):
    """What is decided beforehand and no setting holds, in words."""

    decision: Annotated[str, Field(min_length=1)]
    why: Annotated[str, Field(min_length=1)]


class DeclaredSetting(_Section):
    """The value that a setting has in the declared analysis."""

    value: Any
    why: Annotated[str, Field(min_length=1)]


class Protocol(_Section):
    """The declared analysis, ``params/protocol.yaml``: decisions by name, settings by dotted key."""

    decisions: dict[Name, Decision]
    settings: dict[str, DeclaredSetting]

    def decided(self) -> dict[str, Any]:
        """What its hash covers: decisions and values without their reasons."""
        return {
            "decisions": {name: item.decision for name, item in self.decisions.items()},
            "settings": {key: item.value for key, item in self.settings.items()},
        }


class Difference(NamedTuple):
    """A setting whose value is another than the declared one; values as in YAML."""

    key: str
    declared: str
    here: str
    why: str


def protocol() -> Protocol:
    """The declared analysis; every value as the settings hold it (e.g. 1 as 1.0).

    Raises
    ------
    SettingsError
        ``params/protocol.yaml`` is missing or no YAML, lacks a reason, or names an unknown setting or a wrong value.
    """
    return _protocol(PARAMS_DIR)


@functools.cache
def _protocol(folder: Path) -> Protocol:
    place = f"params/{PROTOCOL}.yaml"
    try:
        read = Protocol.model_validate(_read_yaml(folder / f"{PROTOCOL}.yaml"))
    except FileNotFoundError:
        raise SettingsError(f"{place}: expected the declared analysis, found no file; restore it.") from None
    except ValidationError as error:
        raise SettingsError(_sentence(error, "the declared analysis", place)) from None
    merged = _read_yaml(folder / f"{BASE_PROFILE}.yaml")
    known = flat(merged)
    for key, entry in read.settings.items():
        if key not in known:
            raise SettingsError(f"{key} in {place} is not a setting{_nearest(key, known)}.")
        merged = _merge(merged, _nest(key, entry.value), place)
    valid = _flat_settings(_validated(merged, BASE_PROFILE, "the declared analysis", place))
    settings = {key: DeclaredSetting(value=valid[key], why=entry.why) for key, entry in read.settings.items()}
    return Protocol(decisions=read.decisions, settings=settings)


def differences(settings: Settings) -> list[Difference]:
    """Settings whose values are not those of the declared analysis, in its order; none where a run is as declared."""
    mine = _flat_settings(settings)
    return [
        Difference(key, as_yaml(entry.value), as_yaml(mine[key]), entry.why)
        for key, entry in protocol().settings.items()
        if mine[key] != entry.value
    ]


def declared(settings: Settings, most: int = 5) -> str:
    """Whether settings are those of the declared analysis, in a sentence that names the first `most` differences."""
    found = differences(settings)
    if not found:
        return f"The analysis is as declared (params/{PROTOCOL}.yaml)."
    named = [f"{item.key} ({item.declared} declared, {item.here} here)" for item in found[:most]]
    more = len(found) - len(named)
    if more:
        named.append(f"{more} more setting{'s' if more > 1 else ''}")
    listed = " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)
    return f"This run differs from the declared analysis in {listed} (params/{PROTOCOL}.yaml)."


def _flat_settings(settings: Settings) -> dict[str, Any]:
    return flat(settings.model_dump(mode="json", by_alias=True))


def as_yaml(value: Any) -> str:
    """A setting's value for reading, as in YAML, e.g. ``[0.5, 1.0]`` or ``null``."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
