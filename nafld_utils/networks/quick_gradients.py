"""Gradients that a CPU computes faster than torch asks its library to: the same sums, in another order.

oneDNN has a kernel of its own for the gradient of depthwise weights up to three columns wide, with stride 1 along a row
and on maps at least as high as the weights. Any other takes it 20 times as long as the convolution itself, a quarter of
a step of EfficientNet-Lite0's tail. The gradient of five by five weights is put together here of parts that it has the
kernel for. And the gradient of a mean over the map lies in memory as one number per channel, in which every layer
before it computes slowly: it is written out. Who changes a gradient here raises ``trial`` of `sweep.training`.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Conv2dSame, SelectAdaptivePool2d
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional as F

SIDE, HALF = 5, 2  # of the weights
FEWEST = 3  # pixels a side: on a smaller map a tap at the border of the weights meets nothing
ALL = slice(None)
# Taps along an axis, gradients and pixels that meet under them, and zeros beside these. Stride 1 with a border of two
# zeros: on maps as high as the weights, and on any axis of at least `FEWEST` pixels.
WHOLE = ((ALL, ALL, ALL, HALF),)
THREE = (
    (slice(1, 4), ALL, ALL, 1),
    (slice(0, 1), slice(HALF, None), slice(None, -HALF), 0),
    (slice(4, 5), slice(None, -HALF), slice(HALF, None), 0),
)
# Stride 2 on a map that its zeros were added to: of rows the library takes every second, of columns it is given them.
ROWS, SECOND = ((ALL, ALL, ALL, 0),), tuple((slice(k, None, 2), ALL, slice(k, None, 2), 0) for k in (0, 1))


def quicken(network: nn.Module) -> None:
    """Let a network of timm compute these gradients so, wherever a CPU trains it."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and _is_meant(layer):
            layer.__class__ = _Same if type(layer) is Conv2dSame else _Quick
        elif isinstance(layer, SelectAdaptivePool2d):
            layer.register_forward_pre_hook(_write_out)


def _is_meant(layer: nn.Conv2d) -> bool:
    kinds = {nn.Conv2d: ((1, 1), (HALF, HALF)), Conv2dSame: ((2, 2), (0, 0))}
    depthwise = layer.groups == layer.in_channels == layer.out_channels and layer.bias is None
    found = depthwise, layer.kernel_size, layer.dilation, layer.padding_mode, (layer.stride, layer.padding)
    return found == (True, (SIDE, SIDE), (1, 1), "zeros", kinds.get(type(layer)))


def _write_out(pool: nn.Module, inputs: tuple[Tensor]) -> None:
    if inputs[0].requires_grad:
        inputs[0].register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))


class _Quick(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or min(x.shape[2:]) < FEWEST:
            return super().forward(x)
        return _Depthwise.apply(x, self.weight, 1)


class _Same(Conv2dSame):
    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return _Depthwise.apply(pad_same(x, self.kernel_size, self.stride), self.weight, 2)


class _Depthwise(torch.autograd.Function):
    """Convolution of a map with a border of two zeros at stride 1, or of one that holds its zeros at stride 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, HALF if stride == 1 else 0
        return F.conv2d(x, weight, None, stride, ctx.padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), stride, padding = ctx.saved_tensors, ctx.stride, ctx.padding
        of_x, of_weight = ctx.needs_input_grad[:2]
        where = ((stride, stride), (padding, padding), (True, False))
        return (
            _library(gradient, x, weight, *where)[0] if of_x else None,
            _of_weight(gradient, x, weight, stride) if of_weight else None,
            None,
        )


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    rows, columns = (WHOLE if x.shape[2] >= SIDE else THREE, THREE) if stride == 1 else (ROWS, SECOND)
    out = torch.empty_like(weight)
    for row_taps, row_gradients, row_pixels, top in rows:
        for taps, gradients, pixels, left in columns:
            meet = gradient[:, :, row_gradients, gradients], x[:, :, row_pixels, pixels]
            meet = (part.contiguous(memory_format=torch.channels_last) for part in meet)
            where = ((stride, 1), (top, left), (False, True))
            out[..., row_taps, taps] = _library(*meet, weight[..., row_taps, taps], *where)[1]
    return out


def _library(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    wanted: tuple[bool, bool],
) -> tuple[Tensor, ...]:
    """The library's gradients of input and weight."""
    how = (None, stride, padding, (1, 1), False, (0, 0), len(weight))
    return torch.ops.aten.convolution_backward(gradient, x, weight, *how, (*wanted, False))
