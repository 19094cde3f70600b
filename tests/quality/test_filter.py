"""The filter keeps what looks real and shows its class, never a copy, and leaves the class mix alone."""

import pandas as pd
import pytest

from nafld_utils.quality import filter


def table():
    return pd.DataFrame(
        {
            "label": [0, 0, 0, 0, 1, 1, 1, 1],
            "realism": [0.9, 0.8, 0.1, 0.2, 0.45, 0.5, 0.6, 0.1],
            "agreement": [0.9, 0.8, 0.2, 0.1, 0.1, 0.9, 0.8, 0.2],
            "copy": [True, False, False, False, False, False, False, False],
        }
    )


def test_keeps_the_best_of_each_class_and_no_copy():
    kept = filter.choose(table(), 0.5)
    assert kept.loc[kept["kept"], "label"].value_counts().to_dict() == {0: 2, 1: 2}
    assert not kept.loc[0, "kept"], "the best image is a copy"
    assert kept.loc[1, "kept"]
    assert kept.loc[4:, "kept"].tolist() == [False, True, True, False]
    assert kept["score"].between(0, 1).all()


def test_keeping_everything_still_leaves_copies_out():
    kept = filter.choose(table(), 1.0)["kept"]
    assert kept.sum() == 7
    assert not kept[0]


@pytest.mark.parametrize("keep", [0.1, 0.26, 0.74])
def test_no_more_than_the_share_is_kept(keep):
    assert filter.choose(table(), keep)["kept"].mean() <= keep
