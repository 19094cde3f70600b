"""Run one notebook without a browser: progress in the terminal, all of its report or none.

Contract: the executed notebook appears under its own name only when every cell has succeeded and the stage has
recorded its units; otherwise the half-run copy lies beside it as ``<stage>.failed.ipynb`` and the caller gets one
sentence. Papermill writes its output whether or not a cell failed, hence the temporary name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nafld_utils import artifacts, engine
from nafld_utils.artifacts import Run
from nafld_utils.pipeline import redaction, staleness

_HEARTBEAT = 30.0  # seconds without a word after which the running cell is named again


class StageError(RuntimeError):
    """A notebook did not run to its end; the message is one sentence, `copy` the half-run notebook or None."""

    def __init__(self, message: str, copy: Path | None) -> None:
        super().__init__(message)
        self.copy = copy


class Console:
    """Lines about the running notebook, each with the stage's name and the time since it started.

    Shown are also the lines of the progress file, to which `nafld_utils.engine.progress_lines.announce` writes in
    the kernel and its workers. What the kernel's libraries say on its own stderr (`kernel_log`) follows at the end, and
    is left out after Ctrl-C, which they answer with tracebacks.
    """

    def __init__(self, stage: str, progress_file: Path) -> None:
        self.stage, self._file = stage, progress_file
        self.kernel_log = progress_file.with_name("kernel.log")
        self.kernel_log.touch()
        self._started = self._said = time.monotonic()
        self._cell = "starting the kernel"
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Console:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stop.set()
        self._thread.join()
        if error[0] is not KeyboardInterrupt:
            print(self.kernel_log.read_text(encoding="utf-8", errors="replace"), end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print one line."""
        with self._lock:
            minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
            self._said = time.monotonic()
            print(f"{self.stage} {minutes:2d}:{seconds:02d}  {text}", flush=True)

    def cell(self, text: str) -> None:
        """Name the cell that runs now."""
        self._cell = text
        self.say(text)

    def _follow(self) -> None:
        with open(self._file, encoding="utf-8", errors="replace") as handle:
            rest = ""
            while True:
                stopping = self._stop.is_set()  # asked before reading, so that the last lines are not lost
                *lines, rest = (rest + handle.read()).split("\n")
                for line in lines:
                    self.say(line)
                if stopping:
                    return
                if time.monotonic() - self._said > _HEARTBEAT:
                    self.say(f"still running: {self._cell}")
                self._stop.wait(0.5)


def run_notebook(run: Run, stage: str, notebook: Path) -> Path:
    """Execute the notebook of a stage with the run's profile and overrides; see the module's contract.

    Parameters
    ----------
    run : Run
        The run; its reports folder receives the executed notebook.
    stage : str
        Name of the stage.
    notebook : Path
        The notebook, with a cell tagged ``parameters`` that sets ``profile`` and ``overrides``.

    Returns
    -------
    Path
        ``reports/<run>/<stage>.ipynb``.

    Raises
    ------
    StageError
        A cell failed, the kernel died, the run was interrupted, or the notebook recorded no units.
    """
    _check_parameters(notebook)
    run.reports.mkdir(parents=True, exist_ok=True)
    artifacts.remove_orphans(run.reports, f".{stage}.*.running.ipynb")
    half = run.reports / f".{stage}.{artifacts.locks.unique_ending()}.running.ipynb"
    with artifacts.locked(half):
        _execute(run, stage, notebook, half)
    return staleness.report_path(run, stage)


def _execute(run: Run, stage: str, notebook: Path, half: Path) -> None:
    failed = run.reports / f"{stage}.failed.ipynb"
    try:
        with _environment(run) as progress_file, Console(stage, progress_file) as console:
            _papermill(notebook, half, {"profile": run.settings.profile, "overrides": run.overrides}, console)
            fault = artifacts.stage_fault(run, stage)
            if fault:
                raise StageError(f"{stage} ran, but {fault}: its last cell must call run.finish", None)
    except BaseException as error:
        copy = failed if half.exists() else None
        if copy:
            _keep(run, half, copy)
        if isinstance(error, KeyboardInterrupt):  # the cell's own is retrieved by nobody, which asyncio would tell
            logging.getLogger("asyncio").disabled = True
        if isinstance(error, Exception | KeyboardInterrupt):
            raise StageError(f"{stage} failed: {artifacts.advised(_reason(error))}", copy) from error
        raise
    _keep(run, half, staleness.report_path(run, stage))
    failed.unlink(missing_ok=True)


