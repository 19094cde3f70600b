"""The loop that denoisers and the GAN share: where it saves, what it counts, and how it goes on."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nafld_utils.artifacts import Unit
from nafld_utils.ldm import resumable

SETTINGS = {"checkpoint_every": 2, "keep_checkpoints": 2}


@dataclass
class Line(resumable.State):
    """A line that is fitted to nothing."""

    network: nn.Module
    adam: torch.optim.Optimizer

    def networks(self):
        return {"line": self.network}

    def optimizers(self):
        return {"adam": (self.adam, self.network)}


def start():
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    return Line(network, torch.optim.Adam(network.parameters()))


def steps(state, until):
    while state.step < until:
        state.adam.zero_grad()
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(state.step))
        state.network(x).square().sum().backward()
        state.adam.step()
        state.step += 1
        state.curve.append({"step": state.step, "loss": 0.0})
        yield state


def follow(state, unit, until):
    return list(resumable.followed(steps(state, until), state, unit, "a line", until, SETTINGS))


@pytest.fixture
def unit(tmp_path):
    return Unit(tmp_path / "unit", "a" * 64)


def test_a_checkpoint_is_written_every_so_many_steps_but_not_at_the_end(unit):
    follow(start(), unit, 8)
    assert sorted(path.name for path in unit.work.iterdir()) == [
        "step-00000004.safetensors",
        "step-00000006.safetensors",
    ]


def test_a_resumed_state_ends_as_an_uninterrupted_one_and_its_seconds_add_up(unit):
    whole, broken = start(), start()
    follow(whole, Unit(unit.path.with_name("other"), "b" * 64), 7)
    broken.seconds = 100.0
    following = resumable.followed(steps(broken, 7), broken, unit, "a line", 7, SETTINGS)
    while broken.step < 3:  # the state of step 2 is on disk, and that of step 3 is lost
        next(following)
    resumed = start()
    assert resumable.resume(resumed, unit)
    assert resumed.step == 2
    assert 100.0 < resumed.seconds < 200.0
    follow(resumed, unit, 7)
    assert resumed.seconds > 100.0
    assert resumed.curve == whole.curve
    found = resumed.tensors()
    assert set(found) == {"line.weight", "line.bias"} | {
        f"adam.{i}.{name}" for i in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")
    }
    assert all(torch.equal(value, found[name]) for name, value in whole.tensors().items())


def test_nothing_is_resumed_where_nothing_was_saved(unit):
    state = start()
    assert not resumable.resume(state, unit)
    assert state.step == 0
