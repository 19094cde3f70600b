"""The collected benchmarks: records, the one table, the page, and cost against the size of a cohort."""

import subprocess
import sys
import time
from concurrent.futures import Future

import numpy as np
import pandas as pd
import pytest
from test_report import assert_self_contained

from nafld_utils import bench, bench_records, benchmarks, quality_bench, size_bench, sweep_bench


def row(**more):
    return {"stage": "05", "what": "features", "per": "24 images", "seconds": 2.5, "peak_gib": 0.75} | more


def curve(power=1.0, sizes=(55, 200, 500)):
    rows = [(step, n, 2 * n, 3.0, 0.1 * (2 * n) ** power, 0.5) for step in size_bench.STEPS for n in sizes]
    return pd.DataFrame(rows, columns=list(size_bench.COLUMNS))


def save_size(folder, table):
    facts = {"curve": table.to_dict("records"), "frames": 2, "profile": "demo"}
    bench_records.save(folder, "size", size_bench.record(table, size_bench.fit(table)), seconds=61.0, **facts)


def test_a_record_says_command_device_commit_and_date(tmp_path):
    rows = [row(), row(what="faster", ratio=3.0, against="plain loop", seconds=float("nan"))]
    arguments = ["--images", "24", "--out", "/some/where"]
    bench_records.save(tmp_path, "quality", rows, seconds=3.0, arguments=arguments)
    found = bench_records.load(tmp_path, "quality")
    assert found["command"] == "python -m nafld_utils.quality_bench --images 24"
    assert "cores" in found["device"]
    assert found["date"][:2] == "20"
    assert found["commit"]
    assert found["rows"][0] == {**row(), **dict.fromkeys(("a_second", "ratio", "against", "share"))}
    assert found["rows"][1]["seconds"] is None, "NaN is no JSON"
    assert bench_records.load(tmp_path, "sweep") is None


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1, "part": "sweep"}', '{"format": 9}', "{half"])
def test_a_damaged_record_is_named_with_the_command_that_mends_it(tmp_path, content):
    bench_records.record_path(tmp_path, "sweep").write_text(content)
    with pytest.raises(ValueError, match=r"sweep\.json: expected a record of `python -m nafld_utils\.sweep_bench`"):
        bench_records.load(tmp_path, "sweep")


def test_one_table_holds_all_records_and_says_what_was_not_run(tmp_path):
    bench_records.save(tmp_path, "quality", [row(), row(what="copies")], arguments=[])
    table = bench.collect(tmp_path)
    assert table["part"].unique().tolist() == [part.name for part in bench_records.PARTS]
    assert (table["what"] == bench.NOT_RUN).sum() == len(bench_records.PARTS) - 1
    own = table[table["part"] == "quality"]
    assert own["what"].tolist() == ["features", "copies"]
    assert own[["device", "date", "commit", "command"]].notna().all(axis=None)


def test_the_page_shows_ratios_size_and_what_is_missing_and_fetches_nothing(tmp_path):
    compared = [row(what="<b>plain</b>"), row(what="ours", ratio=3.0, against="plain loop", a_second=0.4, share=0.423)]
    bench_records.save(tmp_path, "models", compared, arguments=[])
    save_size(tmp_path, curve())
    page = bench.page(tmp_path, {"sweep": 3})
    assert_self_contained(page)
    assert "2 of 6 benchmarks have been run. Not run: quality, sweep, shap, intervals." in page
    assert "&lt;b&gt;plain&lt;/b&gt;" in page
    assert page.count("<figure>") == 2
    assert "ours: 3 times" in page
    assert '<td class="number">42 %</td>' in page
    assert "02: power 1.00" in page
    assert "simulated patients" in page
    assert "sweep: just failed or broke its bound (exit status 3)" in page
    assert "python -m nafld_utils.interval_study" in page


def test_a_page_without_any_measurement_says_so(tmp_path):
    page = bench.page(tmp_path)
    assert "Nothing has been measured yet" in page
    assert "0 of 6" in page
    assert "<figure>" not in page


