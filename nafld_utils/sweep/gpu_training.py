"""Trainings that live on a GPU whole: stored views, draws, weights and a recorded step, several seeds side by side.

Contract: the same draws, updates and losses as `sweep.train_tail`, within the arithmetic asked for. Nothing is read
from the host between the first step and the last but the check of the loss.

Notes
-----
A tail's step is some hundreds of kernels of a few microseconds each, so launching them costs more than computing
them. A CUDA graph records them once and replays them with one call; a training that comes later copies its weights
into the recorded ones. Seeds side by side replay on streams of their own, since one batch of 32 does not fill a large
GPU. Without a GPU, or with ``record`` false, the same code runs kernel by kernel.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nafld_utils.engine import arithmetic
from nafld_utils.sweep import training
from nafld_utils.sweep.training import Options, Views, build_optimizer, check_classes, require_finite, step_on

REVISION = ("trial_resident", 1)

WARM_UP = 3  # steps before recording, in which cuDNN chooses its kernels and AdamW makes its state
CHECK_EVERY = 200  # steps between looks at the loss


class Job(NamedTuple):
    """One training: a tail from `sweep.fresh_tail`, its training set on the device, its seed."""

    tail: nn.Sequential
    parts: Sequence[Views]
    seed: int


class Batches:
    """Every batch of a training as addresses on the device, where the parts' stores are tensors of one type."""

    def __init__(self, parts: Sequence[Views], options: Options, seed: int, device: torch.device):
        drawn = [training.batch_of(parts, options, seed, step) for step in range(options.steps)]
        rows, views = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
        labels = np.concatenate([part.labels for part in parts]).astype(np.int64)[rows]
        ends = np.cumsum([len(part) for part in parts])
        which = np.searchsorted(ends, rows, side="right")
        flat = np.zeros((len(parts), *rows.shape), np.int64)
        for i, part in enumerate(parts):
            mine = which == i
            row, view = part.address(rows[mine] - (ends[i] - len(part)), views[mine])
            flat[i][mine] = row * part.features.shape[1] + view
        self.stores = [part.features.flatten(0, 1) for part in parts]
        self.which, self.flat, self.labels = (torch.from_numpy(a).to(device) for a in (which, flat, labels))

    def fill(self, step: int, stored: Tensor, labels: Tensor) -> None:
        """Write the batch of a step into two tensors, ``(b, ...)`` and ``(b,)``; waits for nothing."""
        torch.index_select(self.stores[0], 0, self.flat[0, step], out=stored)
        for i, store in enumerate(self.stores[1:], start=1):
            other = store.index_select(0, self.flat[i, step])
            mine = (self.which[step] == i).view(-1, *[1] * (stored.ndim - 1))
            torch.where(mine, other, stored, out=stored)
        labels.copy_(self.labels[step])


