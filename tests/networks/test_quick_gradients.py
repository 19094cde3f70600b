"""Gradients that a CPU computes in another way: the numbers of torch, where they are meant and nowhere else."""

import copy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from nafld_utils import networks
from nafld_utils.networks import quick_gradients


def gradients(layer, x):
    """Output, and gradients of input and weight, of a loss that weighs every number of the output differently."""
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape).sin()).sum().backward()
    return out.detach(), x.grad, layer.weight.grad


def depthwise(kind, **options):
    return kind(6, 6, 5, groups=6, bias=False, **options).double()


@pytest.mark.parametrize("shape", [(3, 3), (3, 7), (4, 4), (5, 5), (5, 3), (6, 9), (10, 10)])
@pytest.mark.parametrize(("kind", "options"), [(nn.Conv2d, {"padding": 2}), (Conv2dSame, {"stride": 2})])
def test_gradients_are_those_of_torch(kind, options, shape):
    plain = depthwise(kind, **options)
    quick = copy.deepcopy(plain)
    network = nn.Sequential(quick)
    networks.quicken(network)
    assert type(quick) is not kind
    x = torch.randn(4, 6, *shape, dtype=torch.float64).to(memory_format=torch.channels_last)
    for found, expected in zip(gradients(quick, x), gradients(plain, x), strict=True):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert network.state_dict().keys() == nn.Sequential(plain).state_dict().keys()


@pytest.mark.parametrize("shape", [(1, 1), (2, 5)])
def test_maps_too_small_for_parts_are_left_to_torch(shape):
    plain = depthwise(nn.Conv2d, padding=2)
    quick = copy.deepcopy(plain)
    networks.quicken(quick)
    x = torch.randn(2, 6, *shape, dtype=torch.float64)
    for found, expected in zip(gradients(quick, x), gradients(plain, x), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 6, 5, groups=6, padding=1, bias=False),
        nn.Conv2d(6, 6, 5, groups=6, padding=2),
        nn.Conv2d(6, 6, 5, groups=3, padding=2, bias=False),
        nn.Conv2d(6, 6, 3, groups=6, padding=1, bias=False),
        nn.Conv2d(6, 6, 5, groups=6, padding=2, bias=False, stride=2),
        nn.Conv2d(6, 6, 5, groups=6, padding=4, bias=False, dilation=2),
        nn.Conv2d(6, 6, 5, groups=6, padding=2, bias=False, padding_mode="reflect"),
    ],
)
def test_other_layers_stay_as_they_are(layer):
    kind = type(layer)
    networks.quicken(layer)
    assert type(layer) is kind


def test_a_step_of_a_networks_tail_is_the_same_and_its_layers_see_whole_gradients():
    _, plain = networks.split(networks.load("tf_efficientnet_lite0", "bundled"), "tf_efficientnet_lite0", "paper")
    plain = plain.double().train()
    quick, seen = copy.deepcopy(plain), []
    networks.quicken(quick)
    swapped = [type(layer) for layer in quick.modules() if type(layer).__module__ == quick_gradients.__name__]
    assert (swapped.count(quick_gradients._Quick), swapped.count(quick_gradients._Same)) == (3, 1)
    quick[-4].register_full_backward_hook(lambda layer, before, after: seen.append(after[0].stride()))
    x = torch.randn(3, 112, 10, 10, dtype=torch.float64).to(memory_format=torch.channels_last)
    grads = []
    for tail in (plain, quick):
        torch.manual_seed(0)
        nn.functional.cross_entropy(tail(x), torch.tensor([0, 1, 1])).backward()
        grads.append([weight.grad for weight in tail.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(*grads, strict=True))
    assert seen == [(1280 * 25, 1, 1280 * 5, 1280)]
