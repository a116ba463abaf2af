"""`summary`: what it takes, what it says of separable and grouped units, and how it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchsummary
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.cost import LayerCost, Summary, analyze, summary
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.models import mobilenet_v1
from torch_separable.nn import (
    DepthwiseSeparableConv1d,
    DepthwiseSeparableConv2d,
    DepthwiseSeparableConv3d,
    InvertedResidual,
    ShuffleUnit,
)


class Article(nn.Module):
    """The introductory article's network, whose first layer it replaces twice."""

    def __init__(self, conv2d: nn.Module) -> None:
        super().__init__()
        self.conv2d = conv2d
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2d(x))  # type: ignore[no-any-return]


ARTICLE: list[tuple[Callable[[], nn.Module], int, int]] = [
    (lambda: nn.Conv2d(4, 8, kernel_size=3, stride=1, padding=1, groups=1), 296, 2592),
    (lambda: nn.Conv2d(4, 8, kernel_size=3, stride=1, padding=1, groups=2), 152, 1296),
    (lambda: ts.depthwise_separable_conv(4, 8), 80, 612),
]


def quiet(*args: Any, **kwargs: Any) -> Summary:
    return summary(*args, verbose=False, **kwargs)


def row_of(counted: Summary, name: str) -> LayerCost:
    (row,) = [row for row in counted.layers if row.name == name]
    return row


@pytest.mark.parametrize(("conv2d", "parameters", "macs"), ARTICLE)
def test_the_articles_networks(conv2d: Callable[[], nn.Module], parameters: int, macs: int) -> None:
    counted = quiet(Article(conv2d()), (4, 3, 3))
    assert (counted.parameters, counted.macs, counted.network) == (parameters, macs, "Article")
    assert counted.input_shapes == ((1, 4, 3, 3),)


@pytest.mark.parametrize(("conv2d", "parameters", "macs"), ARTICLE)
def test_it_prints_the_totals_that_torchsummary_prints(
    conv2d: Callable[[], nn.Module], parameters: int, macs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Article(conv2d())
    torchsummary.summary(network, (4, 3, 3), device="cpu")
    theirs = capsys.readouterr().out
    counted = summary(network, (4, 3, 3))
    ours = capsys.readouterr().out
    assert ours == f"{counted}\n"
    block = theirs[theirs.index("Total params") : theirs.index("\n", theirs.index("Non-trainable"))]
    assert block == f"Total params: {parameters}\nTrainable params: {parameters}\nNon-trainable params: 0"
    assert f"\n{block}\n" in ours

    # Theirs numbers the layers in the order in which they ran, and shows -1 for the batch.
    rows = [line.split() for line in theirs.splitlines() if "[-1," in line]
    leaves = [row for row in counted.layers if row.calls and not any(network.get_submodule(row.name).children())]
    shown = [(words[0].partition("-")[0], "".join(words[1:-1]), words[-1]) for words in rows]
    for row in leaves:
        shape = str([-1, *row.output_shape[1:]]).replace(" ", "")
        assert (row.type, shape, str(row.parameters)) in shown


def test_verbose_false_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    quiet(nn.Linear(3, 4), (3,))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "given",
    [
        (3, 8, 8),
        [3, 8, 8],
        torch.Size((3, 8, 8)),
        [(3, 8, 8)],
        ((3, 8, 8),),
        {"input": (3, 8, 8)},
        torch.zeros(1, 3, 8, 8),
        [torch.zeros(1, 3, 8, 8)],
        {"input": torch.zeros(1, 3, 8, 8)},
    ],
    ids=lambda given: type(given).__name__,
)
def test_every_form_of_the_same_input_gives_the_same_summary(given: Any) -> None:
    network = nn.Conv2d(3, 4, 3)
    assert quiet(network, given) == analyze(network, torch.zeros(1, 3, 8, 8))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.linear = nn.Linear(6, 4)
        self.seen: list[Tensor] = []

    def forward(self, tokens: Tensor, features: Tensor) -> Tensor:
        self.seen[:] = [tokens, features]
        return self.embed(tokens).sum(1) + self.linear(features)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("given", "dtypes"),
    [
        ([(5,), (6,)], [torch.long, torch.float32]),
        (((5,), (6,)), (torch.int32, torch.float32)),
        ({"features": (6,), "tokens": (5,)}, [torch.float32, torch.long]),
        ([torch.zeros(2, 5, dtype=torch.long), (6,)], None),
        ({"tokens": torch.zeros(2, 5, dtype=torch.long), "features": (6,)}, None),
    ],
)
def test_several_inputs_of_several_types(given: Any, dtypes: Any) -> None:
    network = TwoInputs()
    counted = quiet(network, given, batch_size=2, dtypes=dtypes)
    assert sorted(counted.input_shapes) == [(2, 5), (2, 6)]
    assert counted.macs == 2 * 6 * 4
    assert counted.input_bytes == sum(tensor.nbytes for tensor in network.seen)
    assert [tensor.is_floating_point() for tensor in network.seen] == [False, True]


