"""What a GPU multiplies fp32 tensors in, and where it computes in bfloat16.

Contract: a CPU always computes in fp32 (choice: short runs are compared bit by bit there). torch itself lets a GPU's
convolutions round to 19 bits unless told otherwise, so whatever is to be fp32 there says so. Choice: the trainings of
GANs and autoencoders, which have no setting for it, do not say so, since in full they would take longer.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

GPU = "cuda"  # type of the devices whose arithmetic the settings choose


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device | str, tuned: bool = False) -> Iterator[None]:
    """Let a GPU multiply fp32 tensors in full (``fp32``) or in 19 bits (``tf32``, ``bf16``).

    Kept around a forward pass and its backward pass, which would else compute in whatever is in force by then.

    Parameters
    ----------
    precision : {"fp32", "tf32", "bf16"}
        As the settings name it.
    device : torch.device or str
        Where the work is done; nothing changes on a CPU.
    tuned : bool
        Choose among a GPU's kernels of a convolution by their time, which pays where sizes never change.
    """
    if torch.device(device).type != GPU:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    cudnn.allow_tf32, cudnn.benchmark = precision != "fp32", tuned or cudnn.benchmark
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:]


def in_full(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function, no generator, that measures or stores: a GPU multiplies fp32 tensors in full within it."""

    @functools.wraps(function)
    def computed(*arguments: Any, **options: Any) -> Any:
        with arithmetic("fp32", GPU):
            return function(*arguments, **options)

    return computed


def autocast(precision: str, device: torch.device | str, cached: bool = True) -> torch.autocast:
    """Compute in bfloat16 where that is safe, for ``bf16`` on a GPU; around a forward pass only, as torch asks for.

    A recorded step is not `cached`: it must cast the weights of its own time.
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16" and kind == GPU, cache_enabled=cached)
