"""The collected benchmarks: records, the one page, and cost against the size of a cohort."""

import argparse
import re
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import bench
import cohort_size
import memory
import numpy as np
import pandas as pd
import pytest
import records
import torch
from page_checks import assert_self_contained

from nafld_utils import artifacts

CPU = torch.device("cpu")


def row(**more):
    return {"stage": "05", "what": "features", "per": "24 images", "seconds": 2.5, "peak_gib": 0.75} | more


def save(folder, part, rows, arguments=()):
    records.save(folder, part, rows, CPU, 61.0, arguments)


def curve(power=1.0, sizes=(55, 200, 500)):
    rows = [(step, n, 2 * n, 3.0, 0.1 * (2 * n) ** power, 0.5) for step in cohort_size.STEPS for n in sizes]
    return pd.DataFrame(rows, columns=list(cohort_size.COLUMNS))


def test_a_record_says_command_device_commit_and_date(tmp_path):
    rows = [row(), row(what="faster", ratio=3.0, against="plain loop", seconds=float("nan"), broken="no column")]
    save(tmp_path, "quality", rows, ["--images", "24", "--out", "/some/where", "--side=32"])
    found = records.load(tmp_path, "quality")
    assert found["command"] == "python tests/benchmarks/quality.py --images 24 --side=32"
    assert "cores" in found["device"]
    assert found["date"][:2] == "20"
    assert found["commit"]
    assert found["rows"][0] == {**row(), **dict.fromkeys(("a_second", "ratio", "against", "share"))}
    assert found["rows"][1]["seconds"] is None, "NaN is no JSON"
    assert records.load(tmp_path, "sweep") is None


@pytest.mark.parametrize("content", ["", "[]", '{"part": "sweep"}', '{"part": "quality"}', "{half"])
def test_a_damaged_record_is_named_with_the_command_that_mends_it(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json: expected a record of `python tests/benchmarks/sweep\.py`"):
        records.load(tmp_path, "sweep")


def test_the_page_shows_ratios_and_what_is_missing_and_fetches_nothing(tmp_path):
    compared = [row(what="<b>plain</b>"), row(what="ours", ratio=3.0, against="plain loop", a_second=0.4, share=0.423)]
    save(tmp_path, "ldm", compared)
    save(tmp_path, "cohort_size", [row(seconds=12345.6)])
    page = records.write_page(tmp_path, {"sweep": 3}).read_text(encoding="utf-8")
    assert_self_contained(page)
    missing = ", ".join(part for part in records.PARTS if part not in ("ldm", "cohort_size"))
    assert f"2 of {len(records.PARTS)} benchmarks have been run. Not run: {missing}." in page
    assert "&lt;b&gt;plain&lt;/b&gt;" in page
    assert '<td class="number">42 %</td>' in page
    assert '<td class="number">3</td><td>plain loop</td>' in page
    assert '<td class="number">12,346</td>' in page
    assert "took 1.0 min" in page
    assert "sweep: just failed or broke its bound (exit status 3)" in page
    assert "Not run: <code>python tests/benchmarks/interval_study.py</code>" in page


def test_a_page_without_any_measurement_says_so(tmp_path):
    page = records.write_page(tmp_path).read_text(encoding="utf-8")
    assert f"0 of {len(records.PARTS)}" in page
    assert page.count("Not run: <code>") == len(records.PARTS)


def run(tmp_path, rows, *arguments):
    parser = argparse.ArgumentParser()
    return records.run("quality", parser, lambda options, device: rows(), [*arguments, "--out", str(tmp_path)])


def test_a_benchmark_prints_its_rows_keeps_them_and_says_what_breaks_a_bound(tmp_path, capsys):
    assert run(tmp_path, lambda: iter([row(), row(what="copies", broken="expected less, found more.")])) == 1
    told = capsys.readouterr()
    assert told.err.endswith("quality: expected less, found more.\n")
    assert "copies" in told.out
    assert "share" not in told.out, "a column that is empty everywhere"
    assert f"1 of {len(records.PARTS)} benchmarks" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert run(tmp_path, lambda: iter([row()])) == 0


def test_what_was_measured_before_a_failure_is_kept(tmp_path, capsys):
    def rows():
        yield row()
        raise ValueError("expected more room, found none; free some.")

    assert run(tmp_path, rows) == 2
    assert capsys.readouterr().err.endswith("quality: expected more room, found none; free some.\n")
    assert [line["what"] for line in records.load(tmp_path, "quality")["rows"]] == ["features"]


def test_a_part_that_fails_keeps_no_other_from_running(tmp_path, monkeypatch, capsys):
    ran = []

    def run(command, check):
        ran.append(command)
        name = Path(command[1]).stem
        if name == "quality":
            return subprocess.CompletedProcess(command, 7)
        save(tmp_path, name, [row()], command[2:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    assert bench.main(["quality", "ldm", "--out", str(tmp_path)]) == 1
    assert [Path(command[1]).name for command in ran] == ["quality.py", "ldm.py"]
    assert all(Path(command[1]).is_file() for command in ran)
    assert "quality failed with exit status 7; the others were measured" in capsys.readouterr().err
    assert "Not run: quality" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert bench.main(["ldm", "--run", "demo", "--n", "16", "--out", str(tmp_path)]) == 0
    assert records.load(tmp_path, "ldm")["command"] == "python tests/benchmarks/ldm.py --run demo --n 16"
    ran.clear()
    assert bench.main(["--out", str(tmp_path)]) == 1
    assert {Path(command[1]).stem for command in ran} == set(records.PARTS)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["quality", "models"], "expected some of ldm, quality, .* found quality, models"),
        (["quality", "ldm", "--n", "3"], "expected one benchmark before --n 3, found quality, ldm"),
        (["--n", "3"], "expected one benchmark before --n 3"),
        (["page", "--n", "3"], "expected one benchmark before --n 3, found page"),
    ],
)
def test_options_of_a_part_need_its_name(tmp_path, capsys, given, says):
    with pytest.raises(SystemExit):
        bench.main([*given, "--out", str(tmp_path)])
    assert re.search(says, capsys.readouterr().err)


