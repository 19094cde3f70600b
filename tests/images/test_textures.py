"""Texture from co-occurrences, against numbers worked out by hand."""

import numpy as np
import pytest

from nafld_utils.images import texture_features


def test_texture_tells_checkers_from_stripes_and_ignores_the_outside():
    flat = np.full((16, 16), 100, np.uint8)
    stripes, checkers = flat.copy(), flat.copy()
    stripes[::2], checkers[(np.indices((16, 16)).sum(0) % 2) == 0] = 200, 200
    framed = np.zeros((20, 20), np.uint8)
    framed[2:18, 2:18] = stripes
    rows = texture_features(np.stack([flat, stripes, checkers]))
    assert rows.shape == (3, 36)
    # contrast at distance 1, mean over directions: levels 12 and 25 lie 13 apart; stripes differ in 3 of 4 directions
    assert rows[:, 0].tolist() == pytest.approx([0, 13**2 * 3 / 4, 13**2 / 2])
    np.testing.assert_allclose(texture_features(framed[None])[0], rows[1], atol=1e-9)
    with pytest.raises(ValueError, match="crop 0: expected neighbouring pixels"):
        texture_features(np.zeros((1, 8, 8), np.uint8))
