"""Small made-up patients: scores, features and trainings whose answer is known beforehand."""

import numpy as np
import pandas as pd

from nafld_utils.sweep import frozen_classifiers

# Two healthy (a, b) and two fatty patients (c, d), two images each.
LABEL = np.array([0, 0, 0, 0, 1, 1, 1, 1])
PATIENT = np.array(list("aabbccdd"))
SCORE = np.array([1, 2, 3, 4, 2.5, 5, 6, 7])


def cohort(seed, n_neg=17, n_pos=38, frames=10, effect=1.0, n_seeds=1):
    """Scores (n_seeds, n) with a patient effect, an image effect and one of the seed."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_neg + n_pos), frames)
    label = (patient >= n_neg).astype(int)
    common = effect * label + 0.8 * rng.normal(size=n_neg + n_pos)[patient] + 0.3 * rng.normal(size=len(patient))
    return label, common + 0.2 * rng.normal(size=(n_seeds, len(patient))), patient


def images_table(n_patients=12, frames=3, n_folds=3):
    """Patients of alternating classes in folds that hold both."""
    patient = np.repeat(np.arange(1, n_patients + 1), frames)
    table = pd.DataFrame({"patient_id": patient, "label": patient % 2, "fold": (patient - 1) // 2 % n_folds})
    return table.assign(image_id=[f"i{i}" for i in range(len(table))], grade=0.0)


def features_of(images, signal, d=40, seed=0):
    """Features that know the patient, and the class by `signal`."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(images["patient_id"].max() + 1, d))[images["patient_id"]]
    return own + signal * images[["label"]].to_numpy() + 0.1 * rng.normal(size=(len(images), d))


def learners(features):
    return {
        frozen_classifiers.FEATURES_SVM: (features, frozen_classifiers.svm_scores),
        frozen_classifiers.FEATURES_LOGISTIC: (features, frozen_classifiers.linear_scores),
    }


ARMS = {("real", 0.0): 0.0, ("traditional", 0.5): 0.0, ("semantic", 0.5): 0.6}


class ToyData:
    """What stage 02 would leave, as far as the answer reads it."""

    images = images_table(20, 3, 2).assign(grade=lambda t: 5.0 * t["patient_id"])
    tissue = None


def made_up(backbone="tf_efficientnet_lite0", arms=None, n_seeds=3, **group):
    """Scores in (0, 1); `arms` maps (arm, rate) to a shift of the fatty patients' scores."""
    images, parts = ToyData.images, []
    own = np.random.default_rng(7).normal(size=21)[images["patient_id"]]
    for (arm, rate), shift in (arms or ARMS).items():
        for seed in range(n_seeds):
            noise = 0.2 * np.random.default_rng([seed, round(10 * shift)]).normal(size=len(images))
            score = 1 / (1 + np.exp(-(own + noise + (0.5 + shift) * images["label"])))
            facts = images[["image_id", "patient_id", "label", "fold"]]
            parts.append(facts.assign(backbone=backbone, **group, arm=arm, rate=rate, seed=seed, score=score))
    return pd.concat(parts, ignore_index=True)
