"""What subclasses of convolutions compute that only pad their input or compute their weight.

Networks from TensorFlow have a ``Conv2d`` whose ``forward`` pads as "same" at any stride. Others standardise weights.
Both are convolutions with another padding and another weight, so they convert. A subclass is run on two random inputs
of different sizes while a dispatch mode watches: it must call one convolution, with the same weight for both, and its
output must be that convolution of the padded input.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from torch_separable._network.outputs import evaluating
from torch_separable.nn.padding import SamePadding

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONVOLUTION = torch.ops.aten.convolution.default
_IMAGES = 2
_TOLERANCE = 1e-4  # of the largest output; another padding or weight changes the output by far more


@dataclass(frozen=True)
class Variant:
    """What a subclass computes.

    Attributes:
        same_padding: whether it pads as `SamePadding`; otherwise by its own ``padding``.
        weight: the weight that it convolves with, of the shape of its own.
    """

    same_padding: bool
    weight: Tensor


def is_variant(conv: nn.Module) -> bool:
    """Return whether the class of ``conv`` overrides the arithmetic of a convolution."""
    base = next(base for base in CONVOLUTIONS if isinstance(conv, base))
    return any(getattr(type(conv), method) is not getattr(base, method) for method in ("forward", "_conv_forward"))


def find_variant(conv: Any) -> Variant | None:
    """Return what a subclass computes, or ``None`` if it does more than pad its input and compute its weight.

    Example:
        >>> class Centred(nn.Conv2d):
        ...     def forward(self, input):
        ...         return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)
        >>> conv = Centred(4, 8, 3, padding=1)
        >>> variant = find_variant(conv)
        >>> bool(torch.allclose(variant.weight, conv.weight - conv.weight.mean())), variant.same_padding
        (True, False)
    """
    try:
        runs = [_watch(conv, extra) for extra in (0, 1)]
    except Exception:  # a forward of its own may fail on made-up images in any way; then it is not known to only pad
        return None
    if runs[0] is None or runs[1] is None:
        return None
    weight, bias, other = runs[0].weight, runs[0].bias, runs[1].weight
    if weight.shape != conv.weight.shape or not torch.allclose(weight, other):
        return None
    if (bias is None) != (conv.bias is None) or (bias is not None and not torch.equal(bias, conv.bias)):
        return None
    for same in (False, True):
        if all(_explains(conv, run, same) for run in runs if run is not None):
            _SAME_PADDING[conv] = same
            return Variant(same, weight)
    return None


_SAME_PADDING: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def pads_same(conv: nn.Module) -> bool:
    """Return whether a convertible convolution is a variant that pads as `SamePadding`.

    The answer is stored for each module: inside a forward pass, where hooks ask, nothing may be run.
    """
    if conv not in _SAME_PADDING:
        variant = find_variant(conv) if is_variant(conv) else None
        _SAME_PADDING[conv] = variant is not None and variant.same_padding
    return _SAME_PADDING[conv]


def effective_weight(conv: Any) -> Tensor:
    """Return the weight that a convertible convolution convolves with."""
    variant = find_variant(conv) if is_variant(conv) else None
    weight: Tensor = conv.weight.detach() if variant is None else variant.weight
    return weight


def same_padding(conv: Any) -> SamePadding:
    """Return the padding of a convolution that `pads_same`."""
    return SamePadding(tuple(conv.kernel_size), tuple(conv.stride), tuple(conv.dilation), conv.padding_mode)


class _Watch(TorchDispatchMode):
    """Collects the arguments of convolutions."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _CONVOLUTION:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Run:
    """A pass of a module on random images, and the weight and bias of the one convolution that it called."""

    images: Tensor
    output: Tensor
    weight: Tensor
    bias: Tensor | None


def _watch(conv: Any, extra: int) -> _Run | None:
    """Run a convolution module on random images, ``extra`` pixels larger; ``None`` if it calls another convolution."""
    window = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    size = [d * (k - 1) + 3 * s + 1 + extra for k, s, d in window]
    generator = torch.Generator().manual_seed(extra)
    images = torch.randn(_IMAGES, conv.in_channels, *size, generator=generator).to(conv.weight)
    with evaluating(conv), torch.no_grad(), _Watch() as watch:
        output = type(conv).forward(conv, images.clone())
    if len(watch.calls) != 1 or not isinstance(output, Tensor):
        return None
    _, weight, bias, stride, _, dilation, transposed, _, groups = watch.calls[0]
    expected = (list(conv.stride), list(conv.dilation), False, conv.groups)
    if (list(stride), list(dilation), transposed, groups) != expected:
        return None
    return _Run(images, output, weight.detach().clone(), bias)


def _explains(conv: Any, run: _Run, same: bool) -> bool:
    """Return whether the output is the convolution of the images with this padding."""
    images, output, weight = run.images, run.output, run.weight
    with torch.no_grad():
        if same:
            convolve = _FUNCTIONS[len(conv.kernel_size)]
            padded = same_padding(conv)(images)
            ours = convolve(padded, weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)
        else:
            base = next(base for base in CONVOLUTIONS if isinstance(conv, base))
            ours = base._conv_forward(conv, images, weight, conv.bias)
    return ours.shape == output.shape and bool((ours - output).abs().max() <= _TOLERANCE * output.abs().max())
