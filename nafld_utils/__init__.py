"""Do synthetic images help a classifier, are they any good, and are they copies of patients?

The package under the eight notebooks of this study. Modules, in import order (a module imports only from those
above it; ``tests/test_layout.py`` holds that): ``params``, ``artifacts``, ``engine``; ``cohort``, ``phantom``;
``folds``, ``preprocess``; ``autoencoder``, ``diffusion``, ``sampling``; ``backbones``, ``quality``; ``trial``,
``sweep``, ``stats``, ``sweep_tables``; ``explain``, ``explain_truth``,
``feature_study``, ``turing_sitting``, ``turing``; ``figures``; ``stages`` (the only ones that open files); ``report``.
"""
