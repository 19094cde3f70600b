"""What a process may use: device, cores, threads, memory."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import re
import sys
from types import ModuleType
from typing import Any

from nafld_utils.params import EngineSettings

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Of GPUs that torch knows, on Linux.
_DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
_worker: list[int] = []  # the number of the local worker that this process is


def device(settings: EngineSettings) -> Any:
    """The torch device of these settings, a GPU of its own per worker of a machine; ValueError where there is none."""
    import torch

    if settings.device == "cpu" or (settings.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    n, named = torch.cuda.device_count(), torch.device("cuda" if settings.device == "auto" else settings.device).index
    if n <= (named or 0):
        raise ValueError(
            f"engine.device is {settings.device}, expected that GPU, found {n} GPUs;"
            " set engine.device=auto or check the driver with `make doctor`."
        )
    return torch.device("cuda", _own_gpu(n) if named is None else named)


def sent(tensor: Any, device: Any) -> Any:
    """A tensor on a device; a GPU's copy from the host is queued, where torch's own waits for the work before it."""
    queued = device.type == "cuda" and tensor.device.type == "cpu"
    return tensor.pin_memory().to(device, non_blocking=True) if queued else tensor.to(device)


class Later(ModuleType):
    """A module that is loaded when something is first asked of it: what opens a finished run needs no torch."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


def be_worker(number: int) -> None:
    """Let this process compute as the local worker of that number, from 0."""
    _worker[:] = [number]
    collect_seldom()
    keep_strings()


def collect_seldom() -> None:
    """Look for cycles among objects less often, and not at the end: libraries make a million of them on import."""
    gc.set_threshold(100_000, *gc.get_threshold()[1:])  # choice
    atexit.register(gc.freeze)


def keep_strings() -> None:
    """Let pandas keep strings as Python's own: Arrow's cost more to reach than tables of thousands of rows gain."""
    import pandas as pd

    pd.set_option("mode.string_storage", "python")


def _own_gpu(n: int) -> int:
    """GPU of this process among the `n` it sees: by the number of its worker, the first where it is none.

    Workers of Dask and of a Slurm job of several processes are called name-0, name-1, ... A Slurm job of one process
    sees the one GPU that Slurm gave it.
    """
    if _worker:
        return _worker[0] % n
    if "distributed" not in sys.modules:  # which a Dask worker is made of
        return 0
    from distributed import get_worker

    try:
        name = str(get_worker().name)
    except ValueError:  # not a Dask worker
        return 0
    number = re.search(r"(?:^|-)(\d+)$", name)
    return int(number.group(1)) % n if number else 0


def default_workers() -> int:
    """One worker per GPU, else one per core this process may use."""
    return gpus() or cores()


def gpus() -> int:
    """GPUs that torch sees; it is not asked, which takes a second, where Linux has no driver of any."""
    if sys.platform == "linux" and "torch" not in sys.modules and not any(map(os.path.exists, _DRIVERS)):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def use_threads(n: int) -> None:
    """Let this process and those that it starts compute with `n` threads from now on (``engine.threads``).

    The order of a sum depends on their number, and with it the last digits of torch's and of numpy's results: what a
    unit holds must not depend on how many units are made at once, nor on how many cores there are.
    """
    from threadpoolctl import threadpool_limits

    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(n)))  # read by libraries that are loaded later
    threadpool_limits(n)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(n)