def test_counts_grow_with_the_batch_and_parameters_do_not() -> None:
    one, five = quiet(mobilenet_v1(0.25), (3, 32, 32)), quiet(mobilenet_v1(0.25), (3, 32, 32), 5)
    assert five.macs == 5 * one.macs
    assert five.parameters == one.parameters
    assert five.intensity > one.intensity


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_take_the_type_of_the_network(dtype: torch.dtype) -> None:
    counted = quiet(nn.Conv2d(3, 4, 3).to(dtype), (3, 8, 8))
    assert counted.weight_bytes == 112 * dtype.itemsize
    assert counted.input_bytes == 192 * dtype.itemsize


def test_one_dtype_is_for_all_inputs() -> None:
    multiply = nn.Bilinear(3, 4, 2).double()
    assert quiet(multiply, [(3,), (4,)], dtypes=torch.float64).macs == 2 * (3 * 4 + 4)


def test_inputs_are_made_where_the_network_is_or_where_they_are_wanted() -> None:
    network = TwoInputs().to("meta")  # stands for any device but the CPU
    sizes, tokens_first = [(5,), (6,)], [torch.long, torch.float32]
    for device, place in ((None, "meta"), ("meta", "meta"), (torch.device("meta"), "meta")):
        quiet(network, sizes, dtypes=tokens_first, device=device)
        assert [tensor.device.type for tensor in network.seen] == [place] * 2
    quiet(network, [torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 6)])
    assert [tensor.device.type for tensor in network.seen] == ["meta"] * 2
    here = quiet(TwoInputs(), sizes, dtypes=tokens_first)
    assert quiet(network, sizes, dtypes=tokens_first) == here
    with pytest.raises(SeparableError, match="TwoInputs cannot run on input of shape"):
        quiet(network, sizes, dtypes=tokens_first, device="cpu")


def test_a_network_without_parameters_gets_its_inputs_on_the_cpu() -> None:
    assert quiet(nn.ReLU(), (3, 8, 8)).input_shapes == ((1, 3, 8, 8),)


def test_random_generator_of_the_caller_is_not_used() -> None:
    network, state = nn.Linear(3, 4), torch.random.get_rng_state()
    quiet(network, (3,))
    assert torch.equal(state, torch.random.get_rng_state())


def test_real_tensors_stay_as_they_are() -> None:
    network, tokens = TwoInputs(), torch.tensor([[1, 2, 3]])
    quiet(network, [tokens, torch.full((1, 6), 0.5)])
    assert network.seen[0].tolist() == [[1, 2, 3]]
    assert network.seen[1].tolist() == [[0.5] * 6]


def nested() -> nn.Module:
    unit = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return nn.Sequential(nn.Sequential(unit, nn.ReLU()), nn.Conv2d(4, 5, 1))


@pytest.mark.parametrize(
    ("depth", "names"),
    [
        (0, [""]),
        (1, ["0", "1"]),
        (2, ["0", "0.0", "0.1", "1"]),
        (3, ["0", "0.0", "0.0.0", "0.0.1", "0.1", "1"]),
        (None, ["0", "0.0", "0.0.0", "0.0.1", "0.1", "1"]),
    ],
)
def test_depth_includes_descendants(depth: int | None, names: list[str]) -> None:
    whole, shown = quiet(nested(), (3, 8, 8)), quiet(nested(), (3, 8, 8), depth=depth)
    assert [row.name for row in shown.layers] == names
    for total in ("parameters", "trainable", "macs", "bytes"):
        assert getattr(shown, total) == getattr(whole, total)
    for row in shown.layers:
        below = [other for other in whole.layers if f"{other.name}.".startswith(f"{row.name}." if row.name else "")]
        inside = below if row.depth == depth else [other for other in below if other.name == row.name]
        assert (row.macs, row.parameters) == (sum(r.macs for r in inside), sum(r.parameters for r in inside))


