"""Do synthetic images help a classifier, are they any good, and are they copies of patients?

The package under the eight notebooks of this study. Modules, in import order (a module imports only from those
above it; ``tests/test_layout.py`` holds that): ``params``, ``artifacts``, ``engine``; ``cohort``, ``phantom``;
``folds``, ``preprocess``; ``autoencoder``, ``diffusion``, ``sampling``; ``backbones``, ``quality``; ``trial``,
``sweep``, ``resampling``, ``stats``, ``baselines``, ``delong``, ``measures``, ``sweep_tables``; ``explain``,
``turing_sitting``, ``turing``; ``figures``; ``stages`` (the only ones that open files); ``report``.
"""
