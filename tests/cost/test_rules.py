"""What one operator costs: closed forms, whichever kernel PyTorch picks; what is free, and what is unknown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_separable.cost import RULES, analyze


class Calls(nn.Module):
    """A network that is nothing but a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def macs(function: Callable[..., Any], *shapes: tuple[int, ...]) -> int:
    counted = analyze(Calls(function), *(torch.rand(shape) for shape in shapes))
    assert counted.uncounted == {}
    return counted.macs


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (F.conv1d, [(2, 4, 9), (6, 4, 3)], 2 * 7 * 6 * 4 * 3),
        (F.conv2d, [(2, 4, 9, 8), (6, 4, 3, 2)], 2 * 7 * 7 * 6 * 4 * 3 * 2),
        (F.conv3d, [(2, 4, 5, 6, 7), (6, 4, 3, 2, 1)], 2 * 3 * 5 * 7 * 6 * 4 * 3 * 2),
        (F.conv2d, [(4, 9, 8), (6, 4, 3, 3)], 7 * 6 * 6 * 4 * 9),
        (lambda x, w: F.conv2d(x, w, groups=2), [(1, 4, 9, 9), (6, 2, 3, 3)], 49 * 6 * 2 * 9),
        (lambda x, w: F.conv2d(x, w, groups=4), [(1, 4, 9, 9), (4, 1, 3, 3)], 49 * 4 * 9),
        (lambda x, w: F.conv2d(x, w, stride=2, dilation=2), [(1, 4, 9, 9), (6, 4, 3, 3)], 9 * 6 * 4 * 9),
        (lambda x, w: F.conv2d(x, w, padding="same"), [(1, 4, 9, 9), (6, 4, 3, 5)], 81 * 6 * 4 * 15),
        (F.conv_transpose1d, [(2, 4, 9), (4, 6, 3)], 2 * 9 * 4 * 6 * 3),
        (lambda x, w: F.conv_transpose2d(x, w, stride=3, groups=2), [(1, 4, 5, 5), (4, 3, 3, 3)], 25 * 4 * 3 * 9),
        (lambda x, w: F.conv_transpose3d(x, w, padding=1), [(1, 2, 3, 3, 3), (2, 3, 3, 3, 3)], 27 * 2 * 3 * 27),
    ],
)
def test_functional_convolutions(function: Callable[..., Tensor], shapes: list[tuple[int, ...]], expected: int) -> None:
    assert macs(function, *shapes) == expected


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (torch.mm, [(3, 4), (4, 5)], 60),
        (torch.addmm, [(5,), (3, 4), (4, 5)], 60),
        (lambda a, b, c: a.clone().addmm_(b, c), [(3, 5), (3, 4), (4, 5)], 60),
        (torch.bmm, [(2, 3, 4), (2, 4, 5)], 120),
        (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 120),
        (torch.addbmm, [(3, 5), (2, 3, 4), (2, 4, 5)], 120),
        (torch.matmul, [(2, 6, 3, 4), (2, 6, 4, 5)], 720),
        (torch.matmul, [(2, 6, 3, 4), (4, 5)], 720),
        (torch.mv, [(3, 4), (4,)], 12),
        (torch.addmv, [(3,), (3, 4), (4,)], 12),
        (torch.dot, [(7,), (7,)], 7),
        (torch.vdot, [(7,), (7,)], 7),
        (F.linear, [(4,), (5, 4)], 20),
        (F.linear, [(3, 4), (5, 4)], 60),
        (F.linear, [(2, 3, 4), (5, 4), (5,)], 120),
        (F.bilinear, [(3, 4), (3, 5), (6, 4, 5)], 3 * 6 * (4 * 5 + 5)),
        (lambda a, b: torch.einsum("nij,njk->nik", a, b), [(2, 3, 4), (2, 4, 5)], 120),
        (lambda a, b: torch.einsum("nchw,kc->nkhw", a, b), [(2, 4, 3, 3), (5, 4)], 2 * 9 * 4 * 5),
        (lambda a, b: torch.tensordot(a, b, dims=2), [(2, 3, 4), (3, 4, 5)], 2 * 12 * 5),
    ],
)
def test_products(function: Callable[..., Tensor], shapes: list[tuple[int, ...]], expected: int) -> None:
    assert macs(function, *shapes) == expected


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": torch.zeros(5, 5)}])
def test_attention_counts_the_same_with_every_backend(backend: SDPBackend, options: dict[str, Any]) -> None:
    def attend(x: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(x, x, x, **options)

    assert macs(attend, (2, 3, 5, 16)) == 2 * 3 * 5 * 5 * (16 + 16)


def test_attention_of_unequal_shapes() -> None:
    attend = F.scaled_dot_product_attention
    assert macs(attend, (2, 3, 5, 16), (2, 3, 7, 16), (2, 3, 7, 8)) == 2 * 3 * 5 * 7 * (16 + 8)
    grouped = lambda q, k, v: attend(q, k, v, enable_gqa=True)  # noqa: E731
    assert macs(grouped, (1, 6, 5, 16), (1, 2, 7, 16), (1, 2, 7, 16)) == 6 * 5 * 7 * 32


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flexible_attention() -> None:
    from torch.nn.attention.flex_attention import flex_attention  # loads PyTorch's compiler

    assert macs(flex_attention, (1, 2, 8, 16), (1, 2, 8, 16), (1, 2, 8, 16)) == 2 * 8 * 8 * 32


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(need_weights: bool) -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    x = torch.rand(2, 5, 16)
    counted = analyze(attention, x, x, x, need_weights=need_weights)
    projections, scores = 4 * 16 * 16 * 5, 2 * 5 * 5 * 16
    assert counted.macs == 2 * (projections + scores)
    assert counted.parameters == 4 * (16 * 16 + 16)
    assert (counted.uncounted, counted.uncalled) == ({}, ())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", [None, torch.tensor([[False, False, False, True, True]] * 2)])
def test_transformer_layer_whose_fast_path_is_one_operator(training: bool, mask: Tensor | None) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True).train(training)
    counted = analyze(layer, torch.rand(2, 5, 16), src_key_padding_mask=mask)
    attention, feed_forward = 5 * 4 * 16 * 16 + 2 * 5 * 5 * 16, 2 * 5 * 16 * 32
    assert counted.macs == 2 * (attention + feed_forward)
    assert (counted.uncounted, counted.uncalled) == ({}, ())
    assert {row.name: row.macs for row in counted.layers if row.macs} == {
        "self_attn": 2 * attention, "linear1": feed_forward, "linear2": feed_forward,
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
@pytest.mark.parametrize("onednn", [True, False])
def test_recurrent_layers_apply_their_weights_once_a_step(kind: type[nn.RNNBase], gates: int, onednn: bool) -> None:
    network = kind(6, 5, num_layers=2, bidirectional=True, batch_first=True)
    with torch.backends.mkldnn.flags(enabled=onednn):
        counted = analyze(network, torch.rand(3, 7, 6))
    weights = 2 * gates * 5 * ((6 + 5) + (10 + 5))
    assert weights == sum(p.numel() for name, p in network.named_parameters() if name.startswith("weight"))
    assert counted.macs == 3 * 7 * weights
    assert counted.uncounted == {}


@pytest.mark.parametrize(("cell", "gates"), [(nn.RNNCell, 1), (nn.GRUCell, 3), (nn.LSTMCell, 4)])
def test_recurrent_cells(cell: Any, gates: int) -> None:
    counted = analyze(cell(6, 5), torch.rand(3, 6))
    assert (counted.macs, counted.uncounted) == (3 * gates * 5 * (6 + 5), {})


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="circular"), nn.BatchNorm2d(8), nn.MaxPool2d(2),
        nn.ConvTranspose2d(8, 4, 2, 2), nn.GroupNorm(2, 4), nn.Flatten(2), nn.LayerNorm(64),
        nn.TransformerEncoderLayer(64, 4, 32, batch_first=True), nn.LSTM(64, 3, batch_first=True),
    )  # fmt: skip


