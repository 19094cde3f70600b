"""The two runs on a GPU, small and on a CPU: what they write, their clock, and what a kill leaves of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu
import ldm
import numpy as np
import pandas as pd
import psutil
import pytest
import sweep as bench_sweep
from PIL import Image
from toy_frames import smooth

from nafld_utils import artifacts, params, sweep


@pytest.fixture
def results(tmp_path):
    return gpu.Results(tmp_path / "out")


def test_every_part_in_its_order_on_a_small_scale(tmp_path):
    crops = tmp_path / "crops.npz"
    maps = np.random.default_rng(0).integers(0, 5, (10, 16, 16), dtype=np.uint8)
    np.savez_compressed(crops, images=smooth(10, side=64), maps=maps, held_out=np.arange(10) % 2 == 0)
    out = tmp_path / "out"
    gpu.main(["--parts", *gpu.BUDGET, "--dry", "--seconds", "100000", "--crops", str(crops), "--out", str(out)])
    rows = gpu.read(out / "results.jsonl")
    states = {row["part"]: row["state"] for row in rows if "state" in row}
    assert states == dict.fromkeys(gpu.BUDGET, "whole")
    assert rows[0]["part"] == "start"
    by = {name: [row for row in rows if row["part"] == name and "state" not in row] for name in gpu.BUDGET}
    assert [row["how"] for row in by["sweep"] if "how" in row] == [
        "plain loop, data on the device",
        "this project, 1 at once",
    ]
    plain, ours = (row for row in by["sweep"] if "how" in row)
    assert ours["ratio"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert ours["an_hour"] == pytest.approx(3600 / ours["seconds"])
    ways = [ldm.OURS, f"{ldm.OURS}: DDIM, 500 steps", f"{ldm.OURS}: DPM-Solver++, 2 steps"]
    found = [(row["network"], row["how"]) for row in by["networks"] if "how" in row]
    assert found == [(name, how) for name in ("semantic", "class") for how in ways]
    assert all(row["share"] > 0 and row["peak_gib"] > 0 for row in by["networks"] if "how" in row)
    assert {row["network"] for row in by["compiled"] if "how" in row} == {"semantic"}
    (equal,) = (row for row in by["sampler"] if row["what"] == "equal distance")
    slow = np.mean([row["seconds"] for row in by["sampler"] if row.get("how") == "DDIM"])
    assert equal["times_faster"] == pytest.approx(slow / equal["seconds"])
    assert [row["step"] for row in by["semantic"] if row["what"] == "grid"] == [3, 4, 6]
    assert len(pd.read_csv(out / "curve.csv")) == 3
    with Image.open(out / "grid.png") as image:
        assert image.size == (6 * 64, 6 * 64)
    table = gpu.hours(rows).set_index("work")["hours"]
    assert (table > 0).all()
    assert len(table) == 5 + 3 + 1 + equal["inside"]
    assert table["all"] == pytest.approx(table.iloc[:8].sum())


def test_a_part_is_stopped_by_its_clock_and_one_that_fails_stops_no_other(results, monkeypatch):
    monkeypatch.setattr(gpu, "BUDGET", {"slow": 0.6, "bad": 5.0, "good": 5.0, "late": 5.0})
    monkeypatch.setattr(gpu, "MARGIN", 0.5)

    def slow():
        yield {"what": "first", "value": np.float32(2)}
        time.sleep(60)

    def bad():
        raise ValueError("no such crops")
        yield

    def good():
        yield {"what": "second", "value": float("nan")}
        time.sleep(60)

    end = time.time() + 2.5
    gpu.perform({"slow": slow, "bad": bad, "good": good, "late": slow}, results, end)
    assert time.time() < end, "all is written when the time is over"
    rows = gpu.read(results.lines)
    assert [row.get("state") for row in rows] == [
        None,
        "cut off",
        "failed: ValueError: no such crops",
        None,
        "cut off",
        "not begun",
    ]
    assert (rows[0]["value"], rows[3]["value"]) == (2.0, None)
    assert 0.6 <= rows[1]["seconds"] < 60, "cut off in its sleep"
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


class Slow:
    """A number that is ready some time after the clock of its part has rung."""

    def item(self):
        time.sleep(0.7)
        return 2.0


def test_a_clock_that_rings_while_a_result_is_written_stops_the_part_after_it(results, monkeypatch):
    monkeypatch.setattr(gpu, "BUDGET", {"row": 0.4, "file": 0.4})
    monkeypatch.setattr(gpu, "MARGIN", 0.1)

    def row():
        yield {"value": Slow()}
        yield {"value": 3.0}

    def file():
        results.keep("curve.csv", lambda path: path.write_text(str(Slow().item())))
        yield {"value": 4.0}

    gpu.perform({"row": row, "file": file}, results, time.time() + 60)
    rows = gpu.read(results.lines)
    assert [row.get("value", row.get("state")) for row in rows] == [2.0, "cut off", "cut off"]
    assert {path.name: path.read_text() for path in results.folder.glob("*.csv")} == {"curve.csv": "2.0"}


def test_a_run_has_its_own_parts_and_counts_the_start_of_its_process(tmp_path, monkeypatch):
    """Of a process that was started long ago too little is left to begin anything."""
    monkeypatch.setattr(gpu, "MARGIN", 1.0)
    age = time.time() - psutil.Process().create_time()
    for run, names in ((1, ["sweep", "networks"]), (2, ["compiled", "sampler", "semantic"])):
        out = tmp_path / str(run)
        gpu.main(["--run", str(run), "--dry", "--seconds", str(age + 1.5), "--out", str(out)])
        rows = gpu.read(out / "results.jsonl")
        assert [(row["part"], row.get("state")) for row in rows] == [
            ("start", None),
            *((name, "not begun") for name in names),
        ]


KILLED = """
import sys, time, gpu
def endless():
    for i in range(10**6):
        yield {"i": i, "text": "x" * 1000}
        time.sleep(0.001)
