"""Texture of grey images from co-occurrences of their grey levels. Arrays in, arrays out.

Source: Haralick et al. 1973, doi 10.1109/TSMC.1973.4309314.
"""

from __future__ import annotations

import numpy as np

REVISION = ("textures", 1)  # raise ``baselines`` of sweep.frozen_classifiers beside it, which stage 06's units name
GLCM_LEVELS = 32  # grey levels; choice: bins of 8, above the speckle's own quantisation
GLCM_DISTANCES = (1, 2, 4)  # pixels at original spacing (choice)
GLCM_PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")


def texture_features(crops: np.ndarray) -> np.ndarray:
    """Texture of whole crops (N, H, W) uint8, 0 outside the region, from grey-level co-occurrences: (N, 36) float64.

    `GLCM_PROPERTIES`, for each their mean and range over four directions at each of `GLCM_DISTANCES`.
    """
    from skimage.feature import graycomatrix, graycoprops

    angles = np.arange(4) * np.pi / 4
    rows = []
    for i, crop in enumerate(crops):
        levels = np.where(crop > 0, 1 + crop.astype(int) * GLCM_LEVELS // 256, 0).astype(np.uint8)
        pairs = graycomatrix(levels, GLCM_DISTANCES, angles, GLCM_LEVELS + 1, symmetric=True)[1:, 1:].astype(float)
        if (pairs.sum(axis=(0, 1)) == 0).any():
            raise ValueError(f"crop {i}: expected neighbouring pixels above 0, found none; check its region.")
        pairs /= pairs.sum(axis=(0, 1))
        values = [graycoprops(pairs, name) for name in GLCM_PROPERTIES]
        rows.append(np.concatenate([[v.mean(axis=1), np.ptp(v, axis=1)] for v in values], axis=None))
    return np.array(rows)
