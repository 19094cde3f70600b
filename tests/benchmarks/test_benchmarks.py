"""The benchmarks, run small: their rows and ratios."""

import argparse
import json
import math
import pathlib

import attributions
import ldm
import memory
import pandas as pd
import pytest
import quality
import records
import sweep
import torch

from nafld_utils import params
from nafld_utils import sweep as training
from nafld_utils.engine import devices, mapping
from nafld_utils.ldm.denoiser import build_denoiser, schedule_options
from nafld_utils.sweep import timing_units

CPU = torch.device("cpu")


def test_matrix_rate_is_of_the_order_of_a_machine():
    assert 1e8 < ldm.matrix_rate(CPU, 256) < 1e15


def test_a_plain_ddim_loop_draws_what_the_project_draws():
    from nafld_utils.ldm import sampler

    settings = params.load("smoke").section("ldm.class")
    denoiser = build_denoiser("class", settings, (4, 8, 8), 5, 0).eval()
    options = schedule_options(settings, "v_prediction", 1000)
    seeds, labels = [3, 4], torch.tensor([0, 1])
    z = torch.stack([torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    plain = ldm.plain_sampling(denoiser, options, labels, z, 6, 1.7)
    ours = sampler.sample(denoiser, options, labels, seeds, (4, 8, 8), CPU, steps=6, eta=0.0, guidance=1.7)
    torch.testing.assert_close(plain, ours, atol=1e-4, rtol=1e-4)


def test_memory_of_the_sweep_is_watched_while_no_plain_network_is_held(monkeypatch):
    happened, kept = [], []

    def apart(function, *args, changes):
        happened.append("plain")
        kept.append("MALLOC_TRIM_THRESHOLD_" in changes)
        return [{"how": args[-1][0], "seconds": 1.0, "at once": 1, "GiB": 5.0}]

    class Watched:
        gib = 2.5

        def __enter__(self):
            happened.append("watched")
            return self

        def __exit__(self, *_):
            happened.append("seen")

    def map_units(function, tasks, *args):
        happened.append("ours")
        for task in tasks:
            pathlib.Path(task["path"]).write_text(json.dumps({"seconds": 8.0, "prefix_seconds": 0.1}))

    monkeypatch.setattr(sweep, "_apart", apart)
    monkeypatch.setattr(memory, "Watched", Watched)
    monkeypatch.setattr(mapping, "map_units", map_units)
    rounds = sweep.cpu_rounds("net", 32, 4, 2, n_workers=2)
    assert happened == ["watched", "ours", "seen", *["plain", "plain", "ours"] * 2], "warmed up once, then in turn"
    assert kept == [False, True] * 2, "as a user starts it, and with the workers' allocator"
    found = {sweep.PLAIN: {5.0}, sweep.TUNED: {5.0}, sweep.OURS: {2.5}}
    assert rounds.groupby("how")["GiB"].agg(set).to_dict() == found
    assert rounds.loc[rounds["how"] == sweep.OURS, "seconds"].tolist() == [4.0, 4.0]


@pytest.mark.parametrize(("fast", "inside"), [((101.0, 103.0), True), ((104.0, 105.0), False), ((90.0, 116.0), True)])
def test_a_fast_sampler_is_as_good_where_seeds_move_the_distance_more(fast, inside):
    rows = []
    for how, seconds, distances in (("DDIM", 4.0, (100.0, 102.0)), ("DPM", 0.2, fast)):
        for seeds, distance in zip(("first", "second"), distances, strict=True):
            rows.append({"network": "class", "how": how, "seeds": seeds, "seconds": seconds, "frechet": distance})
    slow, quick = ldm.against_spread(pd.DataFrame(rows)).to_dict("records")
    assert (slow["times_faster"], slow["difference"], slow["spread"], slow["inside"]) == (1, 0, 2, True)
    assert quick["times_faster"] == pytest.approx(20)
    assert quick["difference"] == pytest.approx(sum(fast) / 2 - 101)
    assert quick["spread"] == max(2, fast[1] - fast[0])
    assert quick["inside"] is inside


def test_the_plain_loop_learns_what_it_is_shown():
    network = timing_units.Network("resnet18", "paper", 32, CPU)
    step = sweep.plain_loop(network, training.Options(100, 8, 1e-3, 0.01), torch.channels_last)
    frozen = {key: value.clone() for key, value in network.prefix.state_dict().items()}
    losses = [float(step()) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    assert all(torch.equal(frozen[key], value) for key, value in network.prefix.state_dict().items())


@pytest.mark.parametrize("share", [1.0, 4.0])
def test_ratios_are_to_the_faster_plain_loop_of_the_same_round(share):
    """Two rounds on a machine that drifts by half: the ratio stays, features are counted over Fig. 5A's trainings."""
    ways = {"plain loop": 80.0, "plain loop, channels last": 60.0, sweep.TUNED: 40.0, sweep.OURS: 60 / share}
    rows = [
        (n, how, seconds * drift, 1, 1.0, 0.1 if how == sweep.OURS else math.nan)
        for n, drift in enumerate((1.0, 1.5))
        for how, seconds in ways.items()
    ]
    rounds = pd.DataFrame(rows, columns=["round", "how", "seconds", "at once", "GiB", "prefix_seconds"])
    compared = sweep.compared(rounds)
    found = compared.set_index("how")
    assert found.loc[sweep.OURS, ["ratio", "least", "most"]].tolist() == pytest.approx([share] * 3)
    assert found.loc["plain loop", "ratio"] == pytest.approx(0.75)
    assert found.loc[sweep.TUNED, "ratio"] == pytest.approx(1.5)
    features, each = found.loc[sweep.OURS, "features"], found.loc[sweep.OURS, "seconds"]
    assert features == pytest.approx(0.1 * (550 * 17 + 20000))
    assert found.loc[sweep.OURS, "counted"] == pytest.approx(75 / (each + features / 1625))
    lines = list(sweep.record("net", compared))
    assert [line.get("ratio") for line in lines] == [None, None, None, pytest.approx(share)]
    assert "1.50 times as many as the faster of the others" in lines[2]["per"]


def test_hours_of_figure_5_are_those_of_its_trainings():
    seconds = {"resnet50": 3600.0, "tf_efficientnet_b0": 7200.0, "tf_efficientnetv2_s": 0.0}
    assert sweep.figure_5_seconds(seconds) / 3600 == pytest.approx(1625 + 2 * 250)
    del seconds["tf_efficientnetv2_s"]
    assert math.isnan(sweep.figure_5_seconds(seconds))


def rows_of(tmp_path, module, *arguments):
    assert module.main([*arguments, "--out", str(tmp_path)]) == 0
    return records.load(tmp_path, module.__name__)["rows"]


def test_the_sweep_is_measured_beside_the_plain_loop(tmp_path, monkeypatch):
    """On one core, so that no worker is started; `make bench` has one per core, and each way in a process of its own.

    Here only that with another environment is one: what two would say more takes as long as all the rest.
    """
    apart = sweep._apart
    here = lambda call, *args, changes: apart(call, *args, changes=changes) if changes else call(*args)  # noqa: E731
    monkeypatch.setattr(sweep, "_apart", here)
    monkeypatch.setattr(devices, "cores", lambda: 1)
    small = ("--backbones", "resnet18", "--size", "32", "--batch-size", "4", "--rounds", "1")
    rows = rows_of(tmp_path, sweep, *small)
    assert [row["what"] for row in rows] == [f"resnet18, {how}" for how in (*sweep.LAYOUTS, sweep.OURS)]
    assert all(row["seconds"] > 0 and 0.1 < row["peak_gib"] < 8 for row in rows)


@pytest.mark.slow
def test_the_rows_compare_each_way_with_the_plain_one(tmp_path, monkeypatch):
    monkeypatch.setattr(ldm.Model, "affordable", lambda self: 2)
    rows = rows_of(tmp_path, ldm, "--networks", "demo")
    assert len(rows) == 2 * 5
    assert [row["stage"] for row in rows] == ["03", "03", "04", "04", "04"] * 2
    plain = [row["ratio"] is None for row in rows]
    assert plain == [True, False, True, False, False] * 2
    assert all(row["ratio"] > 5 for row in rows if "DPM-Solver" in row["what"]), "25 times fewer steps, one batch"
    assert all(0 < row["share"] < 5 and row["a_second"] == pytest.approx(1 / row["seconds"]) for row in rows)


def test_rows_of_trained_networks_say_whether_samplers_differ_beyond_chance():
    drawn = pd.DataFrame(
        {"network": "class", "how": ["plain loop", "this project"] * 2, "seconds": [6.0, 2.0, 10.0, 2.0]}
    )
    drawn = drawn.assign(seeds=["first", "first", "second", "second"], frechet=[9.0, 12.0, 11.0, 12.0])
    slow, fast = ldm.drawn_rows(drawn, "demo")
    assert (slow.get("ratio"), fast["ratio"], fast["a_second"]) == (None, 4.0, 0.5)
    assert "12, 12, +2 on average: inside the 2 between seeds" in fast["per"]
    assert "between seeds" not in slow["per"]


def test_quality_benchmark_times_every_part_and_memory_stays_flat(tmp_path):
    rows = rows_of(tmp_path, quality, "--images", "24", "--side", "32")
    assert [row["what"] for row in rows][1:] == ["nearest frames by features", "nearest frames by pixels"]
    assert all(row["seconds"] > 0 and row["a_second"] == pytest.approx(24 / row["seconds"]) for row in rows)
    assert all(float(row["per"].split()[-2]) < 1.0 for row in rows), "memory grown"


@pytest.mark.filterwarnings("ignore:The set_(bad|over|under) function:PendingDeprecationWarning")
def test_shap_is_measured_and_its_bound_is_said_where_it_breaks(monkeypatch):
    options = argparse.Namespace(images=2, size=32, samples=4, background=2)
    (row,) = attributions.measure(options, CPU)
    assert 0.1 < row["peak_gib"] < attributions.MOST_GIB
    assert row["seconds"] > 0
    assert "additivity error" in row["per"]
    assert "broken" not in row
    monkeypatch.setattr(attributions, "MOST_SECONDS", 0.0)
    (row,) = attributions.measure(options, CPU)
    assert row["broken"].startswith("expected at most 0 s and 4 GiB, found ")
