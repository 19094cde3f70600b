"""Toy units in a module that workers can import by its name, which no file of tests is."""

import gc
import os
import signal
import time
from pathlib import Path

import numpy as np

from nafld_utils.engine import devices, mapping


def touch(folder, name, fail=False):
    """One toy unit."""
    if fail:
        raise KeyError(f"no {name}")
    with open(os.path.join(folder, name), "x") as handle:
        handle.write(str(os.getpid()))


def touch_after(folder, name, fail=False, reads=()):
    """One toy unit that takes a while and reads others."""
    for other in reads:
        assert Path(folder, other).exists(), f"{other} is missing"
    time.sleep(0.1)
    touch(folder, name, fail)


def compute(folder, name):
    """A unit whose last digits depend on the number of threads: sums and products of numpy and torch, a gradient."""
    import torch

    rng = np.random.default_rng(0)
    long, square = rng.random(300_000), rng.random((300, 300))
    images = torch.from_numpy(rng.random((8, 3, 48, 48), dtype=np.float32))
    weight = torch.from_numpy(rng.random((16, 3, 3, 3), dtype=np.float32)).requires_grad_()
    torch.nn.functional.conv2d(images, weight).square().mean().backward()
    found = [long @ long, np.linalg.eigvalsh(square @ square.T), torch.from_numpy(long).sum(), weight.grad]
    Path(folder, name).write_bytes(b"".join(np.asarray(value).tobytes() for value in found))


class Marker:
    """A unit that is done when its file is there."""

    def __init__(self, folder, name, fail=False, reads=()):
        self.path, self.hash, self.recipe = Path(folder, name), name, {"inputs": list(reads)}

    def done(self):
        return self.path.exists()


def wait_for_turn(folder, name):
    """A unit that shows whether another one is made at the same time."""
    with mapping.alone(Path(folder) / "unit"):
        lines = Path(folder) / "lines"
        with open(lines, "a") as handle:
            handle.write(f"in {name}\n")
        time.sleep(0.2)
        with open(lines, "a") as handle:
            handle.write(f"out {name}\n")


def note(folder, name, deadly=False, seconds=0.0):
    """Write down which process began a unit, and keep a file while it is made; a deadly one takes it along."""
    with open(Path(folder) / f"began-{name}", "a") as handle:
        handle.write(f"{os.getpid()}\n")
    if deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    half = Path(folder) / f"half-{name}"
    half.touch()
    try:
        time.sleep(seconds)
    finally:
        half.unlink()


def facts_of(seconds):
    """After a time, what a worker is: its number, and whether it overhears Ctrl-C."""
    time.sleep(seconds)
    return *devices._worker, signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def fail_in_words(text):
    raise KeyError(text)


def collects_after(_):
    """Objects after which this process looks for cycles among them."""
    return gc.get_threshold()[0]
