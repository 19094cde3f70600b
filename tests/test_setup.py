"""Set-up: what the Makefile, the lock, the conda file and the doctor promise, without installing anything twice."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml
from project import PROJECT

from nafld_utils import doctor

LOCK = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
PROJECT_TABLE = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def locked():
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", LOCK, re.MULTILINE))


def test_lock_pins_every_declared_library_and_the_torch_pair():
    pins = {name.lower().replace("_", "-"): version for name, version in locked().items()}
    wanted = [*PROJECT_TABLE["dependencies"], *PROJECT_TABLE["optional-dependencies"]["dev"]]
    names = {re.match(r"[A-Za-z0-9._-]+", text)[0].lower() for text in wanted}
    assert names <= set(pins)
    assert pins["torch"] == "2.13.0"
    assert pins["torchvision"] == "0.28.0"


def test_lock_resolves_both_pythons_and_names_no_private_address():
    assert "python_full_version == '3.12.*'" in LOCK
    assert not re.search(r"https?://|--index|--find-links|^/|file:", LOCK, re.MULTILINE)


def test_every_file_that_is_installed_has_its_hash_and_so_has_the_installer():
    entries = re.split(r"\n(?=\S)", LOCK.strip())
    assert {entry.partition("==")[0] for entry in entries} == set(locked())  # numpy, say, once per Python
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    taken = re.search(r"sed -n '(.*)' requirements.lock", makefile)[1]
    chosen = subprocess.run(
        ["sed", "-n", taken, "requirements.lock"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert re.findall(r"^([a-z-]+)==", chosen.stdout, re.MULTILINE) == ["uv"]
    assert makefile.count("--require-hashes") == 2


def test_conda_users_get_the_same_lock_and_no_second_list():
    environment = yaml.safe_load((PROJECT / "environment.yml").read_text(encoding="utf-8"))
    *named, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.lock"]}
    said = (PROJECT / "environment.yml").read_text(encoding="utf-8")
    assert "`pip install --no-deps -e .`" in said, "a lock with hashes takes no folder"
    assert [re.split(r"[=<>]", entry)[0] for entry in named] == ["python", "pip"]
    version = tuple(map(int, re.search(r"python=(\d+)\.(\d+)$", named[0]).groups()))
    assert doctor.check_python(version).state == "ok"
    assert environment["channels"] == ["conda-forge"]


def test_the_installed_libraries_are_the_locked_ones():
    from importlib import metadata

    for name in ("torch", "torchvision", "timm", "diffusers", "papermill", "nbconvert"):
        assert metadata.version(name) == locked()[name]


def fake_python(folder, name, version, log):
    """An interpreter of a given version that answers the Makefile's question and writes down what it is asked."""
    path = folder / name
    path.write_text(
        f"""#!/bin/sh
echo "{name} $*" >> "{log}"
case "$*" in
  *version_info*) exec "{sys.executable}" -c "import sys; sys.version_info = ({version}, 0, 'final', 0)
$(echo "$2" | sed 's/^import sys; //')" ;;
  --version) echo "Python {version.replace(", ", ".")}" ;;
  *fcntl*) exec "{sys.executable}" "$@" ;;
  "-m venv"*) echo begun >> "{log}"; sleep 0.5; echo over >> "{log}"; echo "no ensurepip" >&2; exit 1 ;;
esac
"""
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def set_up(tmp_path):
    """The Makefile's set-up with nothing but given interpreters on PATH, in an empty folder."""
    work, tools, log = tmp_path / "clone", tmp_path / "bin", tmp_path / "asked"
    work.mkdir()
    tools.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy2(PROJECT / name, work / name)
    for name in ("sh", "make", "rm", "touch", "head", "echo", "sed", "sleep"):
        (tools / name).symlink_to(shutil.which(name))
    log.touch()

    def run(**versions):
        for name, version in versions.items():
            fake_python(tools, name.replace("_", "."), version, log)
        done = subprocess.run(
            ["make", ".venv/.ready"], cwd=work, env={"PATH": str(tools)}, capture_output=True, text=True, check=False
        )
        return done, log.read_text(encoding="utf-8")

    run.work = work
    return run


def test_set_up_refuses_other_pythons_with_one_sentence(set_up):
    done, _ = set_up(python3="3, 13")
    assert done.returncode != 0
    assert "expected Python 3.11 or 3.12, found Python 3.13" in done.stderr
    assert "make PYTHON=/path/to/python3.12" in done.stderr
    assert not (set_up.work / ".venv").exists()


def test_set_up_takes_another_python_where_the_default_does_not_fit(set_up):
    done, asked = set_up(python3="3, 13", python3_11="3, 11")
    assert "python3.11 -m nafld_utils.doctor --before-set-up .venv" in asked
    assert "python3.11 -m venv --clear .venv" in asked
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr


def test_a_set_up_cut_short_starts_from_an_empty_folder(set_up):
    venv = set_up.work / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / ".installing").touch()
    (venv / "bin" / "python").symlink_to(sys.executable)
    _, asked = set_up(python3="3, 12")
    assert "python3 -m venv --clear .venv" in asked


def test_two_set_ups_at_once_work_one_after_the_other(set_up):
    set_up(python3="3, 12")  # the same interpreter for both
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda _: set_up(), range(2)))
    _, asked = set_up()
    assert [line for line in asked.splitlines() if line in ("begun", "over")] == ["begun", "over"] * 4


