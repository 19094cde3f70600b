"""The run's classifiers on images of another cohort: nothing is fitted, chosen or scaled there.

The classifiers of the sweep are trained again where it kept scores alone. A patient's score is the mean over the folds'
classifiers and the patient's images.
"""
