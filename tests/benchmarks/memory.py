"""Memory that a benchmark holds at its peak: of the tensors on a GPU, of the whole process on a CPU."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

PEAK_RESET = Path("/proc/self/clear_refs")  # of Linux; elsewhere the peak of a process counts from its start


def reset_peak(device: Any = "cpu") -> None:
    """Let `peak_gib` count from here on; does nothing for a CPU without `PEAK_RESET`."""
    if _is_gpu(device):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif PEAK_RESET.exists():
        PEAK_RESET.write_text("5", encoding="ascii")


def peak_gib(device: Any = "cpu", since_reset: bool = False) -> float:
    """Most memory since the process began or `reset_peak`, GiB; NaN where `since_reset` cannot be told.

    On Linux ``VmHWM``: ``ru_maxrss`` of a child process begins at what its parent held when it was started.
    """
    if _is_gpu(device):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**30
    if since_reset and not PEAK_RESET.exists():
        return float("nan")
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    except (OSError, StopIteration):
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return held / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts bytes


def _is_gpu(device: Any) -> bool:
    return str(device).startswith("cuda")


class Watched:
    """Most memory that this process and all that it started have held together, ``gib``, while a ``with`` block runs.

    Pages that several processes share, libraries above all, count once on Linux (the sum of proportional set sizes);
    elsewhere once per process. Looked at ten times per second.
    """

    def __enter__(self) -> Watched:
        self.gib, self._over = 0.0, threading.Event()
        self._look = threading.Thread(target=self._until_over, daemon=True)
        self._look.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._look.join()

    def _until_over(self) -> None:
        while not self._over.wait(0.1):
            mine = psutil.Process()
            self.gib = max(self.gib, sum(_share(one) for one in [mine, *mine.children(recursive=True)]) / 2**30)


def _share(process: psutil.Process) -> int:
    """Bytes of a process; 0 of one that has ended meanwhile."""
    try:
        held = process.memory_full_info() if psutil.LINUX else process.memory_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return getattr(held, "pss", held.rss)
