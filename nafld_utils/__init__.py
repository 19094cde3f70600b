"""Do synthetic images help a classifier, are they any good, and are they copies of patients?

The package under the eight notebooks of this study. Modules, in import order (a module imports only from those
above it; ``tests/test_layout.py`` holds that): ``params``, ``artifacts``, ``engine``; ``cohort``, ``phantom``;
``folds``, ``preprocess``; ``autoencoder``, ``diffusion``, ``sampling``; ``backbones``, ``quality``; ``trial``,
``sweep``, ``stats``, ``sweep_tables``; ``explain``, ``turing_sitting``, ``turing_page``, ``turing_import``, ``turing``,
``turing_statistics``, ``turing_model``; ``figures``; ``stages`` (the only ones that open files); ``report``.
"""