def test_depth_zero_is_a_row_of_the_network() -> None:
    (row,) = quiet(nested(), (3, 8, 8), depth=0).layers
    assert (row.name, row.type, row.output_shape) == ("", "Sequential", (1, 5, 6, 6))


SEPARABLE: list[tuple[nn.Module, nn.Module, tuple[int, ...]]] = [
    (ts.depthwise_separable_conv(4, 8), nn.Conv2d(4, 8, 3, padding=1), (4, 3, 3)),
    (DepthwiseSeparableConv1d(4, 8, 5), nn.Conv1d(4, 8, 5), (4, 9)),
    (DepthwiseSeparableConv3d(4, 8, 3), nn.Conv3d(4, 8, 3), (4, 5, 5, 5)),
    (DepthwiseSeparableConv2d(4, 8, 3, stride=2, dilation=2), nn.Conv2d(4, 8, 3, stride=2, dilation=2), (4, 9, 9)),
    (DepthwiseSeparableConv2d(4, 8, 3, depth_multiplier=2), nn.Conv2d(4, 8, 3), (4, 9, 9)),
    (DepthwiseSeparableConv2d(4, 8, 3, stride=2, order="pointwise_first"), nn.Conv2d(4, 8, 3, 2), (4, 9, 9)),
    (
        DepthwiseSeparableConv2d(4, 8, (3, 5), depth_multiplier=3, order="pointwise_first", bias=False),
        nn.Conv2d(4, 8, (3, 5), bias=False),
        (4, 9, 9),
    ),
    (
        DepthwiseSeparableConv2d(6, 6, 3, order="pointwise_first", bias=True, bias_between=False),
        nn.Conv2d(6, 6, 3),
        (6, 9, 9),
    ),
    (
        DepthwiseSeparableConv2d(4, 8, 3, bias=False, norm_layer=nn.BatchNorm2d, act_layer=nn.ReLU),
        nn.Conv2d(4, 8, 3, bias=False),
        (4, 9, 9),
    ),
]


@pytest.mark.parametrize(("unit", "dense", "size"), SEPARABLE, ids=lambda value: type(value).__name__)
def test_separable_unit_has_a_dense_equivalent(unit: nn.Module, dense: nn.Module, size: tuple[int, ...]) -> None:
    counted, expected = quiet(nn.Sequential(unit), size, 2), quiet(dense, size, 2)
    row = row_of(counted, "0")
    assert row.dense == expected.layers[0].formula
    assert row.dense_macs == expected.macs
    assert row.saving == expected.macs / counted.macs
    assert quiet(unit, size, 2).layers[0].saving == row.saving


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_convolution_has_a_dense_equivalent(groups: int) -> None:
    (row,) = quiet(nn.Conv2d(4, 8, 3, groups=groups), (4, 5, 5)).layers
    if groups == 1:
        assert (row.dense, row.dense_macs, row.saving) == ("", 0, None)
    else:
        assert (row.dense, row.dense_macs, row.saving) == ("3·3·4·8 = 288 (+8 bias)", 9 * 288, float(groups))


def test_saving_does_not_depend_on_the_number_of_calls() -> None:
    unit = ts.depthwise_separable_conv(4, 4)
    twice = row_of(quiet(nn.Sequential(unit, unit), (4, 5, 5)), "0")
    once = row_of(quiet(nn.Sequential(unit), (4, 5, 5)), "0")
    assert twice.calls == 2
    assert twice.dense_macs == 2 * once.dense_macs
    assert (twice.saving, twice.dense) == (once.saving, once.dense)


