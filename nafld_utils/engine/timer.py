"""Seconds of a step on a device: every estimate is these, measured on a few steps, times the steps that remain.

Contract: what is timed is the code that the study runs; weights are random and inputs noise where time depends on
neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from nafld_utils.engine import devices
from nafld_utils.params import EngineSettings

torch = devices.Later("torch")


def wait(device: torch.device) -> None:
    """Let a GPU finish what it was given; a CPU is done when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: torch.device, repeats: int = 1, warm: int = 1) -> float:
    """Seconds of one `call`, the mean of `repeats`, after `warm` calls that are not counted."""
    for _ in range(warm):
        call()
    wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    wait(device)
    return (time.perf_counter() - started) / repeats


def side_by_side(settings: EngineSettings) -> int:
    """Units that this machine works on at once; seeds that share a GPU count as one."""
    return 1 if settings.mode == "serial" else settings.n_workers or devices.default_workers()
