"""Random layers for the tests of the float kernels, their PyTorch references, and the comparison.

In bfloat16 all inputs and weights are small integers, so their sums are exact in any order. What remains is the
rounding of stored values: results must agree to the last bit, and no tolerance can hide an error in a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from torch_separable.runtime import available, instruction_sets
from torch_separable.runtime.graph.ir import (
    Activate,
    Activation,
    ActivationKind,
    Convolution,
    Copy,
    Node,
    Program,
    Window,
)
from torch_separable.runtime.native.bindings import run
from torch_separable.runtime.planning.packing import padded
from torch_separable.runtime.planning.schedule import schedule
from torch_separable.runtime.planning.workspace_views import view_of

SETS = list(instruction_sets()) if available() else ["none"]
GUARD = 1024  # floats before and after the workspace that nothing may touch

ACTIVATIONS = {
    Activation(): lambda x: x,
    Activation(alpha=0.0): F.relu,
    Activation(alpha=0.0, beta=6.0): F.relu6,
    Activation(ActivationKind.LEAKY_RELU, 0.1): lambda x: F.leaky_relu(x, 0.1),
    Activation(ActivationKind.SILU): F.silu,
    Activation(ActivationKind.HARDSWISH): F.hardswish,
    Activation(ActivationKind.GELU): F.gelu,
    Activation(ActivationKind.GELU_TANH): lambda x: F.gelu(x, approximate="tanh"),
    Activation(ActivationKind.SIGMOID): torch.sigmoid,
    Activation(ActivationKind.HARDSIGMOID): F.hardsigmoid,
}
activations = st.sampled_from(list(ACTIVATIONS))
instruction_set = st.sampled_from(SETS)
threads = st.sampled_from([1, 2, 3])
precisions = st.sampled_from([torch.float32, torch.bfloat16])


def values(dtype: torch.dtype, *shape: int, fan_in: int = 1) -> Tensor:
    """Random values of about the size of 1; of 1/sqrt(fan_in) in float32."""
    if dtype == torch.float32:
        return torch.randn(shape) / math.sqrt(fan_in)
    return torch.randint(-2, 3, shape).float()


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round values as a store in this type does."""
    return x.to(dtype).float()