class Inference(nn.Module):
    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.wrapped = wrapped

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Any:
        return self.wrapped(x)


def test_inference_mode_within_or_around_changes_no_count() -> None:
    network, images = net(), torch.rand(2, 3, 8, 8)
    plain = analyze(network, images)
    assert plain.uncounted == {}
    within = analyze(Inference(network), images)
    with torch.inference_mode():
        around = analyze(network, images)
    for other in (within, around):
        assert (other.macs, other.uncounted) == (plain.macs, {})
    assert [row.macs for row in around.layers] == [row.macs for row in plain.layers]


FREE = [
    nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(), nn.PReLU(4), nn.RReLU(), nn.ELU(), nn.CELU(), nn.SELU(),
    nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardtanh(), nn.Sigmoid(), nn.LogSigmoid(),
    nn.Tanh(), nn.Softplus(), nn.Softsign(), nn.Softmax(1), nn.LogSoftmax(1), nn.GLU(1), nn.Threshold(0.1, 0.0),
    nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.LayerNorm(8), nn.RMSNorm(8),
    nn.LocalResponseNorm(2), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.LPPool2d(2, 2), nn.AdaptiveAvgPool2d(3),
    nn.AdaptiveMaxPool2d(3), nn.FractionalMaxPool2d(2, output_size=3), nn.Upsample(scale_factor=2),
    nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(scale_factor=2, mode="bicubic"), nn.PixelShuffle(2),
    nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1),
    nn.CircularPad2d(1), nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.Flatten(), nn.Unfold(2),
]  # fmt: skip


