"""Estimates before the work: seconds of a step of the study's own code, operations that are counted, the dry run."""

import pytest
import torch

from nafld_utils import cli, engine, ldm, params, sweep
from nafld_utils.engine import side_by_side, timer
from nafld_utils.sampling import time_estimate
from nafld_utils.sweep import timing_units

CPU = torch.device("cpu")


def test_calls_that_warm_up_are_not_counted(monkeypatch):
    """Where the first two calls take 100 seconds each and every other one 3."""
    now, called = [0.0], []

    def call():
        called.append(1)
        now[0] += 100.0 if len(called) <= 2 else 3.0

    monkeypatch.setattr(timer.time, "perf_counter", lambda: now[0])
    assert engine.timed(call, CPU, repeats=4, warm=2) == pytest.approx(3.0)
    assert len(called) == 6


def test_units_side_by_side_are_those_of_the_settings():
    def of(mode, n_workers):
        return side_by_side(params.load("smoke", {"engine.mode": mode, "engine.n_workers": n_workers}).engine)

    assert of("serial", 3) == 1
    assert of("local", 3) == 3
    assert of("local", None) >= 1


@pytest.fixture(params=["class", "semantic"])
def model(request):
    settings = params.load("smoke").section("ldm")
    denoiser = ldm.denoiser.build_denoiser(request.param, settings[request.param], (4, 8, 8), 5, 0)
    options = ldm.denoiser.schedule_options(settings[request.param], "v_prediction", 1000)
    return time_estimate.Model(denoiser, (4, 8, 8), settings, options, 64, CPU)


def test_a_timed_step_is_one_of_the_training(model):
    rows, before = [], {key: value.clone() for key, value in model.denoiser.state_dict().items()}
    model.denoiser.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    step = model.training_step(2)
    for n in (1, 2):
        step()
        assert sum(rows) == 2 * n
    after = model.denoiser.state_dict()
    assert any(not torch.equal(before[key], value) for key, value in after.items()), "weights move"
    assert model.flops == ldm.forward_flops(model.denoiser, (4, 8, 8), 64)
    assert 1 <= model.affordable() <= model.settings["batch_size"]


def test_a_timed_image_has_both_passes_and_is_scaled_to_all_steps(model, monkeypatch):
    """Each call takes a second: 2 of 40 steps for 8 images, which are one group of a CPU."""
    rows, drawn = [], {}
    monkeypatch.setattr(timer, "timed", lambda call, *_, **__: [call()] and 1.0)
    model.denoiser.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    for guidance in (1.0, 2.0):
        rows.clear()
        seconds = model.seconds_an_image(8, 40, 2, scheduler="ddim", eta=0.0, guidance=guidance)
        assert seconds == pytest.approx(1 / 8 * 40 / 2)
        drawn[guidance] = sum(rows)
    assert drawn[2.0] == 2 * drawn[1.0] == 2 * 2 * 8


def test_a_training_of_the_sweep_is_timed():
    network = timing_units.Network("resnet18", "paper", 32, CPU)
    assert network.prefix_seconds > 0
    assert network.seconds_a_training(sweep.Options(100, 8, 1e-3, 0.01)) > 0
    assert 0 < network.seconds_a_score() < 1


def test_a_dry_run_counts_from_the_settings_where_nothing_is_there_yet(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    changes = "sweep.backbones=[resnet18] sweep.experiments=[plain, s7] engine.device=cpu sweep.steps=100"
    assert cli.main(["dry-run", "--profile", "smoke", "--set", changes]) == 0
    printed = capsys.readouterr().out
    assert "Counted from the settings alone, without the minutes of features and scores" in printed
    counts = [line.split() for line in printed.splitlines() if line.lstrip().startswith(("plain", "s7", "all"))]
    assert [line[-4:-2] for line in counts[:2]] == [["36", "36"], ["52", "52"]]
    assert counts[2][1] == "88"