gpu.BUDGET["sweep"] = 100.0
gpu.sweep_rows = lambda *_: endless()
gpu.main(["--run", "1", "--dry", "--seconds", "1000", "--out", sys.argv[1]])
"""


def test_a_run_killed_in_the_middle_leaves_every_earlier_result_whole(results):
    here = Path(gpu.__file__).parent
    path = os.pathsep.join([str(here), str(here.parent.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", KILLED, str(results.folder)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (results.lines.exists() and results.lines.read_bytes().count(b"\n") > 20):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    rows = gpu.read(results.lines)
    assert [row["i"] for row in rows[1:]] == list(range(len(rows) - 1))
    assert len(rows) > 20
    with results.lines.open("a", encoding="utf-8") as file:
        file.write('{"part": "sweep", "torn')
    results.add(part="sweep", i=-1)
    after = gpu.read(results.lines)
    assert after == [*rows, {"part": "sweep", "i": -1}], "a torn line takes no other with it"


def test_files_beyond_what_may_be_taken_home_are_refused(results, monkeypatch):
    results.add(part="start")
    for i in range(gpu.N_FILES - 1):
        results.keep(f"{i}.txt", lambda path: path.write_text("kept"))
    results.keep("0.txt", lambda path: path.write_text("anew"))
    with pytest.raises(ValueError, match=r"more\.txt: expected at most 8 files of 16777216 bytes, found 9 and 4 bytes"):
        results.keep("more.txt", lambda path: path.write_text("much"))
    monkeypatch.setattr(gpu, "TAKE", 4)
    with pytest.raises(ValueError, match=r"0\.txt: .*found 8 and 5 bytes"):
        results.keep("0.txt", lambda path: path.write_text("large"))
    names = {path.name for path in results.folder.iterdir()}
    assert names == {"results.jsonl", *(f"{i}.txt" for i in range(7))}
    assert (results.folder / "0.txt").read_text() == "anew", "what was there is kept"


def test_what_is_too_large_to_bring_with_tree_and_wheels_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    small = {"cohort.source": "simulated", "cohort.n_patients": 8, "cohort.frames_per_patient": 1}
    small |= {"folds.n_splits": 2, "preprocess.image_size": 64, "preprocess.map_size": 16}
    opened = artifacts.open_run
    monkeypatch.setattr(
        artifacts, "open_run", lambda profile, changes: opened("smoke", {**small, "run": changes["run"]})
    )
    tree, wheels = tmp_path / "tree", tmp_path / "wheels"
    for name, size in {
        "tree/tracked.py": 7,
        "tree/own.txt": 50,
        "wheels/a/one.whl": 300,
        "wheels/two.whl": 1000,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    monkeypatch.setattr(artifacts, "PROJECT_ROOT", tree)
    gpu.main(["--pack", "none.mat", "--crops", str(tmp_path / "crops.npz")])
    with np.load(tmp_path / "crops.npz") as found:
        shapes = {name: found[name].shape for name in found}
    assert shapes == {"images": (8, 64, 64), "maps": (8, 16, 16), "held_out": (8,)}
    crops = (tmp_path / "crops.npz").stat().st_size
    whole = f"{crops:,} (crops {crops:,}, tree (no git checkout, not counted) 0, wheels 0)"
    assert capsys.readouterr().out.endswith(f"crops.npz: of 67,108,864 bytes that may be brought {whole}\n")
    for command in (["init", "-q"], ["add", "tracked.py"]):
        subprocess.run(["git", "-C", tree, *command], check=True)
    monkeypatch.setattr(gpu, "BRING", crops + 1307)
    gpu.pack("none.mat", tmp_path / "crops.npz", wheels)
    monkeypatch.setattr(gpu, "BRING", crops + 1306)
    said = rf"expected at most {crops + 1306:,} .* found {crops + 1307:,} \(crops {crops:,}, tree 7, wheels 1,300\);"
    with pytest.raises(ValueError, match=said):
        gpu.pack("none.mat", tmp_path / "crops.npz", wheels)
    with pytest.raises(SystemExit):
        gpu.main(["--pack", "none.mat", "--crops", str(tmp_path / "crops.npz"), "--wheels", str(tmp_path / "none")])
    assert "--wheels a folder that is there, found" in capsys.readouterr().err


def test_two_runs_keep_to_their_seconds():
    """What issue and CONTRIBUTING say: 90 s, 4 min for both networks with one compiled, 2 min, the rest."""
    assert (gpu.BUDGET["sweep"], gpu.BUDGET["networks"] + gpu.BUDGET["compiled"], gpu.BUDGET["sampler"]) == (
        90,
        240,
        120,
    )
    assert [*gpu.RUNS[1], *gpu.RUNS[2]] == list(gpu.BUDGET), "in the order of their value"
    assert (gpu.WHOLE, gpu.BRING, gpu.TAKE, gpu.N_FILES) == (300, 64 * 2**20, 16 * 2**20, 8)
    assert all(
        gpu.WHOLE - sum(gpu.BUDGET[name] for name in names if name != "semantic") >= 60 for names in gpu.RUNS.values()
    )


def network_row(network, how, images, seconds, rate):
    facts = {"part": "networks", "network": network, "how": f"{ldm.OURS}{how}", "compiled": False, "matrix_rate": 7e14}
    return {**facts, "images": images, "seconds": seconds, "rate": rate}


def measured():
    """Networks of 0.1 PFLOP per image and pass; twice the rate with the fast sampler; 36 s per classifier."""
    for network in ("semantic", "class"):
        yield network_row(network, "", 32, 96.0, 1e14)
        yield network_row(network, ": DDIM, 500 steps", 50, 1000.0, 1e14)
        yield network_row(network, ": DPM-Solver++, 20 steps", 50, 20.0, 2e14)
    yield {"part": "sweep", "what": "frozen prefix", "seconds_an_image": 1e-3}
    for ratio, seconds in ((2, 72.0), (4, 36.0)):
        yield {"part": "sweep", "how": f"ours, {ratio}", "backbone": "resnet50", "ratio": ratio, "seconds": seconds}


def test_hours_of_the_whole_profile_are_those_of_the_measured_rates():
    """A pass of an image takes 1 s, with the fast sampler half of it; 1,625 and 80 classifiers are of 1,000 steps."""
    rows = list(measured())
    table = gpu.hours(rows).set_index("work")["hours"]
    assert {name.partition(".")[0] for name in sweep.grid(params.load("paper"))["backbone"]} == {"resnet50"}
    assert table["stage 06, 1625 classifiers, as resnet50"] == pytest.approx(1625 * 36 / 3600)
    more = table["stage 06, 113 more with simulated patients, as resnet50"]
    assert more == pytest.approx((33 * 0.3 + 80) * 36 / 3600), "15 cohorts, 3 of them shuffled too; 2 x 5 x 4 x 2 seeds"
    simulated = 15 * 300 * 2 * 2 + 550 * len(sweep.simulated_only.changes.CHANGES)
    prefix = table[f"stage 06, frozen prefix of {bench_sweep.PAPER_IMAGES + simulated} images, as resnet50"]
    assert prefix == pytest.approx((bench_sweep.PAPER_IMAGES + simulated) / 1000 / 3600)
    train = 10 * 1_920_000 / 3600
    assert table["stages 03 and 04, training, semantic"] == pytest.approx(train)
    assert table["stages 03 and 04, training, gan"] == pytest.approx(train / 2)
    # two sets per fold, what is seen of their models while they train, comparison of samplers, two sets per fold
    drawn = (10 * (2000 * 1000 + 32_400) + 100 * 4840 + 5 * (200 * 500 + 500 * 1000)) / 3600
    assert table["stages 03 and 04, drawing, class"] == pytest.approx(drawn)
    assert table["all"] == pytest.approx(2.5 * train + 2 * drawn + 16.25 + more + prefix)

    rows += [{"what": "equal distance", "how": str(n), "inside": n > 10, "steps": n} for n in (50, 20, 10)]
    fast = gpu.hours(rows).set_index("work")["hours"]
    faster = (10 * (2000 * 40 + 32_400) + 100 * 480 + 5 * (200 * 20 + 500 * 40)) / 2 / 3600
    name = "the same with DPM-Solver++ in 20 steps, judged with the semantic model"
    assert fast[name] == pytest.approx(table["all"] - 2 * drawn + 2 * faster)


def test_hours_take_the_last_of_what_was_measured_twice_and_name_what_was_not(tmp_path, capsys):
    rows = list(measured())
    first = [
        {**row, "seconds": 999.0, "seconds_an_image": 999.0, "rate": 1.0, "ratio": row.get("ratio")} for row in rows
    ]
    assert gpu.hours([*first, *rows]).equals(gpu.hours(rows))
    one = [row for row in rows if row.get("network") == "semantic" and "DPM" not in row["how"]]
    one += [{"what": "equal distance", "how": "20", "inside": True, "steps": 20}]
    table = gpu.hours(one).set_index("work")["hours"]
    assert table.index[table.notna()].tolist() == [
        "stages 03 and 04, training, semantic",
        "stages 03 and 04, drawing, semantic",
        "all that was measured",
    ]
    assert table["all that was measured"] == pytest.approx(table.iloc[:2].sum())
    nothing = gpu.hours([{"what": "equal distance", "how": "20", "inside": True, "steps": 20}])
    assert nothing["hours"].isna().all(), "not 0 hours"
    path = tmp_path / "results.jsonl"
    path.write_text('{"part": "start", "dry": true}')
    with pytest.raises(SystemExit):
        gpu.main(["--hours", str(path)])
    assert "found rows of --dry" in capsys.readouterr().err
    path.write_text("")
    gpu.main(["--hours", str(path)])
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(table) - 1
    assert all(line.endswith("not measured") for line in lines[1:])
    assert last == gpu.NOT_IN


def test_hours_of_the_paper_are_operations_over_the_measured_rates():
    """57 M network: 10 models x 20,000 steps x 32 images x 3 passes of 65.7 GFLOP are 1,261 PFLOP; the drawing half."""
    ours = ldm.OURS
    rows = []
    for name, flops, faster in (("semantic", 65.7e9, 1), ("class", 114.1e9, 2)):
        for how, images, n, rate in ((ours, 32, 3 * 32, 280), (f"{ours}: DDIM, 500 steps", 50, 1000, 140)):
            rate *= faster * 1e12
            rows.append({"network": name, "how": how, "images": images, "rate": rate, "seconds": n * flops / rate})
    few = {"sampling.n_null": 1, "quality.n_reference": 2, "sampling.n_compared": 0}
    few |= {"ldm.preview_every": 0, "ldm.log_every": 20000}
    run = artifacts.open_run("paper", few)
    table = gpu.paper_hours(pd.DataFrame(rows), 700e12, run).set_index(["work", "model"])
    train = 10 * 20_000 * 32 * 3 * 65.7e9
    drawn = (10 * (2000 * 1000 + 32) + 5 * (500 + 2 * 1000)) * 65.7e9
    assert table.loc[("training", "semantic"), "PFLOP"] == pytest.approx(train / 1e15) == pytest.approx(1261, abs=1)
    assert table.loc[("training", "semantic"), "hours"] == pytest.approx(train / 280e12 / 3600)
    assert table.loc[("drawing", "semantic"), "hours"] == pytest.approx(drawn / 140e12 / 3600)
    assert table.loc[("training", "class"), "hours"] == pytest.approx(train * 114.1 / 65.7 / 560e12 / 3600)
    for column in ("PFLOP", "hours", "floor"):
        assert table.loc[("training", "gan"), column] == pytest.approx(table.loc[("training", "class"), column] / 2)
    assert table.loc[("drawing", "semantic"), "floor"] == pytest.approx(drawn / 700e12 / 3600)
    assert table.loc[("all", "all"), "hours"] == pytest.approx(table["hours"].iloc[:-1].sum())
    without = artifacts.open_run("paper", {**few, "gan.enabled": False, "ldm.balance": ["none"]})
    half = gpu.paper_hours(pd.DataFrame(rows), 700e12, without).set_index(["work", "model"])
    assert half.loc[("training", "class"), "PFLOP"] == pytest.approx(table.loc[("training", "class"), "PFLOP"] / 2)
    assert "gan" not in half.index.get_level_values("model")
