"""A GPU that is not there: tensors of torch's fake CUDA device beside real ones of the host, and what crosses over.

Contract: within `FakeGPU` work on ``cuda:0`` has shapes, types and devices but no numbers, and work on the host is
real. A tensor of the host that meets one of the GPU raises, as on a GPU. Whatever a GPU's stream would be waited for is
counted in ``waits``, with where it was asked for. What products are computed in is in ``products``: the GPU may round
fp32 to 19 bits (`TF32`) unless a path forbids it. A backward pass does not exist there: `FakeGPU` lets one leave
gradients of zeros.
"""

import contextlib
import sys
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from nafld_utils.engine import arithmetic

GPU = torch.device("cuda", 0)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
NUMBERS = ("aten._local_scalar_dense", "aten.item", "aten.is_nonzero")
UNKNOWN_SIZE = ("aten.nonzero", "aten.masked_select", "aten.unique", "aten._unique2", "aten.equal")
PRODUCTS = ("convolution", "conv2d", "mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "cdist", "_cdist_forward")
PRODUCTS += ("scaled_dot_product", "_scaled_dot_product")
TF32 = "tf32"


class FakeGPU(FakeTensorMode):
    """A mode in which ``cuda:0`` can be computed on; ``waits`` are lines that waited, ``products`` names and types."""

    def __init__(self):
        super().__init__(allow_non_fake_inputs=True)
        self.waits, self.products, self.pinned, self.trained, self.inside = [], set(), {}, [], False

    def _pin(self, tensor):
        copy = tensor.clone()
        self.pinned[id(copy)] = copy  # kept, so that no other takes its place
        return copy

    def _no_backward(self, loss):
        if not loss.requires_grad:
            raise RuntimeError("backward of what needs no gradient")
        for p in (p for module in self.trained for p in module.parameters() if p.requires_grad):
            p.grad = torch.zeros_like(p)

    def train(self, *modules):
        """Name the networks whose parameters a backward pass gives gradients to."""
        self.trained += modules

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        kwargs, leaves = kwargs or {}, tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        here = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
        to_gpu = any(isinstance(leaf, torch.device) and leaf.type == "cuda" for leaf in leaves)
        if len(here) == len(tensors) and not to_gpu:
            return func(*args, **kwargs)
        if func == torch.ops.aten._foreach_copy_.default:
            for there, given in zip(*args[:2], strict=True):
                self.__torch_dispatch__(COPIES[1], types, (there, given, *args[2:]), kwargs)
            return None
        if func == torch.ops.aten.to.dtype_layout:  # as it comes in inference mode
            func, kwargs = COPIES[0], {key: value for key, value in kwargs.items() if key != "copy"}
        if self.inside:  # what torch makes of an operation is not the project's work
            return super().__torch_dispatch__(func, types, args, kwargs)
        name = str(func)
        if name.startswith(NUMBERS):
            self._wait(name)
            return {torch.bool: True, torch.int64: 1}.get(args[0].dtype, 1.0)
        if func in COPIES and (kwargs.get("device") == torch.device("cpu") or _written(func, args)):
            self._wait(f"{name} to the host")
            return args[0].fill_(1) if func == COPIES[1] else torch.ones(args[0].shape, dtype=_type(args, kwargs))
        self._check(func, name, args, kwargs, here, to_gpu)
        if name.split(".")[1].startswith(PRODUCTS):
            self.products |= {(name.split(".")[1], _computed_in(name, tensor.dtype)) for tensor in tensors}
        self.inside = True
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self.inside = False

    def _check(self, func, name, args, kwargs, here, to_gpu):
        """What waits, or what a GPU would refuse."""
        if func in COPIES and here:
            queued = kwargs.get("non_blocking") or (func == COPIES[1] and len(args) > 2 and args[2])
            if not (queued and all(id(tensor) in self.pinned for tensor in here)) and any(t.dim() for t in here):
                self._wait(f"{name} from the host")
        elif name.startswith("aten.index") and here:  # torch copies an index to the GPU by itself
            if not isinstance(args[0], FakeTensor):
                raise RuntimeError(f"{name}: a tensor of the host is indexed by one of the GPU")
            self._wait(f"{name} by the host")
        elif any(tensor.dim() for tensor in here) and not to_gpu:
            raise RuntimeError(f"{name}: tensors of the host and of the GPU meet")
        if name.startswith(UNKNOWN_SIZE) or (name.startswith("aten.index") and _masked(args)):
            self._wait(name)
            raise RuntimeError(f"{name}: its size is known to the GPU alone")

    def _wait(self, name):
        frame = sys._getframe(1)
        while frame and "/nafld_utils/" not in frame.f_code.co_filename:
            frame = frame.f_back
        self.waits.append(f"{name}, {frame.f_code.co_filename}:{frame.f_lineno}" if frame else name)


def _moved_once(move):
    """`torch.nn.Module.to`, which cannot lay out parameters anew that are there already."""

    def to(module, *args, **how):
        parameters = list(module.parameters())
        there = parameters and all(isinstance(p, FakeTensor) for p in parameters)
        return module if there else move(module, *args, **how)

    return to


def _computed_in(name, dtype):
    """Type of a product, of complex numbers that of their parts; `TF32` where fp32 may be rounded."""
    if dtype not in (torch.float32, torch.complex64):
        return dtype
    matrices = torch.get_float32_matmul_precision() != "highest"
    return TF32 if (torch.backends.cudnn.allow_tf32 if "conv" in name else matrices) else torch.float32


def _type(args, kwargs):
    return kwargs.get("dtype") or args[0].dtype


def _written(func, args):
    """Whether a copy writes into the host what the GPU has."""
    return func == COPIES[1] and not isinstance(args[0], FakeTensor)


def _masked(args):
    return any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))


@contextlib.contextmanager
def fake_gpu():
    """A `FakeGPU` in force, with what torch asks of a driver taken out."""
    gpu = FakeGPU()
    with contextlib.ExitStack() as changes:
        for place, name, new in (
            # torch takes autocast of a GPU back where it sees none
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            (torch.cuda, "Stream", mock.MagicMock()),
            (torch.cuda, "current_stream", mock.MagicMock()),
            (torch.cuda, "stream", lambda _: contextlib.nullcontext()),
            (torch.nn.Module, "to", _moved_once(torch.nn.Module.to)),
            (torch.Tensor, "pin_memory", lambda tensor: gpu._pin(tensor)),
            (torch.Tensor, "backward", lambda loss, *_, **__: gpu._no_backward(loss)),
            (torch.autograd, "grad", lambda outputs, inputs, **_: tuple(map(torch.zeros_like, tree_leaves(inputs)))),
        ):
            changes.enter_context(mock.patch.object(place, name, new))
        changes.enter_context(arithmetic("tf32", GPU))
        changes.enter_context(gpu)
        yield gpu