class Resident:
    """A tail with its optimizer and its recorded step, used by one training after another.

    `tail` gives the architecture, its weights are replaced by each job's; `view` and `dtype` are those of one stored
    view; `record` is whether a GPU replays a recorded step.
    """

    def __init__(
        self,
        tail: nn.Sequential,
        decoder: nn.Module,
        options: Options,
        device: torch.device,
        view: Sequence[int],
        dtype: torch.dtype,
        record: bool = True,
    ):
        self.options, self.device = options, device
        self.tail = tail.to(device=device, memory_format=torch.channels_last)
        training.in_training(self.tail, options)
        self.decoder = decoder.to(device)
        record = record and device.type == "cuda"
        self.optimizer = build_optimizer(self.tail, options, capturable=record)
        self.stored = torch.zeros((options.batch_size, *view), dtype=dtype, device=device)
        self.labels = torch.zeros(options.batch_size, dtype=torch.int64, device=device)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.graph = self._record() if record else None

    def _step(self) -> Tensor:
        return step_on(self.tail, self.decoder, self.optimizer, self.stored, self.labels, self.options)

    def _record(self) -> torch.cuda.CUDAGraph:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with arithmetic(self.options.precision, self.device, tuned=True):
            with torch.cuda.stream(self.stream), warnings.catch_warnings():
                # torch warns that an optimizer made for recording runs unrecorded, which is what a warm-up is
                warnings.filterwarnings("ignore", message=".*capturable=True.*")
                for _ in range(WARM_UP):
                    self._step()
            self.stream.synchronize()
            self.optimizer.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                self.loss = self._step()
        return graph

    def _begin(self, tail: nn.Sequential) -> None:
        """Take over a job's weights, in place: a recorded step knows its tensors by their address."""
        with torch.no_grad():
            for mine, fresh in zip(self.tail.state_dict().values(), tail.state_dict().values(), strict=True):
                mine.copy_(fresh)
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def training(self, job: Job) -> Iterator[tuple[nn.Sequential, np.ndarray] | None]:
        """Train step by step: None after each step, at last the job's trained tail and its losses (steps,) float32."""
        check_classes(job.parts, self.options)
        tail = job.tail.to(device=self.device, memory_format=torch.channels_last)
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with self._here():
            self._begin(tail)
            training.in_training(self.tail, self.options)
            batches = Batches(job.parts, self.options, job.seed, self.device)
            losses = torch.zeros(self.options.steps, device=self.device)
        for step in range(self.options.steps):
            with self._here():
                batches.fill(step, self.stored, self.labels)
                losses[step] = self._replay()
            done = step + 1
            if done % CHECK_EVERY == 0 or done == self.options.steps:
                with self._here():
                    require_finite(losses[max(0, done - CHECK_EVERY) : done], done, self.options)
            yield None
        with self._here():
            tail.load_state_dict(self.tail.state_dict())
            found = losses.cpu().numpy()
        yield tail.eval(), found

    def _replay(self) -> Tensor:
        if self.graph is None:
            return self._step()
        self.graph.replay()
        return self.loss

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        """On this trainer's stream, in its arithmetic. Not kept over a yield: another trainer's comes between."""
        if self.stream is None:
            yield
            return
        # a recorded step has its arithmetic in it
        how = contextlib.nullcontext() if self.graph else arithmetic(self.options.precision, self.device, tuned=True)
        with torch.cuda.stream(self.stream), how:
            yield


_TRAINERS: dict[tuple[Any, ...], list[Resident]] = {}


def train_jobs(
    jobs: Sequence[Job],
    decoder: nn.Module,
    options: Options,
    device: torch.device,
    network: tuple[str, ...],
    record: bool = True,
) -> list[tuple[nn.Sequential, np.ndarray] | Exception]:
    """Train jobs of one network, side by side on a GPU and one after another elsewhere; one that fails stops no other.

    By job its tail in eval mode with its losses ``(steps,)`` float32, or why it failed. `network` names the network and
    what is frozen of it: trainers stay for the next trainings of the same, since recording a step costs seconds.
    """
    if device.type != "cuda":
        return [_attempt(job, decoder, options) for job in jobs]
    like = jobs[0].parts[0].features
    # what a step is recorded for
    key = (*network, options, str(device), record, tuple(like.shape[2:]), str(like.dtype))
    if key not in _TRAINERS:
        _TRAINERS.clear()  # of another network: their memory is wanted
    ready = _TRAINERS.setdefault(key, [])
    try:
        while len(ready) < len(jobs):
            how = {"view": like.shape[2:], "dtype": like.dtype, "record": record}
            ready.append(Resident(copy.deepcopy(jobs[0].tail), decoder, options, device, **how))
    except Exception as error:
        _TRAINERS.clear()
        return [error] * len(jobs)
    return train_side_by_side(ready, jobs)


def _attempt(job: Job, decoder: nn.Module, options: Options) -> tuple[nn.Sequential, np.ndarray] | Exception:
    try:
        return training.train_tail(job.tail, job.parts, options, job.seed, decoder)
    except Exception as error:
        return error


def train_side_by_side(
    trainers: Sequence[Resident], jobs: Sequence[Job]
) -> list[tuple[nn.Sequential, np.ndarray] | Exception]:
    """Train one job on each trainer, a step of each in turn; what it gives is as of `train_jobs`."""
    running = {i: trainers[i].training(job) for i, job in enumerate(jobs)}
    results: list[Any] = [None] * len(jobs)
    while running:
        for i, steps in list(running.items()):
            try:
                results[i] = next(steps)
            except Exception as error:
                results[i] = error
            if results[i] is not None:
                running.pop(i)
    return results