def _papermill(notebook: Path, output: Path, parameters: Mapping[str, Any], console: Console) -> None:
    import papermill
    from jupyter_client import AsyncKernelManager
    from papermill.engines import NBClientEngine, papermill_engines
    from traitlets.config import Config

    class Announcing(NBClientEngine):
        """Papermill's own engine; names the section of each code cell as it starts, and saves all at the end."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
            sections, begin = _sections(nb_man.nb), nb_man.cell_start

            def cell_start(cell: Any, cell_index: int | None = None, **rest: Any) -> Any:
                if cell_index in sections:
                    console.cell(sections[cell_index])
                return begin(cell, cell_index, **rest)

            nb_man.cell_start, nb_man.save = cell_start, lambda **_: None
            try:
                return super().execute_managed_notebook(nb_man, kernel_name, **options)
            finally:
                del nb_man.save

    class Logging(AsyncKernelManager):
        """Jupyter's own manager; the kernel's stderr goes to a file."""

        async def start_kernel(self, **options: Any) -> None:
            with open(console.kernel_log, "ab") as handle:
                await super().start_kernel(**options, stderr=handle)

    logging.getLogger("papermill").setLevel(logging.ERROR)
    papermill_engines.register("nafld", Announcing)
    papermill.execute_notebook(
        notebook,
        output,
        parameters=dict(parameters),
        engine_name="nafld",
        kernel_name="python3",
        kernel_manager_class=Logging,
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
        start_timeout=180,  # a cold disk needs more than papermill's minute
        cwd=str(notebook.parent),
        config=Config({"KernelManager": {"transport_encryption": transport_encryption()}}),
    )


def transport_encryption() -> str:
    """Whether kernels encrypt what they say: other users of a shared machine can listen on their ports.

    Without keys the kernel warns about it; where this build of ZeroMQ has none, there is nothing to be done.
    """
    import zmq

    return "auto" if zmq.has("curve") else "disabled"


def _sections(notebook: Any) -> dict[int, str]:
    """The first code cell below each heading, and what to say when it starts."""
    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    heading, number, out = "", 0, {}
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+\s+(.+)$", cell.source, re.MULTILINE)
            heading = found[-1].strip() if found else heading
        elif cell.cell_type == "code":
            number += 1
            if heading:
                out[index] = f"[{number:2d}/{total}] {heading}"
                heading = ""
    return out


@contextlib.contextmanager
def _environment(run: Run) -> Iterator[Path]:
    """Environment of the kernel, and the file through which it reports progress; a TERM is treated as Ctrl-C."""
    before = dict(os.environ)
    with contextlib.suppress(ValueError):  # not in the main thread: tests
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="nafld-progress-") as folder:
        progress_file = Path(folder) / "lines.log"
        progress_file.touch()
        # In a terminal of JupyterLab the report is of the run that was asked for, not of the one that is open there.
        # And the user's own IPython profile, which may set another look or format of figures, is not read.
        own = {engine.PROGRESS_FILE: str(progress_file), artifacts.LAB: "", "IPYTHONDIR": str(Path(folder) / "ipython")}
        os.environ.update({**kernel_environment(run), **own})
        try:
            yield progress_file
        finally:
            os.environ.clear()
            os.environ.update(before)


def kernel_environment(run: Run) -> dict[str, str]:
    """Variables that the kernel of a notebook needs, headless or in JupyterLab.

    Of those that only make it faster, none that is set already.
    """
    values = {
        "NAFLD_ROOT": str(artifacts.work_root().absolute()),  # the kernel starts in the notebook's folder
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # another one in force would lose every figure
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger warns into every notebook
        **dict.fromkeys(engine.THREAD_VARIABLES, str(run.settings.engine.threads)),
    }
    # Units at a time share the cores; OpenMP threads that spin while they wait would take them from each other.
    shared = {"OMP_WAIT_POLICY": "passive"}
    # glibc hands large buffers back to the system after every layer of a network, and asks for them again at the next.
    shared |= {"MALLOC_MMAP_THRESHOLD_": str(64 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20)}
    values |= {key: value for key, value in shared.items() if key not in os.environ}
    if not needs_hub(run):
        values["HF_HUB_OFFLINE"] = "1"  # nothing to fetch: without it timm and diffusers retry for a minute offline
    return values


def needs_hub(run: Run) -> bool:
    """Whether any stage of the run loads weights from the Hugging Face hub."""
    first_stages = run.settings.autoencoder.semantic, run.settings.autoencoder.class_
    sweep = run.settings.sweep
    return "hub" in (*(item.source for item in first_stages), sweep.weights, sweep.baseline_weights)


def _check_parameters(notebook: Path) -> None:
    """Refuse a notebook that would ignore what it is given: papermill only logs unknown parameters."""
    import nbformat

    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except (OSError, ValueError, nbformat.validator.NotebookValidationError) as error:
        message = f"{notebook}: expected a notebook, found {type(error).__name__}; restore it from git."
        raise ValueError(message) from None
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    names = {name for name in ("profile", "overrides") if tagged and re.search(rf"^{name}\b", tagged[0], re.MULTILINE)}
    if names != {"profile", "overrides"}:
        raise ValueError(f"{notebook}: expected one cell tagged parameters that sets profile and overrides; add it.")


def _reason(error: BaseException) -> str:
    """The last line of what went wrong, without its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; units already made are kept"
    if hasattr(error, "ename"):
        lines = [line.strip() for line in str(error.evalue).splitlines() if line.strip()]
        if error.ename == "CohortError":  # a line a problem of the user's own folder: all of them
            return "\n  ".join(lines)
        said = lines[-1] if lines else "(no message)"
        told = artifacts.NotEnoughMemoryError if error.ename == artifacts.NotEnoughMemoryError.__name__ else MemoryError
        return engine.in_words(told(said)) if error.ename.endswith("MemoryError") else f"{error.ename}: {said}"
    if type(error).__name__ == "DeadKernelError":
        return (
            "its kernel died, killed by hand or because memory ran out; units already made are kept, run again"
            " (with JOBS=1 or fewer engine.n_workers where memory is short)"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["(no message)"]
    return lines[-1] if isinstance(error, StageError) else f"{type(error).__name__}: {lines[-1]}"


def _keep(run: Run, half: Path, kept: Path) -> None:
    """Give an executed notebook its name, without what names a patient or this machine; one cut short goes."""
    import nbformat

    with contextlib.suppress(ValueError, nbformat.validator.NotebookValidationError):
        notebook = nbformat.read(half, as_version=4)
        note = notebook.metadata.get("papermill", {})
        note["input_path"], note["output_path"] = f"notebooks/{kept.name}", kept.name
        note.pop("environment_variables", None)
        redaction.redact_notebook(run, notebook)
        with artifacts.replacing(kept) as temporary:
            nbformat.write(notebook, temporary)
    half.unlink()
