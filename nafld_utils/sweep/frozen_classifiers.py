"""Classifiers that a sceptic asks for, on the study's own folds, and the canary: what shuffled labels score.

Contract: features, labels, patients and folds in; out-of-fold scores and tables out. Nothing is tuned: every constant
is fixed beforehand and the same for every cohort. A score is higher where fat is likelier; no threshold is set.

References
----------
Byra et al. 2018, doi:10.1007/s11548-018-1843-2: frozen features + SVM, hepatorenal index and GLCM texture on the same
55 patients, each patient left out once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from nafld_utils import preprocessing, statistics

REVISION = ("baselines", 3), ("no_pixels", 1)

# Byra et al. 2018: AUC over patients, each left out once.
BYRA_AUC = {"frozen features + SVM": 0.977, "liver / kidney ratio": 0.959, "GLCM texture + SVM": 0.893}

FEATURES_SVM, FEATURES_LOGISTIC = "frozen features + SVM", "frozen features + logistic"
GLCM_SVM, HALVES, RATIO = "GLCM texture + SVM", "upper / lower half", "liver / kidney ratio"
NO_PIXELS = "no pixels: size, crop, file"
IN_FOLDS, ONE_OUT = "folds of this run", "one patient left out"

MIN_PIXELS = 20  # choice: fewer pixels of an organ give no mean
SHAPE = ["height", "width", "aspect", "region_pixels", "region_share", "kept_share", "image_share", "crop_side"]
TREES, LEAF = 500, 2  # choice: sklearn's forest is steady from some hundred trees on; a leaf holds two patients


# ---------------------------------------------------------------- features without a network


def half_ratio(crops: np.ndarray) -> np.ndarray:
    """Mean grey of a crop's upper half over that of its lower one, (N,) float64: fat attenuates, deep echoes fade.

    Examples
    --------
    >>> half_ratio(np.array([[[100, 0], [50, 50]]], dtype=np.uint8)).tolist()
    [2.0]
    """
    means = []
    for part in np.split(crops, [crops.shape[1] // 2], axis=1):
        inside = part > 0
        n = inside.sum(axis=(1, 2))
        if (n == 0).any():
            raise ValueError(
                f"crop {int(np.argmin(n))}: expected pixels above 0 in both halves, found one empty; check its region."
            )
        means.append(part.sum(axis=(1, 2), dtype=float) / n)
    return means[0] / means[1]


def organ_ratio(images: np.ndarray, tissue: np.ndarray, liver: int, kidney: int, patient: Any) -> np.ndarray:
    """Mean grey of liver over that of kidney cortex (the hepatorenal index), (N,) float64, from tissue codes (N, H, W).

    An image with fewer than `MIN_PIXELS` of an organ takes the mean of its patient's other images, a patient without
    any the median of all; neither looks at labels.
    """
    out = np.full(len(images), np.nan)
    for i, (image, codes) in enumerate(zip(images, tissue, strict=True)):
        organs = [image[codes == code] for code in (liver, kidney)]
        if min(map(len, organs)) >= MIN_PIXELS and organs[1].mean() > 0:
            out[i] = organs[0].mean() / organs[1].mean()
    if np.isnan(out).all():
        raise ValueError(
            f"tissue: expected images with liver ({liver}) and kidney ({kidney}), found none; check the masks."
        )
    series = pd.Series(out)
    series = series.fillna(series.groupby(np.asarray(patient)).transform("mean"))
    return series.fillna(series.median()).to_numpy()


def without_pixels(facts: pd.DataFrame, tags: pd.DataFrame) -> pd.DataFrame:
    """What is known of each patient before a pixel is looked at, a row per patient, its index the patient's id.

    Means over a patient's images of `SHAPE` of `facts` (`preprocessing.facts_of`) and of `tags`, (N, d) of
    `cohort.tag_numbers`, which say format and colour; and ``images``, how many there are.
    """
    groups = pd.concat([facts[SHAPE], tags.set_axis(facts.index)], axis=1).groupby(facts["patient_id"])
    return groups.mean().assign(images=groups.size())


# ---------------------------------------------------------------- scores out of fold


Learner = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _sides(features: np.ndarray, label: np.ndarray, fold: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """By fold: which rows (N,) bool are trained on, and all features (N, d) scaled to unit variance on these.

    Rows of a fold below 0 are trained on for every other fold, and never scored.
    """
    for k in np.unique(fold[fold >= 0]):
        train = fold != k
        if len(np.unique(label[train])) < 2:
            raise ValueError(f"fold {k}: expected both classes in training, found one; use fewer folds.")
        mean, spread = features[train].mean(axis=0), features[train].std(axis=0)
        yield train, (features - mean) / np.where(spread > 0, spread, 1.0)


def svm_scores(features: np.ndarray, label: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Out-of-fold decision values (N,) float64 of a linear support vector machine, in units of the margin.

    Rows are scaled by 1/sqrt(d) besides, so that a row's squared length is about 1 whatever d is and one C fits all. A
    linear machine sees only inner products: it is fitted on their matrix, smaller than the features. Choice: C = 1,
    sklearn's default, fixed beforehand; classes weigh alike.
    """
    from sklearn.svm import SVC

    features, label = np.asarray(features, dtype=float), np.asarray(label)
    scores = np.empty(len(label))
    for train, rows in _sides(features, label, fold):
        kernel = rows @ rows[train].T / features.shape[1]
        model = SVC(kernel="precomputed", C=1.0, class_weight="balanced").fit(kernel[train], label[train])
        scores[~train] = model.decision_function(kernel[~train])
    return scores


