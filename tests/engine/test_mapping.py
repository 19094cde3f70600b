"""Units run wherever the settings say, failures are recorded and the others go on."""

import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from toy_units import Marker, compute, fail_in_words, touch, touch_after, wait_for_turn

from nafld_utils import artifacts, engine, params
from nafld_utils.artifacts import locks
from nafld_utils.engine import devices, mapping, workers


def settings(**changes):
    return params.load("smoke", {f"engine.{key}": value for key, value in changes.items()}).engine


def toy_tasks(folder, failing=()):
    return [{"folder": str(folder), "name": str(i), "fail": i in failing} for i in range(4)]


@pytest.mark.parametrize("mode", ["serial", "local"])
def test_every_unit_runs_once_and_a_failure_does_not_stop_the_others(tmp_path, mode):
    chosen = settings(mode=mode, n_workers=2)
    table = engine.map_units(touch, toy_tasks(tmp_path, failing={1}), chosen, "toy", raise_failed=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "2", "3"]
    assert table["name"].tolist() == ["0", "1", "2", "3"]
    assert table["error"].tolist()[1] == "KeyError: 'no 1'"
    assert (table["error"] == "").sum() == 3
    workers = {(tmp_path / name).read_text() for name in ("0", "2", "3")}
    assert (str(os.getpid()) in workers) == (mode == "serial")


def test_finished_units_start_no_workers_and_workers_are_kept(tmp_path, monkeypatch):
    chosen = settings(mode="local", n_workers=2)
    engine.use_threads(chosen.threads)
    before = dict(os.environ)
    engine.map_units(touch, toy_tasks(tmp_path), chosen, "toy")
    first = {(tmp_path / str(i)).read_text() for i in range(4)}
    assert dict(os.environ) == before, "what workers need is theirs alone"
    (tmp_path / "1").unlink()
    (tmp_path / "3").unlink()
    table = engine.map_units(touch, toy_tasks(tmp_path), chosen, "toy", unit_of=Marker)
    assert (table["error"] == "").all()
    assert {(tmp_path / "1").read_text(), (tmp_path / "3").read_text()} <= first
    workers.release_workers()
    monkeypatch.setattr(mapping, "workers", None)
    assert (engine.map_units(touch, toy_tasks(tmp_path), chosen, "toy", unit_of=Marker)["seconds"] == 0).all()


def chain(folder, failing=()):
    """Two of a kind, two that read one of them each, and one that reads all."""
    reads = {"a": (), "b": (), "c": ("a",), "d": ("b",), "e": ("c", "d")}
    return [{"folder": str(folder), "name": name, "reads": r, "fail": name in failing} for name, r in reads.items()]


@pytest.mark.parametrize("mode", ["serial", "local"])
def test_a_unit_begins_when_those_that_it_reads_have_ended(tmp_path, mode):
    chosen = settings(mode=mode, n_workers=2)
    engine.map_units(touch_after, chain(tmp_path), chosen, "toy", unit_of=Marker)
    assert sorted(path.name for path in tmp_path.iterdir()) == list("abcde")
    for name in "bde":
        (tmp_path / name).unlink()
    said = "toy: 3 of 5 units failed, the first .*name=b.*KeyError: 'no b'"
    with pytest.raises(engine.UnitError, match=said):
        engine.map_units(touch_after, chain(tmp_path, failing={"b"}), chosen, "toy", unit_of=Marker)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
    table = engine.map_units(touch_after, chain(tmp_path, failing={"b"}), chosen, "toy", False, unit_of=Marker)
    not_begun = "not begun, since what it reads could not be made"
    assert table["error"].tolist() == ["", "KeyError: 'no b'", "", not_begun, not_begun]


def test_a_unit_is_begun_before_others_of_the_kind_that_it_reads_have_ended():
    waiting = workers.Waiting([(), (), (), {0}, {0, 1, 3}])
    assert [waiting.next() for _ in range(4)] == [0, 1, 2, None]
    waiting.made(0)
    waiting.again(2)
    assert [waiting.next() for _ in range(3)] == [3, 2, None]
    waiting.made(1)
    waiting.made(3)
    assert [waiting.next() for _ in range(2)] == [4, None]


