"""What a run did, in sentences made from its resolved settings, and what its results cannot show.

Contract: pure; a sentence names the settings it comes from by their values, and what a run left out is left out here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nafld_utils import graph, params, sweep, words
from nafld_utils.artifacts import Run
from nafld_utils.report import facts, pages
from nafld_utils.report import notebooks as notebook_pages

_SOURCES = {
    "shipped": "the autoencoder that comes with the study, trained on other simulated patients",
    "hub": "published weights",
    "path": "weights from a local folder",
    "ldm_checkpoint": "the original checkpoint",
    "train": "an autoencoder trained on each fold's training patients",
    "random": "an untrained autoencoder (for tests of the machinery)",
}
_PRECISION = {
    "fp32": "single precision",
    "tf32": "TF32 on a GPU, single precision on a CPU",
    "bf16": "bfloat16 on a GPU, single precision on a CPU",
}
_WEIGHTS = {
    "hub": "with published weights",
    "bundled": "with bundled ImageNet weights",
    "random": "with random weights",
}
_FEATURES = {
    "inception": "Inception-v3",
    "lite0": "EfficientNet-Lite0",
    "lite1": "EfficientNet-Lite1",
    "random": "an untrained Inception-v3",
}


def methods(run: Run) -> list[tuple[str, str]]:
    """The methods as paragraphs.

    Returns
    -------
    list of tuple of str
        Heading and text, in the order of the stages.
    """
    s = run.settings
    return [
        ("Cohort", _cohort(run)),
        ("Folds", f"Cross-validation in {facts.split(run)}."
                  " Every model of a fold, generator and classifier, sees the fold's training patients alone."),
        ("Images", _images(s)),
        ("Generators", _generators(s)),
        ("Sampling", _sampling(s)),
        ("Quality and copies", _quality(s)),
        ("Classifiers", _classifiers(s)),
        ("Statistics", _statistics(s)),
        ("Attributions", _shap(s)),
        ("Turing test", _turing(run)),
    ]  # fmt: skip


def _cohort(run: Run) -> str:
    chosen = run.settings.cohort
    zero, one = chosen.class_names
    found = facts.provenance(run)
    origin = found.get("text") or ("Simulated patients." if run.is_simulated else "A file of the user.")
    counts = facts.patients_by_class(run)
    sizes = f" {sum(counts)} patients, {counts[0]} {zero} and {counts[1]} {one}." if counts else ""
    frames = chosen.frames_per_patient
    taken = f" {frames} frames a patient, spread evenly." if frames else " All frames of each patient."
    return f"{str(origin).rstrip('.')}.{sizes}{taken}"


def _images(s: params.Settings) -> str:
    p = s.preprocess
    return (
        f"{region(p)}, from them {p.crops_per_image} random crops an image ({p.crop_scale[0]:g} to"
        f" {p.crop_scale[1]:g} of"
        f" the area), resized to {p.image_size} px. Semantic maps have {p.map_classes} Otsu classes at {p.map_size} px."
    )


def region(p: params.PreprocessSettings) -> str:
    """Where the crops of an image come from, in words."""
    where = {
        "largest": "the largest connected region",
        "box": f"the box {list(p.region_box or ())} (top, left, height, width)",
        "none": "the whole image",
    }
    spacing = f"centre crops of {p.crop_size} px at original spacing"
    fit = f"the square about it, resized to {p.crop_size} px"
    how = {"spacing": spacing, "fit": fit, "auto": f"{spacing}, or for a folder of images {fit}"}
    return f"Of {where[p.region]} {how[p.crop]}"


def _generators(s: params.Settings) -> str:
    model = s.ldm
    kinds = {"semantic": "semantic maps", "class": "the class"}
    named = pages.listed(f"one conditioned on {kinds[name]}" for name in model.conditionings)
    first = {name: getattr(s.autoencoder, "class_" if name == "class" else name) for name in model.conditionings}
    stages = pages.listed(dict.fromkeys(_SOURCES[one.source] for one in first.values()))
    folds = f"folds {pages.listed(map(str, model.folds))}" if model.folds else "every fold"
    text = (
        f"Latent diffusion models, {named}, on latents of {stages}; trained for {model.steps} steps in {folds}, batch"
        f" size {model.batch_size}, learning rate {model.learning_rate:g}, {_PRECISION[model.precision]},"
        " exponential moving average"
        f" {model.ema_decay:g}, predicting {model.prediction.replace('_', ' ')}."
    )
    if "oversample" in model.balance:
        text += " A second model of each kind sees both classes alike."
    if s.gan.enabled:
        length = f"{s.gan.steps} steps" if s.gan.steps else "as many seconds as the diffusion model took"
        text += f" A GAN on the same folds, trained for {length}, is the baseline."
    return text


def _sampling(s: params.Settings) -> str:
    one = s.sampling
    return (
        f"{one.n_images} images a model and fold by {one.scheduler.upper()} in {one.steps} steps, eta {one.eta:g},"
        f" guidance {one.guidance:g}; {one.n_null} more without the condition."
    )


def _quality(s: params.Settings) -> str:
    one = s.quality
    second = f", and of {_FEATURES[one.second_features]} as a second opinion" if one.second_features else ""
    return (
        f"Frechet and kernel distances, a classifier score, precision and recall in features of"
        f" {_FEATURES[one.features]}"
        f"{second}, between a floor (real images of other patients) and ceilings of {one.n_reference} images each."
        " Every"
        f" synthetic image is compared with every training frame of its fold by pixels, latents and features;"
        f" {one.n_planted}"
        " copies of each kind are planted in every fold to check the search."
    )


def _classifiers(s: params.Settings) -> str:
    one = s.sweep
    grid = "" if one.experiments == (params.PLAIN,) else f" Experiments: {pages.listed(one.experiments)}."
    backbones, rates, arms = (sweep.planned(s, field) for field in ("backbones", "rates", "arms"))
    return (
        f"{pages.listed(backbones)} {_WEIGHTS.get(one.weights, 'with weights of the user')}, fine-tuned for"
        f" {one.steps} steps (batch size"
        f" {one.batch_size}, learning rate {one.learning_rate:g}, frozen: {one.freeze}) on real images alone or with"
        f" {pages.listed(f'{rate:g}' for rate in rates)} times as many images of an arm:"
        f" {pages.listed(arms)}. {one.n_seeds} training seeds. Scores of the last step; nothing is chosen by"
        f" held-out patients. The comparison declared beforehand is {one.primary_arm} at {one.primary_rate:g}.{grid}"
    )


def _statistics(s: params.Settings) -> str:
    one = s.sweep
    return (
        f"The measure is the area under the ROC curve on held-out patients. Intervals over patients come from a"
        f" {'bias-corrected ' if one.interval_method == 'bca' else ''}bootstrap of patients within class and training"
        f" seeds, {one.n_resamples} resamples; intervals over folds and over seeds from Student's t. Baselines without"
        f" training are split {one.baseline_splits} times, and the diagnoses are shuffled between patients"
        f" {one.canary_shuffles} times."
    )


def _shap(s: params.Settings) -> str:
    one = s.shap
    kind = {"gradient": "expected gradients", "partition": "partition values"}[one.explainer]
    what = "real images alone" if one.arm == "real" else f"{one.arm} at {one.rate:g}"
    return (
        f"SHAP by {kind}, {one.n_samples} draws against {one.n_background} background images, of the classifier"
        " trained on"
        f" {what}, fold {one.fold}, seed {one.seed}; {one.n_held_out} held-out patients."
    )


def _turing(run: Run) -> str:
    one, (real, drawn) = run.settings.turing, facts.turing_images(run)
    who = "rated by people" if one.ratings else f"rated by {one.n_simulated_raters} simulated raters"
    return f"{real} real and {drawn} synthetic images in one fixed order, {who}."


# ---------------------------------------------------------------- limits


def limits(run: Run, notebooks: Mapping[str, Any]) -> list[str]:
    """What the results of this run cannot show, most weighty first; then what notebooks say of their own limits."""
    s, out = run.settings, []
    if run.is_simulated:
        subject = words.of(run).subject
        out.append(f"The patients are simulated: nothing here is a finding about people, their {subject} or scanners.")
    if s.profile == "smoke":
        out.append("The smoke profile exists for the tests: trainings last a few steps and its numbers mean nothing.")
    counts = facts.patients_by_class(run)
    if counts:
        named = pages.listed(f"{n} {name}" for n, name in zip(counts, s.cohort.class_names, strict=True))
        out.append(f"One cohort of {sum(counts)} patients ({named}), one split: no other hospital, scanner or reader.")
    out.append("Folds share training patients, so intervals over folds describe these folds and not new patients.")
    out.append("Intervals are not corrected for the number of comparisons; one comparison was declared beforehand.")
    if s.quality.features != "inception":
        out.append(f"Distances are of {_FEATURES[s.quality.features]} features and stand beside no published FID.")
    missing = [stage for stage in graph.STAGES if stage not in notebooks]
    if missing:
        out.append(f"Not run: {pages.listed(missing)}.")
    trained = s.ldm.folds
    if trained and len(trained) < s.folds.n_splits:
        out.append(f"Only {len(trained)} of {s.folds.n_splits} folds were trained.")
    return out + [text for stage in notebooks if (text := notebook_pages.limits(notebooks[stage]))]
