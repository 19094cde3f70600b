"""Progress with an estimate: a bar where somebody looks on, a line in the terminal of a headless run."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

PROGRESS_FILE = "NAFLD_PROGRESS"  # set by the headless runner: lines written there are shown in its terminal


def announce(text: str) -> None:
    """Show one line of progress in the terminal of a headless run; silent elsewhere."""
    path = os.environ.get(PROGRESS_FILE)
    if path:
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as handle:
            handle.write(text + "\n")


def is_headless() -> bool:
    """Whether this process runs a notebook for a report, with nobody there to move a slider."""
    return bool(os.environ.get(PROGRESS_FILE))


def notice(text: str) -> None:
    """Say what must not go unseen: in the terminal of a headless run, and as a warning where the code runs."""
    announce(text)
    logging.getLogger(__name__).warning(text)


def progress(items: Iterable[Any], label: str, total: int | None = None) -> Iterator[Any]:
    """Iterate with a bar and an estimate: in JupyterLab a widget, headless a line to the runner's terminal.

    Parameters
    ----------
    items : iterable
        What to iterate over.
    label : str
        What is going on.
    total : int, optional
        Number of items, where `items` has no length.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items)
    if is_headless():
        yield from _announced(items, label, total)
    elif _in_kernel() or sys.stderr.isatty():
        from tqdm.auto import tqdm

        yield from tqdm(items, desc=label, total=total, leave=False)
    else:
        yield from items


def _announced(items: Iterable[Any], label: str, total: int | None) -> Iterator[Any]:
    meter = StepMeter(label, total)
    for done, item in enumerate(items, start=1):
        yield item
        if meter.is_due() or done == total:
            announce(f"{label}: {done}/{total or '?'} in {_clock(meter.seconds())}{meter.left(done)}")


def _in_kernel() -> bool:
    """Whether a Jupyter kernel runs this process: that something imported ipykernel does not say so."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class StepMeter:
    """Says how far a long unit is, with an estimate, in the terminal of a headless run.

    Parameters
    ----------
    label : str
        What is going on.
    total : int, optional
        Steps in all.
    first : int
        Step it resumed from.
    every : float
        Least seconds between two lines.
    """

    def __init__(self, label: str, total: int | None, first: int = 0, every: float = 5.0):
        self.label, self.total, self.first, self.every = label, total, first, every
        self.started = self.shown = time.monotonic()

    def __call__(self, step: int, loss: float = float("nan")) -> None:
        """Report a step and its loss, if it has one."""
        if step > self.first and self.is_due():
            value = "" if math.isnan(loss) else f", loss {loss:.4f}"
            announce(f"{self.label}: step {step}/{self.total}{value}{self.left(step)}")

    def is_due(self) -> bool:
        """Whether a line is to be shown now; counts it as shown."""
        now = time.monotonic()
        due = now - self.shown >= self.every
        self.shown = now if due else self.shown
        return due

    def left(self, step: int) -> str:
        """How long it takes from a step to the end, as the end of a sentence; empty where that is not known."""
        if not self.total:
            return ""
        return f", about {_clock(self.seconds() / (step - self.first) * (self.total - step))} left"

    def seconds(self) -> float:
        """Seconds since the meter was made."""
        return time.monotonic() - self.started
