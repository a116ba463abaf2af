"""Which convolutions of a network can be converted, and the view of their input that conversion works on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torch_separable._network.weights import COMPUTES_WEIGHT
from torch_separable.cost.formulas import ConvSpec
from torch_separable.errors import SeparableValueError
from torch_separable.nn.separable import SEPARABLE

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BASES = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SEPARABLE: tuple[type[nn.Module], ...] = tuple(SEPARABLE.values())


@dataclass(frozen=True)
class ConvertibleLayers:
    """The convolutions of a network: those that a factorisation can replace, and why the others stay.

    Attributes:
        convertible: convolutions by module name, in the order of ``model.named_modules()``.
        kept: reason by module name.
    """

    convertible: dict[str, Conv]
    kept: dict[str, str]


def find_convertible(model: nn.Module) -> ConvertibleLayers:
    """Sort the convolutions of ``model``; nothing is run or changed.

    A module that stands at several places is listed once, under its first name.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1))
        >>> found = find_convertible(net)
        >>> list(found.convertible)
        ['0']
        >>> found.kept
        {'1': 'depthwise already', '2': '1x1: there is no kernel to separate'}
    """
    convertible: dict[str, Conv] = {}
    kept: dict[str, str] = {}
    halves: set[int] = set()
    uses = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())
    for name, module in model.named_modules():
        if isinstance(module, _SEPARABLE):
            halves |= {id(part) for part in module.modules()}
        if isinstance(module, _TRANSPOSED):
            kept[name] = "transposed convolution: its factorisations are not implemented"
        elif isinstance(module, _BASES):
            reason = _reason_to_keep(module)
            if reason is None and id(module) in halves:
                reason = "half of a separable layer already"
            if reason is None and uses[id(module._parameters.get("weight"))] > 1 and "weight" in module._parameters:
                reason = "its kernel is another layer's as well"
            if reason is None:
                convertible[name] = module
            else:
                kept[name] = reason
    return ConvertibleLayers(convertible, kept)


def without(found: ConvertibleLayers, keep: Sequence[str]) -> ConvertibleLayers:
    """Return the survey with some convolutions kept because it was asked for.

    Args:
        found: from `find_convertible`.
        keep: names of convolutions, names of modules that hold them, or patterns of either (`fnmatch`), as ``*.conv1``.

    Raises:
        SeparableValueError: one of them matches no convolution.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)))
        >>> found = find_convertible(net)
        >>> list(without(found, ["0", "*.1"]).convertible), list(without(found, ["1"]).convertible)
        (['1.0'], ['0'])
    """
    if isinstance(keep, str) or not all(isinstance(pattern, str) for pattern in keep):
        raise SeparableValueError(f"keep={keep!r}: give a list of names, such as ['conv1']")
    names = [*found.convertible, *found.kept]
    kept = set()
    for pattern in keep:
        within = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not within:
            some = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise SeparableValueError(
                f"keep names {pattern!r}, and no convolution of the network is called or lies in that: there are {some}"
            )
        kept |= set(within)
    return ConvertibleLayers(
        {name: conv for name, conv in found.convertible.items() if name not in kept},
        {**found.kept, **{name: "as was asked for" for name in found.convertible if name in kept}},
    )


def _reason_to_keep(conv: Conv) -> str | None:
    if math.prod(conv.kernel_size) == 1:
        return "1x1: there is no kernel to separate"
    if conv.groups == conv.in_channels and conv.groups > 1:
        return "depthwise already"
    base = next(base for base in _BASES if isinstance(conv, base))
    for method in ("forward", "_conv_forward"):
        if method in vars(conv) or getattr(type(conv), method) is not getattr(base, method):
            return f"{type(conv).__name__} computes something else than {base.__name__}: it overrides {method}"
    computed = "weight" not in conv._parameters and not parametrize.is_parametrized(conv, "weight")
    if computed and not any(isinstance(hook, COMPUTES_WEIGHT) for hook in conv._forward_pre_hooks.values()):
        return "its weight is computed by code that a separable layer could not run"
    if conv.weight.is_complex():
        return "complex weights"
    return None


def in_words(conv: nn.Module) -> str:
    """Say what a convolution is, as briefly as its kind allows.

    Example:
        >>> in_words(nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4))
        'Conv2d(8, 16, 3x3/2, groups 4)'
    """
    shape: Any = conv
    stride = "" if set(shape.stride) == {1} else f"/{_times(shape.stride)}"
    parts = [str(shape.in_channels), str(shape.out_channels), f"{'x'.join(map(str, shape.kernel_size))}{stride}"]
    if set(shape.dilation) != {1}:
        parts.append(f"dilation {_times(shape.dilation)}")
    if shape.groups > 1:
        parts.append(f"groups {shape.groups}")
    return f"{type(conv).__name__}({', '.join(parts)})"


def _times(sizes: tuple[int, ...]) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else "x".join(map(str, sizes))


def spec_of(conv: Conv) -> ConvSpec:
    """Return the shape of a convolution; ``padding="same"`` is given as the smaller side of it."""
    return ConvSpec(
        conv.in_channels,
        conv.out_channels,
        kernel_size=tuple(conv.kernel_size),
        stride=tuple(conv.stride),
        padding=tuple(before for before, _ in paddings(conv)),
        dilation=tuple(conv.dilation),
        groups=conv.groups,
        bias=conv.bias is not None,
    )


def paddings(conv: Conv) -> list[tuple[int, int]]:
    """Return what is padded before and after each spatial dimension."""
    if conv.padding == "valid":
        return [(0, 0)] * len(conv.kernel_size)
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [(n // 2, n - n // 2) for n in total]
    assert not isinstance(conv.padding, str)
    return [(n, n) for n in conv.padding]


def patches_of(conv: Conv, inputs: Tensor) -> Tensor:
    """View the patches that ``conv`` sees, without copying them.

    Args:
        conv: the convolution.
        inputs: its input, (N, C, *size).

    Returns:
        Shape (N, *output size, C, *kernel size): entry ``[n, p]`` times the kernel is output pixel ``p`` of image
        ``n``.
    """
    pad = [n for pair in reversed(paddings(conv)) for n in pair]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    view = F.pad(inputs, pad, mode=mode) if any(pad) else inputs
    dimensions = len(conv.kernel_size)
    for i, (k, s, d) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        view = view.unfold(2 + i, d * (k - 1) + 1, s)
    every: tuple[Any, ...] = tuple(slice(None, None, d) for d in conv.dilation)
    view = view[(..., *every)]
    return view.movedim(1, 1 + dimensions)


def grouped_weight(conv: Conv) -> Tensor:
    """Return the kernel in float64 on the CPU by group, shape (groups, M/groups, C/groups, K)."""
    weight = conv.weight.detach().cpu().double()
    return weight.view(conv.groups, conv.out_channels // conv.groups, conv.in_channels // conv.groups, -1)
