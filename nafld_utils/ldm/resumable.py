"""What the trainings of denoisers and GANs share: a state on disk, and the loop that saves it, times it and shows it.

Contract: a state holds whatever the next step reads, so a training that was killed and resumed ends as one that was
not. A damaged checkpoint is removed and the one before it is used; one of other settings is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nafld_utils import engine
from nafld_utils.artifacts import Unit, load_state, save_state

LOOK = 25  # steps between looks at what a GPU found; each look waits for it (choice)


@dataclass(kw_only=True)
class State:
    """A training's step, seconds so far and loss curve; a subclass adds its networks and optimisers."""

    separator = "."  # between the parts of a tensor's name in a checkpoint
    shown = "loss"  # column of the curve in progress lines
    told = "training: {loss} at step {step}"  # where a loss is not finite

    step: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    versions: list[str] = field(default_factory=lambda: [str(torch.__version__)])  # of torch, as they took part
    unseen: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)  # of steps since the last look
    latest: dict[str, float] = field(default_factory=dict)  # what the last look saw of the last step

    def note(self, found: dict[str, Tensor], now: bool, device: torch.device) -> None:
        """Keep the losses of the step that is done; look at them `now`, on a CPU, or after `LOOK` steps of a GPU."""
        self.unseen.append((self.step, found))
        if now or device.type == "cpu" or len(self.unseen) >= LOOK:
            self.look()

    def look(self) -> None:
        """Read the losses noted since the last look, which waits for the device.

        FloatingPointError where one is not finite; the state then counts the steps before that one.
        """
        if not self.unseen:
            return
        numbers = iter(torch.stack([value for _, found in self.unseen for value in found.values()]).cpu().tolist())
        rows = [(step, {name: next(numbers) for name in found}) for step, found in self.unseen]
        self.unseen.clear()
        for step, found in rows:
            if not all(map(math.isfinite, found.values())):
                self.step = step
                raise FloatingPointError(self.told.format(step=step, losses=found, **found))
            self.latest = found
            self.seen(found)

    def seen(self, found: Mapping[str, float]) -> None:
        """Take what a look saw of a step."""

    def networks(self) -> dict[str, nn.Module]:
        """Networks by the name that their tensors carry in a checkpoint."""
        raise NotImplementedError

    def optimizers(self) -> dict[str, tuple[Optimizer, nn.Module]]:
        """Optimisers by that name, each with the network that it trains."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Weights and optimiser moments under flat names, on the CPU."""
        out, dot = {}, self.separator
        for key, network in self.networks().items():
            out |= {f"{key}{dot}{name}": value for name, value in network.state_dict().items()}
        for key, (optimizer, _) in self.optimizers().items():
            for i, moments in optimizer.state_dict()["state"].items():
                out |= {f"{key}{dot}{i}{dot}{name}": torch.as_tensor(value) for name, value in moments.items()}
        return on_cpu(out)

    def facts(self) -> dict[str, Any]:
        """What is not a tensor."""
        return {"step": self.step, "seconds": self.seconds, "curve": self.curve, "versions": self.versions}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from `tensors` and `facts`.

        Moments take the memory layout of their parameter, which a fused optimiser reads them by; a checkpoint's own is
        contiguous.
        """
        for key, network in self.networks().items():
            network.load_state_dict(self.below(key, tensors))
        for key, (optimizer, network) in self.optimizers().items():
            parameters, state = list(network.parameters()), {}
            for name, value in self.below(key, tensors).items():
                index, moment = name.split(self.separator)
                laid = value if moment == "step" else torch.empty_like(parameters[int(index)]).copy_(value)
                state.setdefault(int(index), {})[moment] = laid
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
        self.curve = [dict(row) for row in facts["curve"]]
        self.versions = list(dict.fromkeys([*facts.get("versions", ()), str(torch.__version__)]))

    def below(self, key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a checkpoint that belong to `key`, under their own names."""
        start = f"{key}{self.separator}"
        return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


Training = TypeVar("Training", bound=State)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies for a safetensors file."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}


def followed(
    steps: Iterator[Training], training: State, unit: Unit, label: str, until: int, settings: Mapping[str, Any]
) -> Iterator[Training]:
    """Yield a training's states, timed and shown, with a checkpoint every ``checkpoint_every`` steps but the last.

    `training` is the state before the first of `steps`; `settings` is a section with that key and
    ``keep_checkpoints``.
    """
    meter, before = engine.StepMeter(label, until, training.step), training.seconds
    for state in steps:
        state.seconds = before + meter.seconds()
        meter(state.step, state.curve[-1][state.shown] if state.curve else float("nan"))
        yield state
        if state.step % settings["checkpoint_every"] == 0 and state.step < until:
            checkpoint(state, unit, settings["keep_checkpoints"])


def checkpoint(training: State, unit: Unit, keep: int = 2) -> None:
    """Write a resumable state of a unit atomically and keep the newest `keep`."""
    training.look()
    path = unit.work / f"step-{training.step:08d}.safetensors"
    save_state(path, training.tensors(), training.facts(), unit.hash)
    for old in sorted(unit.work.glob("step-*.safetensors"))[:-keep]:
        old.unlink()


def resume(training: State, unit: Unit) -> bool:
    """Restore the newest whole checkpoint, if there is one.

    Raises
    ------
    ValueError
        A checkpoint was written under other settings.
    """
    for path in sorted(unit.work.glob("step-*.safetensors"), reverse=True):
        try:
            tensors, facts, owner = load_state(path)
        except (KeyError, ValueError) as error:
            engine.notice(f"{path}: not a whole checkpoint ({error}); the one before it is used.")
            path.unlink(missing_ok=True)
            continue
        if owner != unit.hash:
            raise ValueError(
                f"{path}: expected a checkpoint of these settings ({unit.hash[:12]}), found one of others"
                f" ({owner[:12]}); remove {unit.work} and run stage 03 again."
            )
        training.restore(tensors, facts)
        if len(training.versions) > 1:
            engine.notice(
                f"{unit.path}: its training was begun with torch {training.versions[0]} and goes on with torch"
                f" {torch.__version__}; the front page says so. Remove {unit.work} to train with one version alone."
            )
        return True
    return False
