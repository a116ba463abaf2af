"""The convolutions of a network that conversion can replace, and the reason for each that it cannot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils import parametrize

from torch_separable._network.weights import COMPUTES_WEIGHT
from torch_separable.conversion.convolutions import Conv
from torch_separable.conversion.variants import CONVOLUTIONS, find_variant, is_variant
from torch_separable.errors import SeparableValueError
from torch_separable.nn.separable import SEPARABLE

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SEPARABLE: tuple[type[nn.Module], ...] = tuple(SEPARABLE.values())

EXCLUDED = "excluded"
_LISTED_NAMES = 8  # in an error message


@dataclass(frozen=True)
class ConvertibleLayers:
    """The convolutions of one network. `find_convertible` finds them once; every stage of conversion is given them.

    Attributes:
        convertible: convolutions that a factorisation can replace, by module name, in the order of
            ``model.named_modules()``.
        skipped: reason by module name for every other convolution.
    """

    convertible: dict[str, Conv]
    skipped: dict[str, str]

    def excluding(self, patterns: Sequence[str]) -> ConvertibleLayers:
        """Return these layers with some convolutions moved from ``convertible`` to ``skipped``.

        Args:
            patterns: names of convolutions, names of modules that contain them, or `fnmatch` patterns of either, such
                as ``*.conv1``.

        Raises:
            SeparableValueError: a pattern matches no convolution.

        Example:
            >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)))
            >>> layers = find_convertible(net)
            >>> list(layers.excluding(["0", "*.1"]).convertible), list(layers.excluding(["1"]).convertible)
            (['1.0'], ['0'])
        """
        if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
            raise SeparableValueError(f"exclude={patterns!r}: give a list of layer names, such as ['conv1']")
        names = [*self.convertible, *self.skipped]
        excluded: set[str] = set()
        for pattern in patterns:
            matched = {name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")}
            if not matched:
                listed = ", ".join(names[:_LISTED_NAMES]) + (", …" if len(names) > _LISTED_NAMES else "")
                raise SeparableValueError(
                    f"exclude={pattern!r} matches no convolution of the network and no module that contains one. "
                    f"Its convolutions are {listed}"
                )
            excluded |= matched
        return ConvertibleLayers(
            {name: conv for name, conv in self.convertible.items() if name not in excluded},
            {**self.skipped, **{name: EXCLUDED for name in self.convertible if name in excluded}},
        )


def find_convertible(model: nn.Module) -> ConvertibleLayers:
    """Find the convolutions of ``model`` that a factorisation can replace. The model is neither run nor changed.

    A module that occurs at several places is listed once, under its first name.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1))
        >>> layers = find_convertible(net)
        >>> list(layers.convertible)
        ['0']
        >>> layers.skipped
        {'1': 'already depthwise', '2': '1x1: no spatial kernel to factorise'}
    """
    convertible: dict[str, Conv] = {}
    skipped: dict[str, str] = {}
    parts_of_separable: set[int] = set()
    uses = Counter(id(tensor) for module in model.modules() for tensor in module._parameters.values())
    for name, module in model.named_modules():
        if isinstance(module, _SEPARABLE):
            parts_of_separable |= {id(part) for part in module.modules()}
        if isinstance(module, _TRANSPOSED):
            skipped[name] = "transposed convolution: not implemented"
        elif isinstance(module, CONVOLUTIONS):
            reason = _reason_to_skip(module)
            if reason is None and id(module) in parts_of_separable:
                reason = "part of a separable layer"
            if reason is None and uses[id(module._parameters.get("weight"))] > 1 and "weight" in module._parameters:
                reason = "shares its kernel with another layer"
            if reason is None:
                convertible[name] = module
            else:
                skipped[name] = reason
    return ConvertibleLayers(convertible, skipped)


def _reason_to_skip(conv: Conv) -> str | None:
    if math.prod(conv.kernel_size) == 1:
        return "1x1: no spatial kernel to factorise"
    if conv.groups == conv.in_channels and conv.groups > 1:
        return "already depthwise"
    replaced = next((method for method in ("forward", "_conv_forward") if method in vars(conv)), None)
    if replaced is not None:
        return f"its {replaced} was replaced"
    computed = "weight" not in conv._parameters and not parametrize.is_parametrized(conv, "weight")
    if computed and not any(isinstance(hook, COMPUTES_WEIGHT) for hook in conv._forward_pre_hooks.values()):
        return "its weight is computed by a hook that a separable layer cannot run"
    if conv.weight.is_complex():
        return "complex weights"
    if is_variant(conv) and not conv.weight.is_meta and find_variant(conv) is None:
        return f"{type(conv).__name__} does more than convolve, pad its input and compute its weight"
    return None