def test_the_page_is_written_from_what_is_there(tmp_path, monkeypatch, capsys):
    save(tmp_path / "reports" / "bench", "quality", [row()])
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    assert bench.main(["page"]) == 0
    path = tmp_path / "reports" / "bench" / "index.html"
    assert str(path) in capsys.readouterr().out
    assert f"1 of {len(records.PARTS)} benchmarks" in path.read_text(encoding="utf-8")


def test_a_damaged_record_ends_in_a_sentence(tmp_path, capsys):
    (tmp_path / "attributions.json").write_text("{")
    assert bench.main(["page", "--out", str(tmp_path)]) == 2
    assert "bench: " in (said := capsys.readouterr().err)
    assert "run it again" in said
    assert not (tmp_path / "index.html").exists()


@pytest.mark.parametrize("power", [1.0, 1.7])
def test_the_power_of_growth_is_found(power):
    rows = list(cohort_size.growth(curve(power)))
    assert len(rows) == 5
    assert all(f"to the power {power:.2f}, memory by 0.00 GiB" in line["per"] for line in rows)


class Here:
    """Runs a step in this process: the tests' own has imported everything."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, call, *args):
        done = Future()
        done.set_result(call(*args))
        return done


def test_the_size_of_a_cohort_is_measured_stage_by_stage(tmp_path, monkeypatch, capsys):
    """Small, in one process; the published measurement is in reports/README.md."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    monkeypatch.setattr(cohort_size, "ProcessPoolExecutor", Here)
    killed = f".bench-size.{artifacts.locks.here()}.0123456789ab.tmp"  # what a killed process of this host left
    (tmp_path / "artifacts" / killed).mkdir(parents=True)
    arguments = ["--patients", "5", "--frames", "1", "--profile", "smoke", "--out", str(tmp_path / "out")]
    assert cohort_size.main(arguments) == 0
    found = records.load(tmp_path / "out", "cohort_size")
    assert [line["stage"] for line in found["rows"]] == ["-", "01", "02", "05", "06"]
    assert all(line["seconds"] > 0 and line["peak_gib"] > 0.05 for line in found["rows"])
    assert all(line["per"].startswith("5 patients, 5 images; processor") for line in found["rows"])
    assert found["command"] == "python tests/benchmarks/cohort_size.py --patients 5 --frames 1 --profile smoke"
    assert not list((tmp_path / "artifacts").glob(".bench-size*")), "what was measured is removed"
    assert "06 feature cache of the real images, 5 patients" in capsys.readouterr().out


