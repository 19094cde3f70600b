"""Synthetic liver ultrasounds for a classifier of fatty liver: do they help, are they any good, are they copies?

The package under the eight notebooks of this study. A module imports only from those above it, in the order that
``tests/test_layout.py`` holds: settings, artifacts and engine; cohort and simulator; folds and preprocessing; networks,
autoencoders, diffusion, GAN; quality and the search for copies; trainings, sweep and statistics; explanations and the
Turing test; figures; ``stages``, the only ones that open files; reports.
"""