def linear_scores(features: np.ndarray, label: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Out-of-fold probabilities (N,) float64 in [0, 1] of a logistic regression with an L2 penalty.

    Choice: sklearn's C = 0.01, fixed beforehand for 1280 features of some forty patients; from 0.001 to 1 the AUC on
    the published cohort stays within 0.005.
    """
    from sklearn.linear_model import LogisticRegression

    scores = np.empty(len(label))
    for train, rows in _sides(features, label, fold):
        inputs = _in_span(rows, train)
        model = LogisticRegression(C=0.01, max_iter=2000).fit(inputs[train], label[train])
        scores[~train] = model.predict_proba(inputs[~train])[:, 1]
    return scores


def forest_scores(features: np.ndarray, label: np.ndarray, fold: np.ndarray, seed: int = 0) -> np.ndarray:
    """Out-of-fold probabilities (N,) float64 in [0, 1] of a random forest; 0.5 where training features do not vary.

    Choice: `TREES` and `LEAF` fixed beforehand, classes weigh alike.
    """
    from sklearn.ensemble import RandomForestClassifier

    label, scores = np.asarray(label), np.full(len(label), 0.5)
    for train, rows in _sides(np.asarray(features, dtype=float), label, fold):
        varies = np.ptp(rows[train], axis=0) > 0
        if varies.any():
            model = RandomForestClassifier(TREES, min_samples_leaf=LEAF, class_weight="balanced", random_state=seed)
            model.fit(rows[train][:, varies], label[train])
            scores[~train] = model.predict_proba(rows[~train][:, varies])[:, 1]
    return scores


def _in_span(rows: np.ndarray, train: np.ndarray) -> np.ndarray:
    """All rows in the principal axes of the training rows, from their Gram matrix where that is the smaller one.

    With fewer rows than features the solution lies in the span of the rows, and an L2 penalty does not change under
    rotation: the fit gives the same scores from smaller matrices.
    """
    if train.sum() >= rows.shape[1]:
        return rows
    gram = rows.astype(np.float64) @ rows[train].T.astype(np.float64)
    values, vectors = np.linalg.eigh(gram[train])
    kept = values > 1e-9 * values[-1]
    return gram @ (vectors[:, kept] / np.sqrt(values[kept]))


def patient_folds(images: pd.DataFrame, n_splits: int, seed: int) -> np.ndarray:
    """Fold of each image ``(N,)``, patients kept together, stratified by the labels in the table."""
    patients = images[["patient_id", "label"]].drop_duplicates("patient_id")
    assigned = preprocessing.make_folds(patients, n_splits, seed).set_index("patient_id")["fold"]
    return images["patient_id"].map(assigned).to_numpy()


def image_folds(label: np.ndarray, n_splits: int, seed: int) -> np.ndarray:
    """Folds (N,) by IMAGE, stratified by class: the mistake that the protocol check shows, never used for training."""
    from sklearn.model_selection import StratifiedKFold

    fold = np.empty(len(label), dtype=np.int64)
    splitter = StratifiedKFold(n_splits, shuffle=True, random_state=seed)
    for k, (_, rows) in enumerate(splitter.split(np.zeros((len(label), 1)), label)):
        fold[rows] = k
    return fold


def split_scores(learners: dict[str, tuple[np.ndarray, Learner]], images: pd.DataFrame) -> pd.DataFrame:
    """Held-out scores of learnt baselines on the table's own folds and with each patient left out once.

    `learners` are by name features ``(N, d)`` and what scores them out of fold; `images` (``image_id, patient_id,
    label, fold``) are in the features' order. Gives ``baseline, split, image_id, patient_id, label, fold, score``.
    """
    label, one_out = images["label"].to_numpy(), np.unique(images["patient_id"].to_numpy(), return_inverse=True)[1]
    parts = []
    for name, (features, learn) in learners.items():
        for split, fold in ((IN_FOLDS, images["fold"].to_numpy()), (ONE_OUT, one_out)):
            facts = images[["image_id", "patient_id", "label"]].assign(fold=fold)
            parts.append(facts.assign(baseline=name, split=split, score=learn(features, label, fold)))
    return pd.concat(parts, ignore_index=True)


def fixed_scores(rules: dict[str, np.ndarray], images: pd.DataFrame) -> pd.DataFrame:
    """Scores ``(N,)`` that learn nothing, by name, in the shape of `split_scores`; every split gives the same."""
    facts = images[["image_id", "patient_id", "label", "fold"]]
    parts = [facts.assign(baseline=name, split=IN_FOLDS, score=score) for name, score in rules.items()]
    return pd.concat(parts, ignore_index=True)


def baseline_table(scores: pd.DataFrame, method: str = "newcombe") -> pd.DataFrame:
    """AUC of every baseline and split by image and by patient, with intervals over patients.

    ``baseline, split, level, auc, low, high, byra, n_patients, over``; `byra` is the published AUC over patients, each
    left out once, beside the rows of that split and level.
    """
    rows = []
    for (name, split), part in scores.groupby(["baseline", "split"], sort=False):
        whole = part.groupby("patient_id", as_index=False).agg(label=("label", "first"), score=("score", "mean"))
        for level, table in (("image", part), ("patient", whole)):
            data = table["label"], table["score"], table["patient_id"]
            found = statistics.auc_interval(*data, method=method)
            known = BYRA_AUC.get(name) if level == "patient" and (split == ONE_OUT or name == RATIO) else None
            rows.append((name, split, level, *found, known, len(whole), statistics.over(found, method=method)))
    columns = ["baseline", "split", "level", "auc", "low", "high", "byra", "n_patients", "over"]
    return pd.DataFrame(rows, columns=columns).astype({"byra": float})


def split_spread(
    learners: dict[str, tuple[np.ndarray, Learner]], images: pd.DataFrame, n_splits: int, seeds: Iterable[int]
) -> pd.DataFrame:
    """Image-level AUC of learnt baselines (as in `split_scores`) over many split seeds: what the split alone does.

    ``baseline, split_by`` ("patient" or "image"), ``seed, auc, over``; `FEATURES_LOGISTIC` is split by IMAGE as well,
    as a warning.
    """
    label, rows = images["label"].to_numpy(), []
    for seed in seeds:
        whole = patient_folds(images, n_splits, seed)
        for name, (features, learn) in learners.items():
            rows.append((name, "patient", seed, statistics.auc(label, learn(features, label, whole))))
            if name == FEATURES_LOGISTIC:
                score = learn(features, label, image_folds(label, n_splits, seed))
                rows.append((name, "image", seed, statistics.auc(label, score)))
    table = pd.DataFrame(rows, columns=["baseline", "split_by", "seed", "auc"])
    return table.assign(over="no interval: one split seed per row")


# ---------------------------------------------------------------- the canary


def canary(
    features: np.ndarray,
    images: pd.DataFrame,
    n_splits: int,
    seeds: Iterable[int],
    method: str = "newcombe",
    splits: Sequence[str] = (IN_FOLDS, ONE_OUT),
) -> pd.DataFrame:
    """What the study's protocol scores when labels mean nothing: diagnoses shuffled among patients, one seed each.

    ``seed, split, auc, low, high, over, covers`` (whether the 95 % interval over patients holds 0.5), of frozen
    `features` (N, d) of `images` (``patient_id, label``) in `n_splits` folds, stratified anew by the shuffled labels.
    `splits` are `IN_FOLDS`, where images are ranked, and `ONE_OUT`, where patients' mean features are, which takes most
    of the time.

    Notes
    -----
    Two biases are known beforehand. The interval holds the trained models fixed, so it is too narrow and covers 0.5
    less often than it says. With each patient left out, the others hold a little more of the OTHER class, so pooled
    scores rank below chance: an AUC under 0.5 without any leak.
    """
    whole = images.assign(row=np.arange(len(images))).groupby("patient_id")
    patients = whole["label"].first()
    means = np.stack([features[rows].mean(axis=0) for rows in whole["row"].apply(np.array)])
    rows = []
    for seed in seeds:
        drawn = np.random.default_rng([seed, 17]).permutation(patients.to_numpy())
        shuffled = images.assign(label=images["patient_id"].map(dict(zip(patients.index, drawn, strict=True))))
        label = shuffled["label"].to_numpy()
        if IN_FOLDS in splits:
            score = linear_scores(features, label, patient_folds(shuffled, n_splits, seed))
            found = statistics.auc_interval(label, score, images["patient_id"], method=method)
            rows.append((seed, IN_FOLDS, *found))
        if ONE_OUT in splits:
            score = linear_scores(means, drawn, np.arange(len(drawn)))
            rows.append((seed, ONE_OUT, *statistics.auc_interval(drawn, score, patients.index, method=method)))
    table = pd.DataFrame(rows, columns=["seed", "split", "auc", "low", "high"])
    over = f"patients within class ({statistics.METHODS[method]}); {statistics.GIVEN}"
    return table.assign(over=over, covers=table["low"].le(0.5) & table["high"].ge(0.5))


def canary_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean null AUC and share of intervals that hold 0.5, by split.

    ``split, shuffles, mean_auc, low, high`` (Student t over shuffles, NaN for one), ``sd, covers, covers_low,
    covers_high`` (share, Wilson 95 %), ``over``.
    """
    from statsmodels.stats.proportion import proportion_confint

    rows = []
    for split, part in table.groupby("split", sort=False):
        held = proportion_confint(part["covers"].sum(), len(part), method="wilson")
        spread = part["auc"].std(ddof=1)
        mean = statistics.over_folds(part["auc"], statistics.SHARE)
        rows.append((split, len(part), *mean, spread, part["covers"].mean(), *held))
    columns = ["split", "shuffles", "mean_auc", "low", "high", "sd", "covers", "covers_low", "covers_high"]
    over = "shuffles of the diagnoses: AUC by Student t, share by Wilson"
    return pd.DataFrame(rows, columns=columns).assign(over=over)