def test_a_unit_waits_for_what_it_reads_by_way_of_one_that_is_done(tmp_path):
    """The one between is there, the first is not: whoever reads both needs the first made again."""
    (tmp_path / "c").touch()
    tasks = [task for task in chain(tmp_path) if task["name"] in "ac"]
    tasks += [{"folder": str(tmp_path), "name": "e", "reads": ("c",)}]
    assert mapping._needs(tasks, Marker) == [set(), {0}, {0, 1}]


def test_units_of_several_kinds_are_made_in_one_call_and_a_failure_names_its_kind(tmp_path):
    folder, chosen = str(tmp_path), settings(mode="local", n_workers=2)
    first = [{"folder": folder, "name": name} for name in "ab"]
    then = [{"folder": folder, "name": "c", "reads": ("a", "b"), "fail": True}]
    kinds = {"one": (touch, first, Marker), "other": (touch_after, then, Marker)}
    with pytest.raises(engine.UnitError, match=r"1 of 3 units failed, the first \(kind=other, folder=.*, fail=True\)"):
        engine.map_kinds(kinds, chosen, "toy")
    then[0]["fail"] = False
    engine.map_kinds(kinds, chosen, "toy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    with pytest.raises(engine.UnitError, match=r"the first \(kind=words, text=no\)"):
        engine.map_kinds({"words": (fail_in_words, [{"text": "no"}], new_marker), **kinds}, chosen, "toy")


def new_marker(text):
    return Marker("/nowhere", text)


@pytest.mark.parametrize("other_fails", [False, True])
def test_a_unit_waits_for_what_another_process_makes(tmp_path, monkeypatch, other_fails):
    """Meanwhile the rest is made; what the other process gives up is made here."""
    chosen, seen, run = settings(mode="local", n_workers=2), [], mapping._run
    lock = contextlib.ExitStack()
    lock.enter_context(artifacts.locked(tmp_path / "a"))

    def watched(call, tasks, *rest):
        if call.wait:
            if not other_fails:
                touch(str(tmp_path), "a")
            lock.close()
        found = run(call, tasks, *rest)
        seen.append((call.wait, [task["name"] for task in tasks], sorted(path.name for path in tmp_path.iterdir())))
        return found

    monkeypatch.setattr(mapping, "_run", watched)
    table = engine.map_units(touch_after, chain(tmp_path), chosen, "toy", unit_of=Marker)
    assert (table["error"] == "").all()
    assert seen == [
        (False, ["a", "b", "c", "d", "e"], [".a.lock", "b", "d"]),
        (True, ["a"], ["a", "b", "d"]),
        (False, ["c", "e"], ["a", "b", "c", "d", "e"]),
    ]


def test_failed_units_are_named_after_the_others_ran(tmp_path):
    with pytest.raises(engine.UnitError, match=r"toy: 1 of 4 units failed, the first .*name=2.*KeyError: 'no 2'"):
        engine.map_units(touch, toy_tasks(tmp_path, failing={2}), settings(), "toy")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_missing_gpu_is_one_sentence(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(
        ValueError, match=r"engine\.device is cuda, expected that GPU, found 0 GPUs; set engine\.device"
    ):
        engine.device(settings(device="cuda"))
    assert engine.device(settings(device="cpu")).type == "cpu"


@pytest.mark.parametrize(
    ("driver", "loaded", "asked"), [(False, False, False), (True, False, True), (False, True, True)]
)
def test_gpus_are_counted_without_torch_where_there_is_no_driver(monkeypatch, driver, loaded, asked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(devices, "_DRIVERS", (os.devnull,) if driver else ("/dev/none",))
    modules = {name: module for name, module in sys.modules.items() if loaded or name != "torch"}
    seen = SimpleNamespace(modules=modules, platform="linux")
    monkeypatch.setattr(devices, "sys", seen)
    assert engine.gpus() == 3 * asked
    assert devices.default_workers() == (3 if asked else engine.cores())


def test_a_module_of_later_is_loaded_when_it_is_asked():
    code = """if True:
        import sys
        from nafld_utils import engine
        wave = engine.Later("wave")
        print("wave" in sys.modules, wave.Error.__name__, "wave" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == (
        "False Error True\n"
    )


def test_cluster_without_address_or_library_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "dask_jobqueue", None)
    with pytest.raises(ValueError, match="install the slurm extra"):
        engine.map_units(touch, toy_tasks(tmp_path), settings(mode="cluster"), "toy")


def test_progress_writes_lines_for_the_terminal_of_a_headless_run(tmp_path, monkeypatch):
    path = tmp_path / "progress"
    monkeypatch.setenv(engine.PROGRESS_FILE, str(path))
    assert list(engine.progress(range(3), "counting")) == [0, 1, 2]
    assert path.read_text().splitlines()[-1].startswith("counting: 3/3 in 0 s")
    meter = engine.StepMeter("training", 10, every=0.0)
    meter(4, 0.5)
    assert "training: step 4/10, loss 0.5000, about" in path.read_text()
    meter(5)
    assert "training: step 5/10, about" in path.read_text()


def test_progress_is_silent_without_a_terminal(monkeypatch, capsys):
    import ipykernel  # noqa: F401  explorers import it too; only a kernel that runs shows a bar

    monkeypatch.delenv(engine.PROGRESS_FILE, raising=False)
    assert list(engine.progress(iter("ab"), "letters", total=2)) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


def test_progress_is_a_bar_in_a_kernel(monkeypatch, capsys):
    import IPython

    monkeypatch.delenv(engine.PROGRESS_FILE, raising=False)
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel="running"))
    assert list(engine.progress(range(3), "counting")) == [0, 1, 2]
    assert "counting:" in capsys.readouterr().err


@pytest.fixture
def threads():
    """Puts the number of threads back that this process had."""
    before = torch.get_num_threads()
    yield
    engine.use_threads(before)


@pytest.mark.parametrize(("mode", "n"), [("serial", 2), ("local", 1), ("local", 2)])
def test_a_unit_computes_with_the_threads_of_the_settings_wherever_it_is_made(tmp_path, threads, mode, n):
    """In this process, alone as the last of many, or by one of two workers; other threads give other last digits."""
    engine.use_threads(3)
    compute(tmp_path, "three")
    tasks = [{"folder": str(tmp_path), "name": str(i)} for i in range(n)]
    engine.map_units(compute, tasks, settings(mode=mode, n_workers=2, threads=1), "toy")
    assert torch.get_num_threads() == artifacts.threads() == 1
    assert {os.environ[name] for name in engine.THREAD_VARIABLES} == {"1"}
    compute(tmp_path, "here")
    made = {(tmp_path / str(i)).read_bytes() for i in range(n)}
    assert made == {(tmp_path / "here").read_bytes()}
    assert (tmp_path / "three").read_bytes() not in made


DASK_NAMES = [("SLURMCluster-2", 0), ("SLURMCluster-2-1", 1), ("gpu-1", 1), (None, 0), ("tcp://10.0.0.1:8787", 0)]


@pytest.mark.parametrize(("name", "gpu"), DASK_NAMES)
def test_every_worker_of_dask_computes_on_a_gpu_of_its_own(name, gpu, monkeypatch):
    import distributed

    def worker():
        if name is None:
            raise ValueError("No worker found")
        return SimpleNamespace(name=name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "get_worker", worker)
    assert engine.device(settings()) == engine.device(settings(device="cuda")) == torch.device("cuda", gpu)
    assert engine.device(settings(device="cuda:1")) == torch.device("cuda", 1)
    monkeypatch.delitem(sys.modules, "distributed")
    assert engine.device(settings()) == torch.device("cuda", 0), "no worker without Dask"
    assert "distributed" not in sys.modules, "which is not loaded for that"


@pytest.mark.parametrize(("number", "gpu"), [(0, 0), (1, 1), (3, 1)])
def test_every_local_worker_computes_on_a_gpu_of_its_own(number, gpu, monkeypatch):
    monkeypatch.setattr(devices, "_worker", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices.be_worker(number)
    assert engine.device(settings()) == torch.device("cuda", gpu)
    assert engine.device(settings(device="cuda:1")) == torch.device("cuda", 1)


def test_one_thing_is_made_by_one_process_at_a_time(tmp_path):
    tasks = [{"folder": str(tmp_path), "name": str(i)} for i in range(4)]
    engine.map_units(wait_for_turn, tasks, settings(mode="local", n_workers=2), "toy")
    lines = [line.split() for line in (tmp_path / "lines").read_text().splitlines()]
    assert [what for what, _ in lines] == ["in", "out"] * 4
    assert all(first[1] == second[1] for first, second in zip(lines[::2], lines[1::2], strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["lines"], "a lock is left"


def test_a_lock_survives_an_error_inside_and_a_file_system_without_locks(tmp_path, monkeypatch):
    with pytest.raises(KeyError), mapping.alone(tmp_path / "a", tmp_path / "b"):
        raise KeyError("inside")

    def no_locks(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with mapping.alone(tmp_path / "a"):
        assert (tmp_path / ".a.lock").exists()
    assert not list(tmp_path.iterdir())


def test_a_unit_that_another_process_made_meanwhile_is_not_made_again(tmp_path):
    (tmp_path / "0").touch()
    make = mapping._Call(touch, Marker).make
    make({"folder": str(tmp_path), "name": "0"})
    assert (tmp_path / "0").read_text() == ""
    make({"folder": str(tmp_path), "name": "1"})
    assert (tmp_path / "1").read_text() == str(os.getpid())


def test_failures_that_stop_nothing_are_said_in_notebook_and_terminal(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(engine.PROGRESS_FILE, str(tmp_path / "progress"))
    (tmp_path / "units").mkdir()
    engine.map_units(touch, toy_tasks(tmp_path / "units", failing={1}), settings(), "toy", raise_failed=False)
    sentence = "toy: 1 of 4 units failed, the first"
    assert sentence in caplog.text
    assert sentence in (tmp_path / "progress").read_text()


def test_a_terminal_shows_a_bar_with_an_estimate(monkeypatch, capsys):
    monkeypatch.delenv(engine.PROGRESS_FILE, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    clock = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    for i in engine.progress(range(3), "counting"):
        clock[0] += 0.15 * i
    shown = capsys.readouterr().err
    assert "counting:  67%" in shown
    assert "00:00<00:00" in shown


def test_a_worker_without_the_work_folder_says_what_it_needs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected the work folder .*none.* all machines share"):
        mapping._Call(touch, root=tmp_path / "none").make({"folder": str(tmp_path), "name": "0"})


def test_what_another_process_makes_is_known_by_its_kind_and_waited_for(tmp_path, monkeypatch):
    """However a unit's own error reads: the words of a message steer nothing."""
    said = []
    monkeypatch.setattr(mapping, "announce", said.append)
    with artifacts.locked(tmp_path / "0"):
        first = mapping._Call(touch, Marker, wait=False)({"folder": str(tmp_path), "name": "0"})
    assert (first.is_elsewhere, first.error) == (True, "")
    assert said == ["0: another process makes it, going on with the others"]
    table = engine.map_units(fail_in_words, [{"text": "another process makes it"}], settings(), "toy", False)
    assert table["error"].tolist() == ["KeyError: 'another process makes it'"]
    engine.map_units(touch, [{"folder": str(tmp_path), "name": "0"}], settings(), "toy", unit_of=Marker)
    assert (tmp_path / "0").exists()


def test_an_error_of_ours_that_says_what_to_do_about_memory_is_left_as_it_is():
    told = artifacts.NotEnoughMemoryError("a batch of 8 does not fit; halve it")
    assert engine.lacked_memory(told)
    assert engine.in_words(told) == "NotEnoughMemoryError: a batch of 8 does not fit; halve it"
    assert engine.in_words(MemoryError("lower it")).startswith("MemoryError: not enough memory (lower it); free memory")