def test_records_of_the_benchmarks_carry_their_ratios():
    ways = ["plain loop", "this project"]
    models = pd.DataFrame({"network": "class", "work": "training step", "images": 8, "how": ways})
    models = models.assign(seconds=[2.0, 0.25], **{"peak GiB": 1.0, "times faster than plain": [1.0, 8.0]})
    lines = benchmarks.record(models.assign(**{"share of matrix rate": [0.1, 0.4]}), "demo")
    assert [line.get("ratio") for line in lines] == [None, 8.0]
    assert [(line["a_second"], line["share"]) for line in lines] == [(0.5, 0.1), (4.0, 0.4)]
    drawn = pd.DataFrame({"network": "class", "how": ways * 2, "seconds": [6.0, 2.0, 10.0, 2.0]})
    drawn = drawn.assign(seeds=["first", "first", "second", "second"], frechet=[9.0, 12.0, 11.0, 12.0])
    slow, fast = benchmarks.record_drawn(drawn, "demo")
    assert (slow.get("ratio"), fast["ratio"], fast["a_second"]) == (None, 4.0, 0.5)
    assert "12, 12, +2 on average: inside the 2 between seeds" in fast["per"]
    assert "between seeds" not in slow["per"]
    sweeps = pd.DataFrame({"backbone": "net", "how": ways, "at once": [1, 2], "trainings an hour": 9.0, "peak GiB": 1})
    sweeps = sweeps.assign(**{"seconds a training": [2.0, 1.0], "times as many": [1.0, 2.0]})
    assert [line.get("ratio") for line in sweep_bench.record(sweeps)] == [None, 2.0]
    part = pd.DataFrame({"work": ["features"], "images": 5, "seconds": 2.0, "peak GiB": 0.5})
    assert quality_bench.record(part, 32) == [row(per="5 images of 32 px", seconds=2.0, peak_gib=0.5)]


@pytest.mark.parametrize("power", [1.0, 1.7])
def test_the_fit_finds_the_power_and_one_size_has_none(power):
    found = size_bench.fit(curve(power))
    assert found["exponent"].tolist() == pytest.approx([power] * 5)
    assert found["memory_growth"].tolist() == [0.0] * 5
    alone = size_bench.fit(curve(sizes=(55,)))
    assert alone["exponent"].isna().all()
    assert "power" not in size_bench.record(curve(sizes=(55,)), alone)[0]["per"]


def test_a_part_that_fails_keeps_no_other_from_running(tmp_path, monkeypatch, capsys):
    ran = []

    def run(command, check):
        ran.append(command)
        name = next(part.name for part in bench_records.PARTS if command[2].endswith(part.module))
        if name == "quality":
            return subprocess.CompletedProcess(command, 7)
        bench_records.save(tmp_path, name, [row()], arguments=command[3:])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    given = ["--parts", "quality", "models", "--run", "demo", "--n", "16", "--out", str(tmp_path)]
    assert bench.main(given) == 1
    assert [command[2] for command in ran] == ["nafld_utils.quality_bench", "nafld_utils.benchmarks"]
    assert "quality failed with exit status 7; the others were measured" in capsys.readouterr().err
    assert bench_records.load(tmp_path, "models")["command"] == "python -m nafld_utils.benchmarks --run demo --n 16"
    assert "Not run: quality" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "bench.csv").is_file()


def test_the_page_is_written_from_what_is_there(tmp_path, monkeypatch, capsys):
    bench_records.save(tmp_path / "reports" / "bench", "quality", [row()], arguments=[])
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    assert bench.main(["--parts", "none"]) == 0
    path = tmp_path / "reports" / "bench" / "index.html"
    assert str(path) in capsys.readouterr().out
    assert "1 of 6 benchmarks" in path.read_text(encoding="utf-8")


