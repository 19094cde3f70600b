#!/usr/bin/env bash
# The paper's profile with its full-size networks through all eight notebooks on a CPU: an hour on two cores, 13 GB.
# Of the settings only numbers of patients, frames, crops, steps, images, seeds, batches, folds, resamples and raters are
# smaller; rates, arms, models and the classifiers' freezing are the paper's. Every weight is random, so no number means
# anything. Of twelve patients half train; two crops a frame make the twelve rotated crops that r = 2 takes.
set -euo pipefail
cd "$(dirname "$0")/.."
make all PROFILE=paper RUN=paper-cpu JOBS=1 SET="
  cohort.source=simulated cohort.n_patients=12 cohort.frames_per_patient=1 folds.n_splits=2 preprocess.crops_per_image=2
  autoencoder.semantic.source=random autoencoder.class.source=random
  ldm.folds=[1] ldm.steps=2 ldm.batch_size=2 ldm.warmup_steps=1
  ldm.checkpoint_every=2 ldm.preview_every=0 ldm.log_every=1
  gan.steps=4 gan.batch_size=4 gan.log_every=1
  sampling.n_images=28 sampling.n_null=4 sampling.steps=2 sampling.batch_size=4 sampling.n_compared=0
  quality.features=random quality.n_reference=6 quality.kid_subsets=5 quality.kid_subset_size=3
  quality.n_planted=4 quality.half_samples=4 quality.subset_repeats=2
  sweep.weights=random sweep.n_seeds=2 sweep.steps=2 sweep.batch_size=4
  sweep.n_resamples=500 sweep.baseline_splits=3 sweep.canary_shuffles=2
  shap.n_background=4 shap.n_samples=4 shap.n_held_out=2 shap.n_compared=2 shap.n_classifiers=2
  shap.fold=1 shap.feature_patients=0
  turing.n_real_unhealthy=4 turing.n_real_healthy=2 turing.n_synthetic_unhealthy=6 turing.n_synthetic_healthy=4
  engine.threads=2" "$@"