def test_set_up_happens_once_and_again_when_the_lock_changes(tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy2(PROJECT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".ready").touch()
    asked = ["make", "-q", ".venv/.ready"]
    assert subprocess.run(asked, cwd=tmp_path, check=False).returncode == 0
    later = (tmp_path / ".venv" / ".ready").stat().st_mtime + 10
    os.utime(tmp_path / "requirements.lock", (later, later))
    assert subprocess.run(asked, cwd=tmp_path, check=False).returncode == 1


# ---------------------------------------------------------------- doctor


@pytest.mark.parametrize(
    ("version", "state"), [((3, 10), "fault"), ((3, 11), "ok"), ((3, 12), "ok"), ((3, 13), "fault")]
)
def test_doctor_knows_the_pythons(version, state):
    assert doctor.check_python(version).state == state


def test_doctor_runs_before_anything_is_installed():
    code = (
        "import sys; sys.path.insert(0, '.'); from nafld_utils import doctor; doctor.main([]); print(list(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"numpy", "pandas", "torch", "pydantic", "yaml"} & set(re.findall(r"'(\w+)'", done.stdout))


def test_doctor_finds_a_full_disk(tmp_path):
    finding = doctor.check_disk(tmp_path / "not" / "there", 1e9, "artifacts")
    assert finding.state == "fault"
    assert "GiB free at" in finding.found
    assert finding.remedy.startswith("free ")
    assert doctor.check_disk(tmp_path, 0.0, "artifacts").state == "ok"


def test_doctor_imports_the_libraries_elsewhere(tmp_path):
    libraries, gpu = doctor.check_libraries()
    assert libraries.state == "ok"
    assert "torch 2.13.0" in libraries.found
    assert gpu.state in ("ok", "optional")
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'RuntimeError: operator torchvision::nms does not exist' >&2\nexit 1\n")
    broken.chmod(0o755)
    (finding,) = doctor.check_libraries(str(broken))
    assert finding.state == "fault"
    assert "torchvision::nms" in finding.found
    assert "requirements.lock" in finding.remedy


@pytest.mark.parametrize(
    ("gpus", "driver", "state", "word"),
    [
        (["H100"], "570.1", "ok", "H100"),
        ([], "470.2", "optional", "update the NVIDIA driver"),
        ([], "", "optional", "none needed for smoke, demo and cpu"),
    ],
)
def test_doctor_sees_gpu_and_driver(gpus, driver, state, word):
    finding = doctor.check_gpu(gpus, "12.8", driver)
    assert finding.state == state
    assert word in finding.found + finding.remedy


def test_doctor_checks_the_cohort_against_its_record(tmp_path):
    assert doctor.check_cohort(raw=tmp_path).state == "optional"
    assert doctor.check_cohort(str(tmp_path / "none.mat")).state == "fault"
    path = tmp_path / "cohort.mat"
    path.write_bytes(b"abc")
    assert "no record beside it" in doctor.check_cohort(raw=tmp_path).found
    record = tmp_path / "cohort.record.json"
    record.write_text('{"files": [{"key": "cohort.mat", "checksum": "md5:900150983cd24fb0d6963f7d28e17f72"}]}')
    assert "the published file" in doctor.check_cohort(raw=tmp_path).found
    path.write_bytes(b"abd")
    assert doctor.check_cohort(raw=tmp_path).state == "fault"


def test_doctor_fails_only_for_what_is_needed():
    lines = []
    fault = doctor.Finding("a", "fault", "x", "mend it")
    optional = doctor.Finding("b", "optional", "y", "add it")
    assert doctor.report([optional], lines.append) == 0
    assert doctor.report([optional, fault], lines.append) == 1
    assert "mend it" in "\n".join(lines)
    assert lines[-1] == "1 to mend."


# ---------------------------------------------------------------- the tests' own rules


def test_required_tests_fail_where_they_would_be_skipped(tmp_path):
    for name in ("conftest.py", "project.py"):
        shutil.copy2(PROJECT / "tests" / name, tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\npythonpath = .\n")
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_skips(): pytest.skip('no file')\n"
        "@pytest.mark.gpu\ndef test_gpu(): pytest.skip('no GPU')\n"
        "@pytest.mark.xfail(reason='known')\ndef test_known(): assert False\n"
    )
    (tmp_path / "test_all.py").write_text("import pytest\npytest.skip('whole file', allow_module_level=True)\n")

    def run(value):
        command = [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors", str(tmp_path)]
        environment = {**os.environ, "REQUIRE_ALL": value}
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    free, required = run("0"), run("1")
    assert free.returncode == 0, free.stdout
    assert "3 skipped, 1 xfailed" in free.stdout
    assert required.returncode != 0
    assert "was skipped although REQUIRE_ALL=1: Skipped: no file" in required.stdout
    assert "test_all.py was skipped although REQUIRE_ALL=1" in required.stdout
    assert "1 failed, 1 skipped, 1 xfailed, 1 error" in required.stdout


def test_ci_script_is_sound():
    path = PROJECT / ".ci" / "run"
    assert path.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text(encoding="utf-8")
    assert all(
        word in text
        for word in ("REQUIRE_ALL=1", "NAFLD_COHORT", "make test", "make all", "NAFLD_NETWORK_LOG", "demo_promises.py")
    )
