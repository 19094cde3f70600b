#!/usr/bin/env bash
# The paper's profile with its full-size networks through all eight notebooks on a CPU: two hours on two cores, 13 GB.
# `tests/paper_on_a_cpu.sh DATA=<the .mat file>`; the cohort, its split, rates, arms, models, freezing, resamples and
# raters are the paper's. Smaller are numbers of steps, images, seeds, a batch and folds to run, and every weight is
# random, so that no number means anything. A patient has one frame and two crops of it, of ten and eight; 88 images a
# set are what r = 2 takes for 44 training images.
set -euo pipefail
cd "$(dirname "$0")/.."
make all PROFILE=paper RUN=paper-cpu JOBS=1 SET="
  engine.threads=2
  cohort.frames_per_patient=1 preprocess.crops_per_image=2
  autoencoder.semantic.source=random autoencoder.class.source=random
  ldm.folds=[0] ldm.steps=2 ldm.warmup_steps=1 ldm.batch_size=2
  ldm.checkpoint_every=2 ldm.preview_every=0 ldm.log_every=1
  gan.steps=4 gan.batch_size=4 gan.log_every=1
  sampling.n_images=88 sampling.n_null=4 sampling.steps=2 sampling.batch_size=4 sampling.n_compared=0
  quality.features=random quality.n_reference=6 quality.kid_subset_size=3 quality.n_planted=4
  sweep.weights=random sweep.n_seeds=2 sweep.steps=2 sweep.batch_size=4
  shap.n_background=4 shap.n_held_out=2 shap.n_compared=2 shap.n_classifiers=2 shap.feature_patients=0" "$@"
