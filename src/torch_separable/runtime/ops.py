"""The fused kernel as a PyTorch operator: ``torch.ops.torch_separable.separable_conv2d``."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_structure
from torch.utils.weak import WeakTensorKeyDictionary

from torch_separable.errors import SeparableValueError
from torch_separable.runtime.graph.ir import (
    Activation,
    ActivationKind,
    Convolution,
    Depthwise,
    DepthwiseConv,
    Node,
    Program,
    Shape,
    Window,
)
from torch_separable.runtime.graph.lower_common import blocked
from torch_separable.runtime.native.instruction_sets import chosen_set
from torch_separable.runtime.planning.schedule import schedule
from torch_separable.runtime.prepared import Prepared
from torch_separable.runtime.profiling.autotune import known_tiles

# Prepared kernels by second weight, then by all other arguments; weak keys, so that they are freed with the weights.
_prepared: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_lock = Lock()


@torch.library.custom_op("torch_separable::separable_conv2d", mutates_args=(), device_types="cpu")
def separable_conv2d(
    x: Tensor,
    first_weight: Tensor,
    first_bias: Tensor,
    second_weight: Tensor,
    second_bias: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    between: Sequence[float],
    after: Sequence[float],
    pointwise_first: bool,
) -> Tensor:
    """Compute a depthwise separable convolution in one kernel, with an activation after each stage; no gradients.

    Args:
        x: float32 (N, C, H, W) on the CPU, with any strides.
        first_weight: (C·D, 1, kh, kw); with ``pointwise_first`` (M·D, C, 1, 1).
        first_bias: (C·D,) or (M·D,).
        second_weight: (M, C·D, 1, 1); with ``pointwise_first`` (M, D, kh, kw).
        second_bias: (M,).
        stride: vertical and horizontal stride of the depthwise convolution.
        padding: zeros to the left, right, top and bottom of the depthwise convolution's input.
        dilation: vertical and horizontal distance between kernel taps.
        between: activation between the convolutions: kind, alpha and beta of `Activation`.
        after: activation of the result, likewise.
        pointwise_first: whether the pointwise convolution runs first.

    Returns:
        (N, M, H', W') in channels-last memory format.

    Raises:
        SeparableValueError: ``x`` is not 4-dimensional float32 on the CPU, or does not fit the weights.

    Example:
        >>> import math, torch.nn.functional as F
        >>> x, dw, pw = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3), torch.randn(8, 4, 1, 1)
        >>> relu = [0, 0.0, math.inf]
        >>> got = separable_conv2d(
        ...     x, dw, torch.zeros(4), pw, torch.zeros(8), [1, 1], [1, 1, 1, 1], [1, 1], relu, relu, False
        ... )
        >>> torch.allclose(got, F.conv2d(F.conv2d(x, dw, padding=1, groups=4).relu(), pw).relu(), atol=1e-5)
        True
    """
    weights = (first_weight, first_bias, second_weight, second_bias)
    _check(x, weights, pointwise_first)
    window = _window(second_weight if pointwise_first else first_weight, stride, padding, dilation)
    out = _empty(x, second_weight, window, padding)
    if out.numel() == 0:
        return out
    threads = torch.get_num_threads()
    key = (
        tuple(x.shape), tuple(out.shape), window, tuple(between), tuple(after), pointwise_first, threads,
        *((id(weight), weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights),
    )  # fmt: skip
    with _lock:
        known: dict[Any, tuple[Prepared, Any]] = _prepared.setdefault(second_weight, {})
        if key not in known:
            if len(known) >= _MOST:
                known.clear()  # most entries are of shapes and weights that are no longer in use
            program = _program(x, weights, out, window, between, after, pointwise_first)
            kernels = chosen_set()
            prepared = Prepared(schedule(program, kernels, threads, known_tiles(kernels, threads)), kernels, threads)
            known[key] = prepared, (first_weight, first_bias, second_bias)  # references keep their ids unique
        prepared = known[key][0]
    prepared.run_into(out, x.resolve_neg())  # kernels read memory and ignore a lazy negation
    return out


_MOST = 16


@separable_conv2d.register_fake
def _(
    x: Tensor, first_weight: Tensor, first_bias: Tensor, second_weight: Tensor, second_bias: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], between: Sequence[float],
    after: Sequence[float], pointwise_first: bool,
) -> Tensor:  # fmt: skip
    _check(x, (first_weight, first_bias, second_weight, second_bias), pointwise_first)
    window = _window(second_weight if pointwise_first else first_weight, stride, padding, dilation)
    return _empty(x, second_weight, window, padding)


def _check(x: Tensor, weights: Sequence[Tensor], pointwise_first: bool) -> None:
    first, first_bias, second, second_bias = weights
    if x.dim() != 4 or x.dtype != torch.float32:
        raise SeparableValueError(
            f"separable_conv2d: x has shape {tuple(x.shape)} and dtype {x.dtype}: expected (N, C, H, W) of float32"
        )
    if any(weight.dtype != torch.float32 for weight in weights):
        raise SeparableValueError("separable_conv2d: weights and biases must be float32")
    if pointwise_first:
        channels, fits = first.shape[1], first.shape[0] == second.shape[0] * second.shape[1]
        fits = fits and tuple(first.shape[2:]) == (1, 1)
    else:
        channels, fits = x.shape[1], first.shape[1] == 1 and first.shape[0] == second.shape[1]
        fits = fits and first.shape[0] % channels == 0 and tuple(second.shape[2:]) == (1, 1)
    fits = fits and first_bias.shape == first.shape[:1] and second_bias.shape == second.shape[:1]
    if not fits or x.shape[1] != channels:
        shapes = ", ".join(str(tuple(weight.shape)) for weight in weights)
        raise SeparableValueError(f"separable_conv2d: weights {shapes} do not fit x of shape {tuple(x.shape)}")


def _window(weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Window:
    left, _, top, _ = padding
    (kh, kw), (sh, sw), (dh, dw) = weight.shape[2:], stride, dilation
    return Window((int(kh), int(kw)), (int(sh), int(sw)), (int(top), int(left)), (int(dh), int(dw)))


def _empty(x: Tensor, second: Tensor, window: Window, padding: Sequence[int]) -> Tensor:
    left, right, top, bottom = padding
    height, width = (
        (n + more - d * (k - 1) - 1) // s + 1
        for n, more, k, s, d in zip(
            x.shape[2:], (top + bottom, left + right), window.kernel, window.stride, window.dilation, strict=True
        )
    )
    shape = (x.shape[0], second.shape[0], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _program(
    x: Tensor, weights: Sequence[Tensor], out: Tensor, window: Window, between: Sequence[float],
    after: Sequence[float], pointwise_first: bool,
) -> Program:  # fmt: skip
    first, first_bias, second, second_bias = (weight.detach() for weight in weights)
    inner, last = _activation(between), _activation(after)
    n, channels, h, w = x.shape
    shapes: dict[str, Shape] = {"x": (n, channels, h, w), "y": (n, *map(int, out.shape[1:]))}  # type: ignore[dict-item]
    nodes: tuple[Node, ...]
    if pointwise_first:
        rank = second.shape[1]
        shapes["p"] = (n, first.shape[0], h, w)
        filters = Depthwise(second.flatten(2).permute(1, 2, 0), second_bias[None], window, last)
        point = Convolution("p", "x", "p", blocked(first, rank, 0), blocked(first_bias, rank, 0), Window(), inner)
        nodes = (point, DepthwiseConv("y", "p", "y", filters, summed=True))
        blocks = {"p": rank} if rank > 1 else {}
    else:
        rank = first.shape[0] // channels
        filters = Depthwise(
            first.flatten(1).view(channels, rank, -1).permute(1, 2, 0), first_bias.view(channels, rank).T, window, inner
        )
        nodes = (Convolution("y", "x", "y", blocked(second, rank, 1), second_bias, Window(), last, depthwise=filters),)
        blocks = {}
    return Program("x", nodes, shapes, blocks, frozenset(), ("y",), tree_structure(0))


def _activation(numbers: Sequence[float]) -> Activation:
    kind, alpha, beta = numbers
    return Activation(ActivationKind(int(kind)), alpha, beta)