class Branches(nn.Module):
    """The names of a separable unit, but side by side: no one dense convolution does the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.conv_pw = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_dw(x[:, :4]) + self.conv_pw(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("block", "size"),
    [
        (InvertedResidual(4, 4), (4, 5, 5)),
        (ShuffleUnit(24, 48, stride=2), (24, 8, 8)),
        (DepthwiseSeparableConv2d(4, 8, 3, groups=2), (4, 5, 5)),
        (Branches(), (8, 5, 5)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_units_without_a_dense_equivalent_have_no_saving(block: nn.Module, size: tuple[int, ...]) -> None:
    (row,) = [row for row in quiet(nn.Sequential(block), size).layers if row.name == "0"]
    assert (row.dense, row.dense_macs, row.saving) == ("", 0, None)


def test_savings_of_the_units_of_mobilenet_follow_the_papers_formula() -> None:
    network = mobilenet_v1()
    units = {row.name: row.saving for row in quiet(network, (3, 32, 32)).layers if row.type.startswith("DepthwiseSep")}
    assert len(units) == 13
    for name, saving in units.items():
        out_channels: Any = network.get_submodule(f"{name}.conv_pw").out_channels
        assert saving == pytest.approx(1 / (1 / out_channels + 1 / 9), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"input_shape": ()},
            "input_shape=(): expected the shape of one input without the batch, such as (3, 224, 224), a",
        ),
        ({"input_shape": "3,8,8"}, "input_shape='3,8,8': expected the shape of one input without the batch"),
        ({"input_shape": 3}, "input_shape=3: expected the shape of one input without the batch"),
        ({"input_shape": None}, "input_shape=None: expected the shape of one input without the batch"),
        ({"input_shape": (3, 0, 8)}, "input_shape=(3, 0, 8): expected the shape of one input without"),
        ({"input_shape": (3, 8.0, 8)}, "input_shape=(3, 8.0, 8): expected the shape of one input"),
        ({"input_shape": [(3, 8, 8), "x"]}, "input_shape[1]='x': expected the shape of one input"),
        ({"input_shape": {"input": -1}}, "input_shape['input']=-1: expected the shape of one input"),
        ({"batch_size": 0}, "batch_size=0: must be a whole number, at least 1"),
        ({"batch_size": 2.0}, "batch_size=2.0: must be a whole number"),
        ({"batch_size": True}, "batch_size=True: must be a whole number"),
        ({"depth": -1}, "depth=-1: must be a whole number, at least 0, or None for all"),
        ({"depth": True}, "depth=True: must be a whole number"),
        ({"depth": "all"}, "depth='all': must be a whole number"),
        ({"device": "nonsense"}, "device='nonsense': "),
        ({"device": 1.5}, "device=1.5: "),
        ({"dtypes": "float32"}, "dtypes='float32': expected a torch.dtype, or a list of these"),
        ({"dtypes": ["float32"]}, "dtypes=['float32']: expected a torch.dtype, or a list of these"),
        ({"dtypes": 32}, "dtypes=32: expected a torch.dtype, or a list of these"),
        ({"dtypes": [torch.float32] * 2}, "dtypes has 2 entries for 1 inputs"),
        ({"columns": []}, "columns=[]: expected a list of names: layer, type, kernel, stride, groups, output, param"),
        ({"columns": "macs"}, "columns='macs': expected a list of names: layer"),
        ({"columns": ["macs", "flops"]}, "columns has 'flops'"),
        ({"columns": [3]}, "columns has 3"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(SeparableValueError) as refusal:
        quiet(nn.Conv2d(3, 4, 3), **{"input_shape": (3, 8, 8), **arguments})
    assert str(refusal.value).startswith(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no CUDA")
def test_unavailable_device_is_refused() -> None:
    with pytest.raises(SeparableValueError, match=r"^device='cuda': "):
        quiet(nn.Linear(3, 4), (3,), device="cuda")


def test_an_input_of_the_wrong_shape_is_refused_before_anything_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SeparableError, match=r"layer 'conv2d' \(Conv2d\) was given \[\(1, 5, 3, 3\)\]"):
        summary(Article(nn.Conv2d(4, 8, 3)), (5, 3, 3))
    assert capsys.readouterr().out == ""


def test_an_input_too_large_for_memory_is_counted_by_shapes() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    network.append(nn.Flatten()).append(nn.Linear(4, 2))
    small, huge = (summary(network, (3, n, n), verbose=False) for n in (100, 100_000))
    assert huge.macs - 8 == 1_000_000 * (small.macs - 8)
    assert huge.parameters == small.parameters
    assert not huge.uncalled
    assert summary(network, {"input": (3, 100_000, 100_000)}, verbose=False).macs == huge.macs