def test_too_much_memory_or_more_than_linear_time_is_said():
    simulator, first, second, features, cache = cohort_size.STEPS
    rows = [(first, 55, 550, 1.0, 1.0, 0.2), (first, 500, 5000, 9.0, 9.0, 0.2)]
    rows += [(second, 55, 550, 1.0, 1.0, 0.3), (second, 500, 5000, 40.0, 40.0, 2.5)]
    rows += [(features, 55, 550, 1.0, 1.0, 3.0), (features, 500, 5000, 9.0, 9.0, 3.0)]
    rows += [(simulator, 55, 550, 1.0, 1.0, 0.1), (simulator, 500, 5000, 90.0, 90.0, 3.0)]
    rows += [(cache, 55, 550, 1.0, 1.0, 3.0), (cache, 500, 5000, 30.0, 30.0, 3.0)]
    table = pd.DataFrame(rows, columns=list(cohort_size.COLUMNS))
    rows = [*map(cohort_size.cost_row, table.to_dict("records")), *cohort_size.growth(table)]
    assert [line["broken"] for line in rows if "broken" in line] == [
        "stage 02, preprocessing: held 2.50 GiB, expected at most 2.",
        "stage 02, preprocessing: held 2.20 GiB more for the largest cohort, expected at most 0.25; grows as images to"
        " the power 1.67, expected 1; measure again with nothing beside it.",
        "stage 06, feature cache of the real images: grows as images to the power 1.54, expected 1; measure again with"
        " nothing beside it.",
    ]


def told(code):
    """What a fresh process that knows the modules beside this file prints."""
    here = Path(__file__).parent
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=here).stdout


def test_peak_memory_is_that_of_the_process_itself():
    """A child starts with its own memory, not with its parent's."""
    held = np.ones(2**28, np.uint8)  # a quarter of a GiB that only the parent holds
    code = (
        "import numpy as np\nfrom memory import peak_gib\nprint(peak_gib())\n"
        "block = np.ones(2**29, np.uint8)\nprint(peak_gib())"
    )
    before, after = map(float, told(code).split())
    assert after - before == pytest.approx(0.5, abs=0.1)
    assert before < memory.peak_gib()
    assert held[-1] == 1


def test_memory_is_watched_with_all_that_a_process_started():
    hold = "import numpy as np, sys\nblock = np.ones(2**29, np.uint8)\nsys.stdin.read()"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {hold!r}], check=True)"
    with memory.Watched() as alone:
        time.sleep(0.5)
    until = time.monotonic() + 60
    with memory.Watched() as both, subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE) as process:
        while both.gib - alone.gib < 0.5 and time.monotonic() < until:
            time.sleep(0.05)
        process.communicate()
    assert 0.45 < both.gib - alone.gib < 0.75, "of a child's child too"
    with memory.Watched() as after:
        time.sleep(0.5)
    assert after.gib < alone.gib + 0.2


def test_peak_memory_can_count_anew():
    code = (
        "import numpy as np, memory\n"
        "block = np.ones(2**29, np.uint8)\ndel block\nprint(memory.peak_gib())\n"
        "memory.reset_peak()\nprint(memory.peak_gib(since_reset=True))"
    )
    found = []
    for _ in range(3):  # a busy kernel was once seen to count late
        whole, since = map(float, told(code).split())
        found.append(whole - since)
        if not memory.PEAK_RESET.exists():
            assert np.isnan(since)
            return
        if found[-1] == pytest.approx(0.5, abs=0.1):
            return
    raise AssertionError(f"expected half a GiB less, found {found}")