@pytest.mark.parametrize("layer", FREE, ids=lambda layer: type(layer).__name__)
def test_layers_without_products_are_free_and_known(layer: nn.Module) -> None:
    counted = analyze(layer, torch.rand(2, 4, 8, 8))
    assert (counted.macs, counted.uncounted) == (0, {})


PLAIN = {
    "std_mean": lambda x: torch.cat(torch.std_mean(x, 1)),
    "cross": lambda x: torch.linalg.cross(x[:, :3], x[:, 1:], dim=1),
    "renorm": lambda x: torch.renorm(x, 2, 0, 1.0),
    "block_diag": lambda x: torch.block_diag(x[0, 0], x[1, 0]),
    "tril_": lambda x: x.clone().tril_(),
    "index_reduce": lambda x: torch.index_reduce(x, 0, torch.tensor([0, 1]), x, "amax"),
    "masked_scatter_": lambda x: x.clone().masked_scatter_(x > 0.5, x),
    "affine_grid": lambda x: torch.nn.functional.affine_grid(x[:, 0, :2, :3], [2, 1, 4, 4], align_corners=False),
    "fake_quantize": lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255),
    "weight_norm": nn.utils.parametrizations.weight_norm(nn.PReLU(4)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_operators_without_products_are_free_and_known(name: str) -> None:
    layer = PLAIN[name]
    counted = analyze(layer if isinstance(layer, nn.Module) else Calls(layer), torch.rand(2, 4, 8, 8))
    assert counted.uncounted == {}


def test_operators_without_a_rule_are_listed_with_the_number_of_their_calls() -> None:
    counted = analyze(Calls(lambda x: torch.fft.rfft2(torch.fft.rfft2(x).real)), torch.rand(2, 8, 8))
    assert (counted.macs, dict(counted.uncounted)) == (0, {"aten._fft_r2c": 2})
    assert "aten._fft_r2c (2x)" in str(counted)


@pytest.fixture
def correlate() -> Iterator[Any]:
    with torch.library._scoped_library("separable_test", "DEF") as library:
        library.define("correlate(Tensor a, Tensor b) -> Tensor")
        library.impl("correlate", lambda a, b: (a * b).sum(), "CompositeExplicitAutograd")
        yield torch.ops.separable_test.correlate


def test_custom_operator_is_counted_with_a_rule(correlate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Calls(lambda x: correlate(x, x) + correlate(x, x))
    before = analyze(network, torch.rand(3, 4))
    assert (before.macs, dict(before.uncounted)) == (0, {"separable_test.correlate": 2})
    monkeypatch.setitem(RULES, correlate, lambda args, kwargs, out: args[0].numel())
    after = analyze(network, torch.rand(3, 4))
    assert (after.macs, after.uncounted) == (24, {})


def test_a_rule_given_by_the_user_comes_before_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, torch.ops.aten.relu, lambda args, kwargs, out: out.numel())
    assert analyze(nn.ReLU(), torch.rand(3, 4)).macs == 12
