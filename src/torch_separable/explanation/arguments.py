"""Read the layer to explain, given as a module, a `ConvSpec` or arguments, into its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

from torch import nn
from torch.nn.parameter import UninitializedParameter

from torch_separable.cost.formulas import ConvSpec
from torch_separable.errors import SeparableValueError
from torch_separable.explanation.stages import Order, Stage, separable_stages, single_stage

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

# Names of the depthwise and the pointwise child: timm's and this package's, and those of tutorials.
_SEPARABLE_CHILDREN = (("conv_dw", "conv_pw"), ("depth_conv", "point_conv"))


class ConvArguments(TypedDict, total=False):
    """Arguments of a convolution: those of ``torch.nn.Conv2d``, and four more.

    ``transposed`` and ``output_padding`` describe a transposed convolution; ``order`` and ``depth_multiplier`` a
    depthwise separable one.
    """

    in_channels: int
    out_channels: int
    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: int | tuple[int, ...] | Literal["same", "valid"]
    dilation: int | tuple[int, ...]
    groups: int
    bias: bool
    transposed: bool
    output_padding: int | tuple[int, ...]
    order: Order | None
    depth_multiplier: int


@dataclass(frozen=True)
class Subject:
    """The layer to explain.

    Attributes:
        stages: its convolutions in execution order: one, or two for a depthwise separable layer.
        order: order of a depthwise separable layer; ``None`` for a single convolution.
        notes: parts of the layer that are not counted.
    """

    stages: tuple[Stage, ...]
    order: Order | None = None
    notes: tuple[str, ...] = ()


def read(layer: nn.Module | ConvSpec | None, input_shape: Sequence[int] | None, arguments: ConvArguments) -> Subject:
    """Read any of the forms that `torch_separable.explain` accepts.

    Raises:
        SeparableValueError: both a layer and arguments are given, or neither; the layer is of an unknown class; a value
            breaks a rule of convolutions; or ``input_shape`` does not fit.
    """
    if layer is not None and arguments:
        raise SeparableValueError(
            f"explain() was given {type(layer).__name__} and {', '.join(arguments)}: "
            "give a layer, or the arguments of one"
        )
    if isinstance(layer, ConvSpec):
        if len(layer.kernel_size) > 3:
            raise SeparableValueError(f"kernel_size={layer.kernel_size}: 1 to 3 spatial dimensions are explained")
        return Subject((single_stage(layer, _spatial(input_shape, len(layer.kernel_size), layer.in_channels)),))
    if isinstance(layer, nn.Module):
        return _from_module(layer, input_shape)
    if layer is not None:
        raise SeparableValueError(
            f"explain() was given {layer!r} ({type(layer).__name__}): it takes a torch.nn convolution, a depthwise "
            "separable one, a ConvSpec, or in_channels=, out_channels=, kernel_size=, … by name"
        )
    return _from_arguments(input_shape, arguments)


def _spatial(input_shape: Sequence[int] | None, dimensions: int, in_channels: int) -> tuple[int, ...]:
    """Return the spatial part of ``input_shape``; if it has channels, they must be ``in_channels``."""
    axes = ", ".join("DHW"[3 - dimensions :]) if dimensions > 1 else "L"
    forms = f"give ({axes}{',' if dimensions == 1 else ''}) or (C, {axes}), without a batch dimension"
    size = _size_tuple(input_shape, forms)
    if len(size) == dimensions + 1:
        if size[0] != in_channels:
            raise SeparableValueError(
                f"input_shape={size} has {size[0]} channels; the convolution has in_channels={in_channels}: "
                f"give (C, {axes}) with C={in_channels}, or ({axes})"
            )
        return size[1:]
    if len(size) != dimensions:
        raise SeparableValueError(
            f"input_shape={size} has {len(size)} entries; the convolution has {dimensions} spatial "
            f"dimension{'s' if dimensions > 1 else ''}: {forms}"
        )
    return size


def _size_tuple(input_shape: object, forms: str) -> tuple[int, ...]:
    if input_shape is None:
        raise SeparableValueError(f"input_shape is missing: {forms}")
    if not isinstance(input_shape, Sequence) or isinstance(input_shape, str) or not input_shape:
        raise SeparableValueError(f"input_shape={input_shape!r}: {forms}")
    size = tuple(input_shape)
    if not all(_is_int(n) and n >= 1 for n in size):
        raise SeparableValueError(f"input_shape={size}: every entry must be an integer of at least 1")
    return size


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _from_module(module: nn.Module, input_shape: Sequence[int] | None) -> Subject:
    if isinstance(module, _CONVOLUTIONS + _TRANSPOSED):
        spec, same = _spec_of(module, "the layer")
        return Subject((single_stage(spec, _spatial(input_shape, len(spec.kernel_size), spec.in_channels), same),))
    children = dict(module.named_children())
    for names in _SEPARABLE_CHILDREN:
        if all(isinstance(children.get(name), _CONVOLUTIONS + _TRANSPOSED) for name in names):
            return _from_separable(module, names, input_shape)
    raise SeparableValueError(
        f"explain() was given {type(module).__name__}: it explains one torch.nn convolution, or a depthwise separable "
        "layer with children conv_dw and conv_pw (or depth_conv and point_conv). For a network use summary()"
    )


def _from_separable(module: nn.Module, names: tuple[str, str], input_shape: Sequence[int] | None) -> Subject:
    depthwise, pointwise = (module.get_submodule(name) for name in names)
    assert isinstance(depthwise, _CONVOLUTIONS + _TRANSPOSED)
    assert isinstance(pointwise, _CONVOLUTIONS + _TRANSPOSED)
    if hasattr(module, "pad"):
        raise SeparableValueError(
            f"explain() does not support {type(module).__name__}(padding='same') with a stride above 1, because its "
            "padding depends on the size of the input: give padding as numbers"
        )
    spatial, same = _spec_of(depthwise, names[0])
    mixing, _ = _spec_of(pointwise, names[1])
    order = _order(getattr(module, "order", "depthwise_first"))
    where = f"{type(module).__name__} ({order})"
    if mixing != ConvSpec(mixing.in_channels, mixing.out_channels, (1,) * len(spatial.kernel_size), bias=mixing.bias):
        raise SeparableValueError(
            f"{where}: {names[1]} must be a 1x1 convolution of as many dimensions as {names[0]}, with stride 1, no "
            f"padding and groups=1, but is {pointwise}"
        )
    first, second = (spatial, mixing) if order == "depthwise_first" else (mixing, spatial)
    channels = spatial.in_channels if order == "depthwise_first" else spatial.out_channels
    if spatial.groups != channels:
        raise SeparableValueError(
            f"{where}: {names[0]} must have a group for each {'input' if order == 'depthwise_first' else 'output'} "
            f"channel, groups={channels}, but has groups={spatial.groups}"
        )
    if first.out_channels != second.in_channels:
        raise SeparableValueError(
            f"{where}: the first convolution returns {first.out_channels} channels, but the second has in_channels="
            f"{second.in_channels}: they must be equal"
        )
    size = _spatial(input_shape, len(spatial.kernel_size), first.in_channels)
    if order == "depthwise_first":
        one = Stage("depthwise", spatial, size, same)
        stages = (one, Stage("pointwise", mixing, one.output_size))
    else:
        stages = (Stage("pointwise", mixing, size), Stage("depthwise", spatial, size, same))
    others = [
        name for name, child in module.named_children() if name not in names and any(True for _ in child.parameters())
    ]
    notes = (f"Not counted: the parameters of {', '.join(others)}; only convolutions are explained.",) if others else ()
    return Subject(stages, order, notes)


def _spec_of(conv: _Conv, name: str) -> tuple[ConvSpec, bool]:
    """Return the `ConvSpec` of a ``torch.nn`` convolution, and whether its padding is "same"."""
    if isinstance(conv.weight, UninitializedParameter):
        raise SeparableValueError(
            f"{name} is an uninitialized {type(conv).__name__}, so its in_channels are unknown: run it once, or give "
            "the channels"
        )
    padding, same = _padding(conv.padding, conv.kernel_size, conv.dilation)
    spec = ConvSpec(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
        isinstance(conv, _TRANSPOSED),
        conv.output_padding,
    )
    return spec, same


def _padding(
    padding: str | tuple[int, ...], kernel_size: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], bool]:
    """Return the zeros at the beginning of each dimension, and whether padding is "same"."""
    if padding == "same":
        return tuple(d * (k - 1) // 2 for k, d in zip(kernel_size, dilation, strict=True)), True
    return ((0,) * len(kernel_size), False) if isinstance(padding, str) else (padding, False)


def _order(order: object) -> Order:
    for known in get_args(Order):
        if order == known:
            return known  # type: ignore[no-any-return]
    raise SeparableValueError(f"order={order!r}: must be one of {', '.join(get_args(Order))}")


def _from_arguments(input_shape: Sequence[int] | None, given: ConvArguments) -> Subject:
    unknown = [name for name in given if name not in ConvArguments.__annotations__]
    if unknown:
        raise SeparableValueError(
            f"explain() has no argument {', '.join(unknown)}; it accepts {', '.join(ConvArguments.__annotations__)}"
        )
    missing = [name for name in ("in_channels", "out_channels", "kernel_size") if name not in given]
    if missing:
        raise SeparableValueError(
            "explain() needs a layer, or in_channels, out_channels and kernel_size by name; "
            f"{', '.join(missing)} missing"
        )
    for name in ("in_channels", "out_channels", "groups", "depth_multiplier"):
        value = given.get(name, 1)
        if not _is_int(value) or value < 1:  # type: ignore[operator]
            raise SeparableValueError(f"{name}={value!r}: must be an integer of at least 1")
    for name in ("bias", "transposed"):
        if not isinstance(given.get(name, True), bool):
            raise SeparableValueError(f"{name}={given.get(name)!r}: must be True or False")
    kernel_size = _extents("kernel_size", given["kernel_size"], _dimensions(given["kernel_size"], input_shape))
    dimensions = len(kernel_size)
    stride = _extents("stride", given.get("stride", 1), dimensions)
    dilation = _extents("dilation", given.get("dilation", 1), dimensions)
    padding = given.get("padding", 0)
    transposed = given.get("transposed", False)
    if isinstance(padding, str) and (padding not in ("same", "valid") or transposed):
        raise SeparableValueError(
            f"padding={padding!r}: must be numbers" + ("" if transposed else ", 'same' or 'valid'")
        )
    if padding == "same" and max(stride) > 1:
        raise SeparableValueError(f"padding='same' with stride={stride}: 'same' is defined for stride 1 only")
    zeros, same = _padding(
        padding if isinstance(padding, str) else _extents("padding", padding, dimensions), kernel_size, dilation
    )
    if min(dilation) < 1 or min(kernel_size) < 1:
        raise SeparableValueError(f"kernel_size={kernel_size}, dilation={dilation}: every entry must be at least 1")
    spec = ConvSpec(
        given["in_channels"],
        given["out_channels"],
        kernel_size,
        stride,
        zeros,
        dilation,
        given.get("groups", 1),
        given.get("bias", True),
        transposed,
        _extents("output_padding", given.get("output_padding", 0), dimensions),
    )
    stage = single_stage(spec, _spatial(input_shape, dimensions, spec.in_channels), same)
    if given.get("order") is None:
        if given.get("depth_multiplier", 1) > 1:
            raise SeparableValueError(
                f"depth_multiplier={given['depth_multiplier']} without order: give order='depthwise_first' or "
                "'pointwise_first', or, for a depthwise convolution, out_channels = depth_multiplier · in_channels"
            )
        return Subject((stage,))
    if spec.groups > 1:
        raise SeparableValueError(
            f"groups={spec.groups} with order={given['order']!r}: the pointwise convolution of an explained layer has "
            "one group. Explain its two convolutions one by one, or count the layer with summary"
        )
    order = _order(given["order"])
    return Subject(separable_stages(stage, order, given.get("depth_multiplier", 1)), order)


def _dimensions(kernel_size: object, input_shape: Sequence[int] | None) -> int:
    """Return the number of spatial dimensions: the kernel's, or for a single number 2 unless the input has others."""
    if isinstance(kernel_size, Sequence) and not isinstance(kernel_size, str):
        return len(kernel_size)
    size = _size_tuple(input_shape, "give (H, W) or (C, H, W), without a batch dimension")
    return {1: 1, 4: 3}.get(len(size), 2)


def _extents(name: str, value: object, dimensions: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * dimensions
    if not 1 <= len(values) <= 3 or not all(_is_int(entry) for entry in values):
        raise SeparableValueError(
            f"{name}={value!r}: give an integer, or one for each of the 1 to 3 spatial dimensions"
        )
    return values  # type: ignore[return-value]
