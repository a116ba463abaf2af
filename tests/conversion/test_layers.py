from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm

from torch_separable._network.weights import refresh_weights
from torch_separable.conversion.convolutions import grouped_weight, patches_of, spec_of
from torch_separable.conversion.layers import find_convertible

CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODES = ["zeros", "reflect", "replicate", "circular"]


class Padded(nn.Conv2d):
    """A subclass that only sets arguments, as many libraries have them."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


class Gated(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).sigmoid()


class Dynamic(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight * input.mean(), bias)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "already depthwise"),
        (nn.Conv1d(8, 24, 3, groups=8), "already depthwise"),
        (nn.Conv2d(8, 4, 1), "1x1: no spatial kernel to factorise"),
        (nn.Conv3d(8, 4, 1, groups=2), "1x1: no spatial kernel to factorise"),
        (nn.ConvTranspose2d(8, 4, 3), "transposed convolution: not implemented"),
        (nn.ConvTranspose1d(8, 4, 3), "transposed convolution: not implemented"),
        (Gated(8, 4, 3), "Gated does more than convolve, pad its input and compute its weight"),
        (Dynamic(8, 4, 3), "Dynamic does more than convolve, pad its input and compute its weight"),
        (nn.Conv2d(8, 4, 3, dtype=torch.complex64), "complex weights"),
    ],
)
def test_layer_that_cannot_be_converted_is_skipped_with_a_reason(layer: nn.Module, reason: str) -> None:
    found = find_convertible(nn.ModuleDict({"skipped": layer, "taken": nn.Conv2d(8, 4, 3)}))
    assert found.skipped == {"skipped": reason}
    assert list(found.convertible) == ["taken"]


def test_convolution_with_a_replaced_forward_is_skipped() -> None:
    conv = nn.Conv2d(4, 4, 3)
    conv.forward = lambda x: F.relu(F.conv2d(x, conv.weight))  # type: ignore[method-assign]
    assert find_convertible(conv).skipped == {"": "its forward was replaced"}


@pytest.mark.parametrize(
    "layer",
    [
        Padded(8, 4, 3),
        nn.Conv2d(8, 4, 3, groups=2),
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(8, 4, (1, 3)),
        nn.Conv1d(8, 4, 5),
        nn.Conv3d(8, 4, 3),
        nn.Conv2d(8, 4, 3, dtype=torch.float16),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 3)),
    ],
)
def test_ordinary_convolutions_are_convertible(layer: nn.Module) -> None:
    found = find_convertible(nn.Sequential(layer))
    assert list(found.convertible) == ["0"]
    assert not found.skipped


def test_shared_layer_is_listed_once_under_its_first_name() -> None:
    shared = nn.Conv2d(4, 4, 3)
    net = nn.ModuleDict({"a": nn.Sequential(nn.ReLU(), shared), "b": nn.ModuleList([shared, nn.Conv2d(4, 4, 3)])})
    assert list(find_convertible(net).convertible) == ["a.1", "b.1"]


def applied(conv: Any, inputs: Tensor) -> Tensor:
    """The convolution by its patches: (N, M, *output size)."""
    patches, dimensions = patches_of(conv, inputs), len(conv.kernel_size)
    kernel = conv.weight.reshape(conv.groups, conv.out_channels // conv.groups, -1)
    x = patches.flatten(1 + dimensions).unflatten(-1, (conv.groups, -1))
    return torch.einsum("n...gi,gmi->n...gm", x, kernel).flatten(-2).movedim(-1, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@given(data=st.data())
def test_patches_times_kernel_equal_the_convolution(dimensions: int, mode: str, data: st.DataObject) -> None:
    def one_each(least: int, most: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(least, most)) for _ in range(dimensions))

    groups = data.draw(st.sampled_from([1, 2]))
    padding: Any = data.draw(st.sampled_from(["same", "valid", "numbers"]))
    conv = CONV[dimensions](
        2 * groups,
        groups,
        one_each(1, 4),
        stride=1 if padding == "same" else one_each(1, 3),
        padding=one_each(0, 3) if padding == "numbers" else padding,
        dilation=one_each(1, 2),
        groups=groups,
        bias=False,
        padding_mode=mode,
        dtype=torch.float64,
    )
    inputs = torch.randn(2, 2 * groups, *one_each(8, 10), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(applied(conv, inputs), conv(inputs))


@pytest.mark.parametrize("kernel", [(3, 3), (1, 5), (2, 4)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_patches_equal_unfold(kernel: tuple[int, int], stride: int, dilation: int) -> None:
    conv = nn.Conv2d(3, 4, kernel, stride=stride, padding=1, dilation=dilation)
    inputs = torch.randn(2, 3, 11, 12)
    unfolded = F.unfold(inputs, kernel, dilation=dilation, padding=1, stride=stride)  # (N, C·K, positions)
    assert torch.equal(patches_of(conv, inputs).flatten(3).flatten(1, 2).transpose(1, 2), unfolded)


@pytest.mark.parametrize("mode", MODES)
def test_same_padding_of_even_kernels_equals_torch(mode: str) -> None:
    conv = nn.Conv2d(2, 3, (4, 2), padding="same", dilation=(1, 3), padding_mode=mode, bias=False)
    inputs = torch.randn(1, 2, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(applied(conv, inputs), conv(inputs))
    assert patches_of(conv, inputs).shape == (1, 9, 8, 2, 4, 2)


def test_patches_are_a_view_of_the_input() -> None:
    conv = nn.Conv2d(3, 4, 3)
    inputs = torch.randn(2, 3, 8, 8)
    assert patches_of(conv, inputs).untyped_storage().data_ptr() == inputs.untyped_storage().data_ptr()


def test_weights_of_groups_keep_their_channels() -> None:
    conv = nn.Conv2d(6, 4, 3, groups=2)
    weight = grouped_weight(conv)
    assert weight.shape == (2, 2, 3, 9)
    assert weight.dtype == torch.float64
    assert torch.equal(weight[1, 0, 2].float(), conv.weight[2, 2].flatten())


def test_spec_counts_weights_and_parameters() -> None:
    conv = nn.Conv2d(6, 4, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
    spec = spec_of(conv)
    assert (spec.weights, spec.parameters) == (conv.weight.numel(), conv.weight.numel() + 4)
    assert spec.output_size((9, 20)) == conv(torch.zeros(1, 6, 9, 20)).shape[2:]


@pytest.mark.parametrize(
    ("wrap", "source"),
    [
        (weight_norm, "weight_g"),
        (spectral_norm, "weight_orig"),
        (partial(prune.l1_unstructured, name="weight", amount=0.5), "weight_orig"),
    ],
    ids=["weight_norm", "spectral_norm", "pruned"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_computed_by_a_hook_are_refreshed_and_can_be_copied(wrap: Any, source: str) -> None:
    conv = wrap(nn.Conv2d(4, 4, 3)).eval()
    with torch.no_grad():
        stale = conv.weight.clone()
        getattr(conv, source).add_(torch.rand_like(getattr(conv, source)))
    refresh_weights(conv)
    copied = copy.deepcopy(conv)  # refused by PyTorch while the weight hangs on a graph
    with torch.no_grad():
        conv(torch.zeros(1, 4, 5, 5))  # computes the weight
    torch.testing.assert_close(copied.weight, conv.weight)
    assert not torch.allclose(conv.weight, stale)
