"""Two hosts in one folder, whose file system keeps a lock to the host that asked for it: units are whole or absent."""

import os
import shutil
import time

import numpy as np
import pytest

from nafld_utils import artifacts
from nafld_utils.artifacts import files, locks, units

pytestmark = pytest.mark.faults


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("NAFLD_ROOT", str(tmp_path))
    return artifacts.open_run("smoke")


def make(unit, value=1.0):
    with unit.writing() as folder:
        files.save_array(folder / "a.npy", np.full(3, value))


@pytest.fixture
def two_hosts(monkeypatch):
    """A file system whose locks stay with the host that asked for them, and a function that goes to another host."""
    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: None)
    return lambda name: monkeypatch.setattr(locks, "here", lambda: name)


@pytest.mark.promise("hosts")
def test_what_another_host_writes_is_not_swept_before_a_week_and_its_lock_is_left(run, two_hosts):
    unit = run.unit("toy", settings={})
    two_hosts("host-one")
    with unit.writing() as folder:
        files.save_array(folder / "a.npy", np.ones(3))
        lock = folder.with_name(f".{folder.name.removeprefix('.')}.lock")
        two_hosts("host-two")
        make(unit, 2.0)
        assert (folder / "a.npy").exists()
        assert lock.exists()
        two_hosts("host-one")
    assert unit.load_array("a.npy")[0] == 2.0, "whoever was first, since others may read it"
    assert [p.name for p in unit.path.parent.iterdir()] == ["toy"]


@pytest.mark.promise("hosts")
def test_what_another_host_left_is_swept_after_a_week(run, two_hosts):
    unit = run.unit("toy", settings={})
    left = unit.path.with_name(".toy.host-one.0123.tmp")
    left.mkdir(parents=True)
    lock = left.with_name(f"{left.name}.lock")
    for path, age in ((left / "new", locks.FORGOTTEN - 60), (left / "old", 2 * locks.FORGOTTEN), (lock, 1e9)):
        path.write_text("x")
        os.utime(path, (time.time() - age,) * 2)
    os.utime(left, (0, 0))
    two_hosts("host-two")
    artifacts.remove_orphans(left.parent, ".toy.*.tmp")
    assert (left / "new").exists(), "one of its files is younger"
    os.utime(left / "new", (time.time() - locks.FORGOTTEN - 60,) * 2)
    artifacts.remove_orphans(left.parent, ".toy.*.tmp")
    assert list(left.parent.iterdir()) == []


@pytest.mark.promise("hosts")
@pytest.mark.parametrize("when", ["before a file", "before the seal", "with a file kept", "with a file changed"])
def test_a_unit_whose_folder_was_cleared_is_refused_and_made_by_the_next_start(run, when):
    unit = run.unit("toy", settings={})

    def write():
        with unit.writing() as folder:
            files.save_array(folder / "a.npy", np.ones(3))
            files.save_array(folder / "b.npy", np.ones(3))
            if when == "with a file kept":
                (folder / "b.npy").unlink()
            elif when == "with a file changed":
                (folder / "b.npy").write_bytes(b"")
            else:
                shutil.rmtree(folder)
            if when == "before a file":
                files.save_array(folder / "c.npy", np.ones(3))

    found = {"with a file kept": r"b\.npy gone", "with a file changed": r"b\.npy changed"}.get(when, "the folder gone")
    expected = rf"expected what was just written there, found {found}; let no other program"
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        write()
    assert not unit.path.exists()
    assert list(unit.path.parent.iterdir()) == []
    make(unit)
    assert unit.done()


@pytest.mark.promise("hosts")
def test_a_unit_that_two_hosts_put_in_place_at_once_is_whole(run, two_hosts, monkeypatch):
    unit, replace = run.unit("toy", settings={}), os.replace

    def replace_late(source, target):
        monkeypatch.setattr(os, "replace", replace)
        two_hosts("host-two")
        make(unit, 2.0)  # between the look whether it is done and the move
        two_hosts("host-one")
        replace(source, target)

    two_hosts("host-one")
    make(run.unit("toy", settings={"other": 1}))
    with unit.writing() as folder:
        files.save_array(folder / "a.npy", np.ones(3))
        made = folder
        monkeypatch.setattr(units.os, "replace", lambda a, b: (replace_late if a == made else replace)(a, b))
    assert unit.load_array("a.npy")[0] == 2.0
    assert [p.name for p in unit.path.parent.iterdir()] == ["toy"]


@pytest.mark.promise("hosts")
def test_two_hosts_and_two_starts_of_one_have_names_of_their_own(monkeypatch):
    names = []
    for node, boot in (("a", "1"), ("a", "2"), ("b", "1"), ("a", "1")):
        monkeypatch.setattr(locks.platform, "node", lambda node=node: node)
        monkeypatch.setattr(locks.Path, "read_text", lambda *_, boot=boot, **__: boot)
        names.append(locks.here.__wrapped__())
    assert len(set(names[:3])) == 3
    assert names[3] == names[0]
