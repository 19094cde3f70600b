"""All sections of the settings together, what holds across them, and which sections each stage reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from nafld_utils.params import arms, sections
from nafld_utils.params.fields import OTHER_REPORTS, Name, Section, SettingsError
from nafld_utils.params.generators import (
    AutoencodersSettings,
    GanSettings,
    LdmSettings,
    SamplingSettings,
    SimulatedSettings,
    ddim_steps_near,
    ddim_strides,
    sizes_that_halve,
)
from nafld_utils.params.merging import flat, nearest, sentence

# The sections a stage reads itself; what it inherits arrives through the stage before it.
STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "01_data_analysis": ("seed", "cohort", *sections.REGION_KEYS),
    "02_preprocessing": ("seed", "cohort", "folds", "preprocess"),
    "03_ldm_training": ("seed", "preprocess", "autoencoder", "ldm", "gan"),
    "04_sampling": ("seed", "preprocess", "ldm", *arms.BASELINES, "sampling"),
    "05_quality_metrics": ("seed", "ldm", *arms.BASELINES, "quality", "sweep.rotation", "sweep.rotation_probability"),
    "06_classification_sweep": ("seed", "preprocess", "sweep", "experiments", "simulated_only", "cohort.external"),
    "07_shap": ("seed", "sweep", "experiments", "shap"),
    "08_turing_test": ("seed", "turing"),
}


class Settings(Section):
    """All settings of a run; the keys and their reasons are in ``params/paper.yaml``."""

    profile: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    run: Name | None
    cohort: sections.CohortSettings
    folds: sections.FoldSettings
    preprocess: sections.PreprocessSettings
    autoencoder: AutoencodersSettings
    ldm: LdmSettings
    gan: GanSettings
    simulated: SimulatedSettings
    sampling: SamplingSettings
    quality: sections.QualitySettings
    sweep: sections.SweepSettings
    experiments: dict[Name, sections.ExperimentSettings]
    simulated_only: sections.SimulatedOnlySettings
    shap: sections.ShapSettings
    turing: sections.TuringSettings
    engine: sections.EngineSettings

    @model_validator(mode="before")
    @classmethod
    def _shap_rate(cls, given: Any) -> Any:
        """Without a rate of its own SHAP explains the declared one; real images alone have none."""
        shap, sweep = (given.get(name) if isinstance(given, dict) else None for name in ("shap", "sweep"))
        if isinstance(shap, dict) and isinstance(sweep, dict) and shap.get("rate", 0) is None:
            rate = 0.0 if shap.get("arm") == "real" else sweep.get("primary_rate")
            return given | {"shap": shap | {"rate": rate}}
        return given

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
            if name not in (sections.PLAIN, *self.experiments):
                known = [sections.PLAIN, *self.experiments]
                raise ValueError(
                    f"sweep.experiments must name some of {', '.join(known)}, got {name!r}{nearest(name, known)}"
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
                f"sampling.steps must be {ddim_steps_near(steps, limit)} or another number of equal strides through"
                f" {limit} timesteps with ddim, got {steps}"
            )
        if self.preprocess.image_size > self.preprocess.crop_size:
            raise ValueError(
                f"preprocess.image_size must not exceed preprocess.crop_size {self.preprocess.crop_size},"
                f" got {self.preprocess.image_size}"
            )
        self._halves()
        return self

    def _halves(self) -> None:
        """Refuse a side that a first stage or the semantic network cannot halve; the class model and the GAN can."""
        size, multiple = self.preprocess.image_size, 8
        if "semantic" in self.ldm.conditionings:
            halvings = len(self.ldm.semantic.channel_mult) - 1
            multiple = max(8, self.autoencoder.semantic.pixels_per_latent * 2**halvings)
        if size % multiple:
            near = sizes_that_halve(size, multiple, sections.IMAGE_SIZE_LEAST, self.preprocess.crop_size)
            if not near:
                raise ValueError(
                    f"preprocess.crop_size must be at least {-(-sections.IMAGE_SIZE_LEAST // multiple) * multiple}, got"
                    f" {self.preprocess.crop_size}: preprocess.image_size must be a multiple of {multiple}, which the"
                    " networks can halve, and no greater"
                )
            raise ValueError(
                f"preprocess.image_size must be {near} or another multiple of {multiple}, which the networks can halve,"
                f" got {size}"
            )

    @property
    def name(self) -> str:
        """Name of the run: ``run`` where given, else the profile."""
        return self.run or self.profile

    @property
    def generators(self) -> list[str]:
        """Generators of the run, by name: diffusion models, then the baselines that are enabled."""
        return [*self.ldm.conditionings, *(name for name in arms.BASELINES if getattr(self, name).enabled)]

    def without_simulated(self) -> Settings:
        """These settings where ``simulated.enabled`` is ``auto`` and the cohort is no liver: its arms are left out."""

        def kept(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(name for name in names if arms.SIMULATED not in arms.parse(name).generators)

        experiments = {
            name: own.model_copy(update={"arms": kept(own.arms)}) if own.arms else own
            for name, own in self.experiments.items()
        }
        off = {"simulated": self.simulated.model_copy(update={"enabled": False}), "experiments": experiments}
        return self.model_copy(update={**off, "sweep": self.sweep.model_copy(update={"arms": kept(self.sweep.arms)})})

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

    def by_key(self) -> dict[str, Any]:
        """Every setting by dotted key, as plain JSON-able values."""
        return flat(self.model_dump(mode="json", by_alias=True))


def validated(values: Mapping[str, Any], profile: str, source: str, place: str) -> Settings:
    """Settings from complete nested values; `SettingsError` names what is wrong with which key of `source`."""
    try:
        return Settings.model_validate({"profile": profile, **values})
    except ValidationError as error:
        raise SettingsError(sentence(error, source, place)) from None