def execute(
    nodes: Sequence[Node], shapes: dict[str, tuple[int, int, int, int]], x: Tensor, isa: str, workers: int,
    blocks: dict[str, int] | None = None, dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Run nodes on ``x`` (value "x") and return the last one's output; nothing outside the workspace may change."""
    if dtype == torch.bfloat16 and isinstance(nodes[-1], Convolution) and nodes[-1].groups == 1:
        # The last convolution writes unrounded float32 sums; a copy that reads them rounds.
        last = nodes[-1].output
        copied = [*nodes, Copy("copy", last, "copy")]
        narrow = execute_once(copied, {**shapes, "copy": shapes[last]}, x, isa, workers, blocks, dtype)
        wide = execute_once(nodes, shapes, x, isa, workers, blocks, dtype)
        assert torch.equal(narrow.nan_to_num(), wide.bfloat16().float().nan_to_num())
        return wide
    return execute_once(nodes, shapes, x, isa, workers, blocks, dtype)


def execute_once(
    nodes: Sequence[Node], shapes: dict[str, tuple[int, int, int, int]], x: Tensor, isa: str, workers: int,
    blocks: dict[str, int] | None, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    program = Program("x", tuple(nodes), shapes, blocks or {}, frozenset(), (nodes[-1].output,), None)
    kernels = instruction_sets(dtype)[isa]
    plan = schedule(program, kernels, workers)
    memory = torch.full((plan.size + 2 * GUARD,), math.nan, dtype=dtype)
    workspace = memory[GUARD:-GUARD]
    (step,) = plan.steps
    step.operations[0].external.strides[:] = x.stride()
    run(step.operations, workspace, x.data_ptr(), workers)
    assert memory[:GUARD].isnan().all()
    assert memory[-GUARD:].isnan().all()
    name = nodes[-1].output
    result = view_of(workspace, plan, name).to(torch.float32, copy=True)
    assert (name in plan.wide) == (
        dtype == torch.bfloat16 and isinstance(nodes[-1], Convolution) and nodes[-1].groups == 1
    )
    # Channels beyond the last stay zero, so that what reads whole vectors adds nothing.
    n, c, h, w = shapes[name]
    if name not in (blocks or {}) and name not in plan.wide:
        few = kernels.narrow is not None and c <= kernels.narrow.lanes
        read = padded(c, kernels.narrow.lanes if few and kernels.narrow else kernels.lanes)
        pixels = torch.as_strided(workspace, (n * h * w, read), (plan.strides[name], 1), GUARD + plan.offsets[name])
        assert pixels[:, c:].eq(0).all() or isinstance(nodes[-1], Activate) or _maps_zero_elsewhere(nodes[-1])
    return result


def _maps_zero_elsewhere(node: Node) -> bool:
    """Sigmoids turn the zeros of the padding to something else; readers give those channels weight zero."""
    kind = getattr(node, "activation", Activation()).kind
    return kind in (ActivationKind.SIGMOID, ActivationKind.HARDSIGMOID)


def assert_close(got: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32, slack: float = 0.0) -> None:
    """Compare with exact results, allowing the rounding to ``dtype`` of a store."""
    assert got.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(got[~finite], expected[~finite])
    # The terms of every sum are of the size of 1: a lone output that they cancel to nearly nothing has their rounding.
    scale = float(expected[finite].abs().max().clamp_min(0.3)) if finite.any() else 0.0
    rounding = expected[finite].abs() * (2**-8 if dtype == torch.bfloat16 else 0.0)
    assert not finite.any() or bool(((got - expected)[finite].abs() <= 1e-5 * scale + rounding + slack).all())


def tie_tolerance(inner: Tensor, weight: Tensor, activation: Activation, dtype: torch.dtype) -> float:
    """Return how much two intermediate values near a tie of bfloat16 may change a sum, each by one rounding.

    It takes activations to have such values: those of convolutions are whole numbers.
    """
    exact = dtype == torch.float32 or activation.kind is ActivationKind.CLAMP
    return 0.0 if exact else 2 * 2**-7 * float(inner.abs().max() * weight.abs().max())


def dense_size(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


@st.composite
def windows(draw: st.DrawFn, pointwise: bool = False) -> tuple[Window, tuple[int, int]]:
    """A window, and a size of image on which it has at least one output pixel."""
    kernel = (1, 1) if pointwise else tuple(draw(st.sampled_from([1, 2, 3, 5, 7])) for _ in range(2))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(2))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(2))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(2))
    if draw(st.booleans()):  # the shapes that have kernels of their own
        side, step = draw(st.sampled_from([3, 5, 7])), draw(st.sampled_from([1, 2]))
        kernel, stride, padding, dilation = (side, side), (step, step), (side // 2, side // 2), (1, 1)
    size = tuple(
        max(draw(st.integers(1, 17)), d * (k - 1) + 1 - 2 * p)
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    )
    return Window(kernel, stride, padding, dilation), size  # type: ignore[arg-type]


def output_size(window: Window, size: tuple[int, int]) -> tuple[int, int]:
    both = zip(size, window.kernel, window.stride, window.padding, window.dilation, strict=True)
    height, width = (dense_size(*each) for each in both)
    return height, width


def convolved(x: Tensor, weight: Tensor, bias: Tensor, window: Window, groups: int = 1) -> Tensor:
    result = F.conv2d(
        x.double(), weight.double(), bias.double(), window.stride, window.padding, window.dilation, groups
    )
    return result.float()


SAME_3X3 = Window((3, 3), padding=(1, 1))
