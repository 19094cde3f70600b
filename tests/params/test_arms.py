"""Names of arms: every one stands for itself, and how its images are used is part of it."""

import pytest

from nafld_utils import params
from nafld_utils.params import arms


def test_every_name_is_its_own_and_stands_for_one_training_set():
    found = [arms.parse(name) for name in arms.every()]
    assert [arm.name for arm in found] == arms.every()
    assert len({(arm.generators, arm.with_real, arm.matched, arm.first) for arm in found}) == len(found)


@pytest.mark.parametrize(
    ("name", "use", "used"),
    [
        ("semantic", "mix", "semantic"),
        ("semantic", "pretrain", "semantic_first"),
        ("class_matched", "pretrain", "class_matched_first"),
        ("simulated_only", "pretrain", "simulated_only"),  # no real image would follow
        ("real", "pretrain", "real"),
    ],
)
def test_an_arm_is_named_by_its_use(name, use, used):
    assert arms.parse(name).used(use) == used
    assert arms.parse(used).first == (used != name)


@pytest.mark.parametrize("name", ["semantic_first_only", "semantic_only_first", "real_first", "simulated+semantic"])
def test_what_is_no_arm_is_refused(name):
    with pytest.raises(ValueError, match=f"arm '{name}'".replace("+", r"\+")):
        arms.parse(name)


def test_an_experiment_trains_both_uses_and_real_images_once():
    from nafld_utils.sweep import trial_grid

    settings = params.load("smoke", {"sweep.experiments": ["use"], "sweep.primary_rate": 0.5})
    table = trial_grid.experiment_grid(settings, "use")
    wanted = [f"{name}{use}" for use in ("", "_first") for name in ("traditional", "trivial", "semantic", "simulated")]
    assert list(dict.fromkeys(table["arm"])) == ["real", *wanted]
    assert set(table[["arm", "rate"]].itertuples(index=False, name=None)) == {
        ("real", 0.0),
        *((n, 1.5) for n in wanted),
    }


def test_a_simulator_is_left_out_where_it_only_would_fit_livers():
    settings = params.load("smoke").without_simulated()
    assert "simulated" not in settings.generators
    assert not {"simulated", "simulated_first"} & set(settings.sweep.arms)
    assert "simulated" not in settings.experiments["use"].arms