def test_a_damaged_record_and_a_size_that_cannot_be_made_end_in_a_sentence(tmp_path, monkeypatch, capsys):
    bench_records.record_path(tmp_path, "shap").write_text("{")
    assert bench.main(["--parts", "none", "--out", str(tmp_path)]) == 2
    assert "bench: " in (said := capsys.readouterr().err)
    assert "run it again" in said
    assert not (tmp_path / "index.html").exists()

    def measure(profile, n_patients, n_frames):
        if n_patients > 5:
            raise ValueError("expected more room, found none; free some.")
        return curve(sizes=(5,))

    monkeypatch.setattr(size_bench, "measure", measure)
    assert size_bench.main(["--patients", "5", "9", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "size_bench, 9 patients: expected more room, found none; free some.\n"
    assert bench_records.load(tmp_path, "size")["curve"][0]["patients"] == 5, "what was measured is kept"


class Here:
    """Runs a step in this process: the tests' own has imported everything."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, call):
        done = Future()
        done.set_result(call())
        return done


def test_the_size_of_a_cohort_is_measured_stage_by_stage(tmp_path, monkeypatch, capsys):
    """Small, in one process; the published measurement is in reports/README.md."""
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    monkeypatch.setattr(size_bench, "ProcessPoolExecutor", Here)
    (tmp_path / "artifacts" / ".bench-size.999999999.tmp").mkdir(parents=True)  # of a process that was killed
    arguments = ["--patients", "5", "--frames", "1", "--profile", "smoke", "--out", str(tmp_path / "out")]
    assert size_bench.main(arguments) == 0
    found = bench_records.load(tmp_path / "out", "size")
    assert [line["step"] for line in found["curve"]] == list(size_bench.STEPS)
    assert [line["stage"] for line in found["rows"]] == ["-", "01", "02", "05", "06"]
    assert all(min(line["seconds"], line["cpu_seconds"]) > 0 and line["peak_gib"] > 0.05 for line in found["curve"])
    assert found["command"] == "python -m nafld_utils.size_bench --patients 5 --frames 1 --profile smoke"
    assert not list((tmp_path / "artifacts").glob(".bench-size*")), "what was measured is removed"
    assert "5 patients, 06 feature cache" in capsys.readouterr().out


def test_too_much_memory_or_more_than_linear_time_is_said():
    rows = [("01", 55, 550, 1.0, 1.0, 0.2), ("01", 500, 5000, 9.0, 9.0, 0.2)]
    rows += [("02", 55, 550, 1.0, 1.0, 0.3), ("02", 500, 5000, 40.0, 40.0, 2.5)]
    rows += [("05 features", 55, 550, 1.0, 1.0, 3.0), ("05 features", 500, 5000, 9.0, 9.0, 3.0)]
    rows += [("simulator", 55, 550, 1.0, 1.0, 0.1), ("simulator", 500, 5000, 90.0, 90.0, 3.0)]
    rows += [("06 feature cache", 55, 550, 1.0, 1.0, 3.0), ("06 feature cache", 500, 5000, 30.0, 30.0, 3.0)]
    table = pd.DataFrame(rows, columns=list(size_bench.COLUMNS))
    assert size_bench.beyond(table, size_bench.fit(table)) == [
        "stage 02 held 2.50 GiB, expected at most 2.",
        "stage 02 held 2.20 GiB more for the largest cohort, expected at most 0.25.",
        "stage 02 grows as images to the power 1.67, expected 1; measure again with nothing beside it.",
        "stage 06 feature cache grows as images to the power 1.54, expected 1; measure again with nothing beside it.",
    ]


def test_peak_memory_is_that_of_the_process_itself():
    """A child starts with its own memory, not with its parent's."""
    held = np.ones(2**28, np.uint8)  # a quarter of a GiB that only the parent holds
    code = (
        "import numpy as np\nfrom nafld_utils.bench_records import peak_gib\nprint(peak_gib())\n"
        "block = np.ones(2**29, np.uint8)\nprint(peak_gib())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert after - before == pytest.approx(0.5, abs=0.1)
    assert before < bench_records.peak_gib()
    assert held[-1] == 1


def test_memory_is_watched_with_all_that_a_process_started():
    hold = "import numpy as np, time\nblock = np.ones(2**29, np.uint8)\ntime.sleep(1)"
    with bench_records.Watched() as alone:
        time.sleep(0.5)
    with bench_records.Watched() as both:
        started = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {hold!r}], check=True)"
        subprocess.run([sys.executable, "-c", started], check=True)
    assert 0.45 < both.gib - alone.gib < 0.75, "of a child's child too"
    with bench_records.Watched() as after:
        time.sleep(0.5)
    assert after.gib < alone.gib + 0.2


def test_peak_memory_can_count_anew():
    code = (
        "import numpy as np, torch\nfrom nafld_utils import bench_records, speed\n"
        "block = np.ones(2**29, np.uint8)\ndel block\nprint(bench_records.peak_gib())\n"
        "speed.reset_peak(torch.device('cpu'))\nprint(speed.peak_gib(torch.device('cpu')))"
    )
    found = []
    for _ in range(3):  # a busy kernel was once seen to count late
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        whole, since = map(float, done.stdout.split())
        found.append(whole - since)
        if not bench_records.PEAK_RESET.exists():
            assert np.isnan(since)
            return
        if found[-1] == pytest.approx(0.5, abs=0.1):
            return
    raise AssertionError(f"expected half a GiB less, found {found}")
