"""What `explain` says: the closed forms, the forms of input that it takes, and text that fits a terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_separable.cost.formulas import ConvSpec, separable_cost_ratio
from torch_separable.errors import SeparableValueError
from torch_separable.explanation import Explanation, explain


class TutorialSeparable(nn.Module):
    """The class that the introductory tutorial has its readers write."""

    def __init__(self, ch_in: int, ch_out: int) -> None:
        super().__init__()
        self.depth_conv = nn.Conv2d(ch_in, ch_in, kernel_size=3, padding=1, groups=ch_in)
        self.point_conv = nn.Conv2d(ch_in, ch_out, kernel_size=1)


class Separable(nn.Module):
    """The names of timm, with a normalisation between."""

    def __init__(self, conv_dw: nn.Module, conv_pw: nn.Module, order: str = "depthwise_first") -> None:
        super().__init__()
        self.conv_dw, self.conv_pw, self.bn1, self.order = conv_dw, conv_pw, nn.BatchNorm2d(4), order


def costs(explanation: Explanation) -> tuple[int, int, int]:
    return explanation.weights, explanation.parameters, explanation.macs


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(4, 8, 3, padding=1), (288, 296, 288 * 9)),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), (144, 152, 144 * 9)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (36, 40, 36 * 9)),
        (nn.Conv2d(4, 8, 1), (32, 40, 32 * 9)),
        (TutorialSeparable(4, 8), (68, 80, 68 * 9)),
    ],
)
@pytest.mark.parametrize("input_shape", [(3, 3), (4, 3, 3), torch.Size((4, 3, 3)), [3, 3]])
def test_example_of_the_tutorial(layer: nn.Module, expected: tuple[int, int, int], input_shape: Any) -> None:
    explanation = explain(layer, input_shape)
    assert costs(explanation) == expected
    assert explanation.input_shape == (4, 3, 3)
    assert explanation.output_shape[1:] == (3, 3)


def test_every_form_of_the_same_layer_gives_the_same_explanation() -> None:
    module = explain(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False), (9, 7))
    spec = explain(ConvSpec(4, 8, (3, 3), (2, 2), (1, 1), groups=2, bias=False), (9, 7))
    arguments = explain(
        in_channels=4, out_channels=8, kernel_size=3, stride=2, padding=1, groups=2, bias=False, input_shape=(4, 9, 7)
    )
    assert module == spec == arguments
    separable = explain(
        in_channels=4, out_channels=8, kernel_size=3, padding=1, order="depthwise_first", input_shape=(3, 3)
    )
    assert separable == explain(TutorialSeparable(4, 8), (3, 3))


def test_steps_carry_formula_numbers_and_result() -> None:
    steps = {step.title: step for step in explain(nn.Conv2d(4, 8, 3, padding=1, groups=2), (3, 3)).steps}
    weights = steps["Weights of all M filters"]
    assert (weights.symbols, weights.numbers, weights.result) == ("k·k·(C/g)·M", "3·3·(4/2)·8", 144)
    assert steps["Output size n'"].numbers == "⌊(3 + 2·1 − 1·(3 − 1) − 1)/1⌋ + 1"
    assert steps["Share of the dense layer"].result == 0.5


def test_stages_of_a_separable_layer_add_up() -> None:
    explanation = explain(TutorialSeparable(4, 8), (3, 3))
    assert [stage.spec.weights for stage in explanation.stages] == [36, 32]
    assert [stage.name for stage in explanation.stages] == ["depthwise", "pointwise"]
    together = [step for step in explanation.steps if step.part == "together"]
    assert [(step.numbers, step.result) for step in together[:3]] == [
        ("36 + 32", 68),
        ("40 + 40", 80),
        ("324 + 288", 612),
    ]
    assert explanation.share == pytest.approx(separable_cost_ratio(8, (3, 3)))


def test_pointwise_first_runs_its_pointwise_stage_at_the_inputs_resolution() -> None:
    first = explain(
        in_channels=4,
        out_channels=8,
        kernel_size=3,
        stride=2,
        padding=1,
        order="pointwise_first",
        depth_multiplier=2,
        input_shape=(8, 8),
    )
    assert [stage.macs for stage in first.stages] == [4 * 16 * 64, 9 * 2 * 8 * 16]
    assert first.chosen.name == "pointwise → depthwise, D=2"
    assert [link.inputs for link in first.links[1]][:2] == [range(0, 2), range(2, 4)]


def test_a_layer_with_order_and_normalisation_is_read_and_the_rest_is_named() -> None:
    layer = Separable(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(4, 8, 1, bias=False), "pointwise_first")
    explanation = explain(layer, (3, 3))
    assert costs(explanation) == (32 + 72, 32 + 72 + 8, (32 + 72) * 9)
    assert "bn1" in explanation.notes[0]
    assert "bn1" in str(explanation)


def test_alternatives_stand_side_by_side() -> None:
    explanation = explain(nn.Conv2d(8, 12, 3, padding=1, groups=2), (5, 5))
    names = [each.name for each in explanation.alternatives]
    assert names == [
        "standard, groups=1",
        "grouped, groups=2",
        "grouped, groups=4",
        "depthwise → pointwise",
        "pointwise → depthwise",
    ]
    assert [each.name for each in explanation.alternatives if each.chosen] == ["grouped, groups=2"]
    assert explanation.alternatives[0].share == 1.0


def test_a_1x1_kernel_has_no_separable_alternative() -> None:
    assert all(len(each.stages) == 1 for each in explain(nn.Conv2d(4, 8, 1), (3, 3)).alternatives)


def test_bytes_and_intensity_of_a_depthwise_layer() -> None:
    explanation = explain(nn.Conv2d(512, 512, 3, padding=1, groups=512, bias=False), (14, 14))
    assert explanation.stages[0].bytes_moved == 4 * (2 * 512 * 14 * 14 + 9 * 512)
    intensity = next(step for step in explanation.steps if step.unit == "FLOP/byte")
    assert intensity.result == pytest.approx(2 * 903_168 / 821_248)


LAYERS = [
    nn.Conv1d(6, 12, 5, groups=3, padding="same", dilation=2),
    nn.Conv2d(4, 8, (4, 3), padding="same"),
    nn.Conv2d(4, 8, (2, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=4),
    nn.Conv2d(4, 8, 3, padding="valid", padding_mode="circular"),
    nn.Conv3d(2, 4, 3, stride=2, padding=1, groups=2),
    nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, groups=2),
    nn.ConvTranspose2d(4, 8, 3, stride=2, padding=1, output_padding=1, groups=2),
    nn.ConvTranspose3d(2, 2, 2, stride=2, dilation=2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_output_shape_and_parameters_are_those_of_the_module(layer: Any) -> None:
    size = (6, 7, 8)[: len(layer.kernel_size)]
    explanation = explain(layer, size)
    assert explanation.output_shape == tuple(layer(torch.zeros(1, layer.in_channels, *size)).shape[1:])
    assert explanation.parameters == sum(parameter.numel() for parameter in layer.parameters())
    assert explanation.weights == layer.weight.numel()


def influences(layer: nn.Module, channels: int, size: tuple[int, ...]) -> list[set[int]]:
    """For each output channel, the input channels on which its sum depends: where the gradient is not zero."""
    x = torch.rand(1, channels, *size, requires_grad=True)
    outputs = layer(x).sum(dim=tuple(range(2, 2 + len(size))))[0]
    seen = []
    for output in outputs:
        (gradient,) = torch.autograd.grad(output, x, retain_graph=True)
        seen.append(set(gradient.abs().amax(dim=tuple(range(2, 2 + len(size))))[0].nonzero().flatten().tolist()))
    return seen


@given(
    groups=st.sampled_from([1, 2, 3, 4]),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    transposed=st.booleans(),
)
def test_links_are_what_the_real_layer_depends_on(groups: int, inputs: int, outputs: int, transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(groups * inputs, groups * outputs, 3, padding=1, groups=groups)
    explanation = explain(layer, (4, 4))
    seen = influences(layer, groups * inputs, (4, 4))
    (links,) = explanation.links
    assert len(links) == groups
    assert {m: set(link.inputs) for link in links for m in link.outputs} == dict(enumerate(seen))


@given(
    C=st.integers(1, 12),
    M=st.integers(1, 12),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    bias=st.booleans(),
    order=st.sampled_from([None, "depthwise_first", "pointwise_first"]),
    D=st.integers(1, 3),
)
def test_weights_and_macs_sum_over_groups_and_stages(
    *, C: int, M: int, kernel: tuple[int, int], size: tuple[int, int], bias: bool, order: Any, D: int
) -> None:
    explanation = explain(
        in_channels=C,
        out_channels=M,
        kernel_size=kernel,
        padding="same",
        bias=bias,
        order=order,
        depth_multiplier=D if order else 1,
        input_shape=size,
    )
    for alternative in explanation.alternatives:
        counted = macs = 0
        for stage in alternative.stages:
            extent = stage.spec.kernel_size[0] * stage.spec.kernel_size[1]
            of_groups = sum(extent * len(link.inputs) * len(link.filters) for link in stage.links)
            assert sorted(m for link in stage.links for m in link.outputs) == list(range(stage.spec.out_channels))
            assert sorted(c for link in stage.links for c in link.inputs) == list(range(stage.spec.in_channels))
            counted += of_groups
            macs += of_groups * size[0] * size[1]
        assert (alternative.weights, alternative.macs) == (counted, macs)
        assert alternative.share == pytest.approx(counted / (kernel[0] * kernel[1] * C * M))
    assert sum(each.chosen for each in explanation.alternatives) == 1


@given(
    channels=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    kernel=st.lists(st.integers(1, 11), min_size=1, max_size=3),
    size=st.integers(11, 512),
    order=st.sampled_from([None, "depthwise_first", "pointwise_first"]),
    D=st.integers(1, 9),
    stride=st.integers(1, 3),
)
def test_text_fits_80_columns(
    *, channels: tuple[int, int], kernel: list[int], size: int, order: Any, D: int, stride: int
) -> None:
    explanation = explain(
        in_channels=channels[0],
        out_channels=channels[1],
        kernel_size=tuple(kernel),
        stride=stride,
        padding=1,
        dilation=1,
        order=order,
        depth_multiplier=D if order else 1,
        input_shape=(size, size + 7, size + 13)[: len(kernel)],
    )
    lines = str(explanation).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("▸" in line for line in lines) == 1


def test_text_of_many_groups_shows_the_first_and_the_last() -> None:
    lines = str(explain(nn.Conv2d(720, 720, 3, groups=360), (5, 5))).splitlines()
    assert any(line.split() == ["359", "718–719", "718–719", "718–719"] for line in lines)
    assert any(line.startswith("  ▸ grouped, groups=360 ") for line in lines)
    assert sum("groups=" in line for line in lines) < 15


def test_json_is_the_whole_explanation() -> None:
    explanation = explain(nn.Conv2d(4, 8, 3, padding=1, groups=2), (3, 3))
    document = json.loads(explanation.to_json())
    assert document == explanation.to_dict()
    assert document["stages"][0]["links"][1] == {
        "group": 1,
        "input_channels": [2, 3],
        "filters": [4, 5, 6, 7],
        "output_channels": [4, 5, 6, 7],
    }
    assert (document["weights"], document["parameters"], document["macs"]) == (144, 152, 1296)
    assert [row["weights"] for row in document["alternatives"]] == [288, 144, 72, 68, 104]


ARGUMENTS = {"in_channels": 4, "out_channels": 8, "kernel_size": 3}


@pytest.mark.parametrize(
    ("layer", "input_shape", "arguments", "message"),
    [
        (nn.Conv2d(4, 8, 3), (3, 3, 3), {}, "3 channels; the convolution has in_channels=4"),
        (nn.Conv2d(4, 8, 3), (1, 4, 3, 3), {}, "without a batch dimension"),
        (nn.Conv2d(4, 8, 3), (3,), {}, "2 spatial dimensions"),
        (nn.Conv2d(4, 8, 3), None, {}, "input_shape is missing"),
        (nn.Conv2d(4, 8, 3), 3, {}, "input_shape=3"),
        (nn.Conv2d(4, 8, 3), "33", {}, "input_shape='33'"),
        (nn.Conv2d(4, 8, 3), (3, 0), {}, "at least 1"),
        (nn.Conv2d(4, 8, 3), (3.0, 3), {}, "integer"),
        (nn.Conv2d(4, 8, 3), (2, 2), {}, "smaller than the kernel"),
        (nn.Conv2d(4, 8, 3), (3, 3), {"groups": 2}, "give a layer, or the arguments of one"),
        (nn.Linear(4, 8), (3, 3), {}, "given Linear"),
        (nn.Sequential(nn.Conv2d(4, 8, 3)), (3, 3), {}, "For a network use summary"),
        (nn.LazyConv2d(8, 3), (3, 3), {}, "LazyConv2d"),
        ("Conv2d", (3, 3), {}, "'Conv2d'"),
        (ConvSpec(4, 8, (3,) * 4), (3,) * 4, {}, "1 to 3 spatial dimensions"),
        (None, (3, 3), {}, "in_channels, out_channels, kernel_size missing"),
        (None, (3, 3), ARGUMENTS | {"groups": 3}, "groups=3 does not divide in_channels=4"),
        (None, (3, 3), ARGUMENTS | {"group": 2}, "no argument group"),
        (None, (3, 3), ARGUMENTS | {"groups": 0}, "groups=0"),
        (None, (3, 3), ARGUMENTS | {"in_channels": 4.0}, "in_channels=4.0"),
        (None, (3, 3), ARGUMENTS | {"in_channels": True}, "in_channels=True"),
        (None, (3, 3), ARGUMENTS | {"bias": "no"}, "bias='no'"),
        (None, (3, 3), ARGUMENTS | {"stride": -1}, "stride=(-1, -1)"),
        (None, (3, 3), ARGUMENTS | {"stride": (1, 1, 1)}, "3 entries"),
        (None, (3, 3), ARGUMENTS | {"kernel_size": ()}, "kernel_size=()"),
        (None, (3, 3), ARGUMENTS | {"kernel_size": "3"}, "kernel_size='3'"),
        (None, (3, 3), ARGUMENTS | {"kernel_size": 0}, "at least 1"),
        (None, (3, 3), ARGUMENTS | {"dilation": 0, "padding": "same"}, "at least 1"),
        (None, (3, 3), ARGUMENTS | {"padding": "full"}, "padding='full'"),
        (None, (3, 3), ARGUMENTS | {"padding": "same", "stride": 2}, "stride 1 only"),
        (None, (3, 3), ARGUMENTS | {"padding": "same", "transposed": True}, "must be numbers"),
        (None, (3, 3), ARGUMENTS | {"order": "sideways"}, "order='sideways'"),
        (None, (3, 3), ARGUMENTS | {"order": "depthwise_first", "groups": 2}, "groups=2"),
        (None, (3, 3), ARGUMENTS | {"depth_multiplier": 2}, "without order"),
        (None, None, ARGUMENTS, "input_shape is missing"),
    ],
)
def test_wrong_input_is_refused_with_its_name(layer: Any, input_shape: Any, arguments: Any, message: str) -> None:
    with pytest.raises(SeparableValueError) as refused:
        explain(layer, input_shape, **arguments)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("depthwise", "pointwise", "order", "message"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 8, 1), "depthwise_first", "groups=4, but has groups=2"),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3), "depthwise_first", "must be a 1x1 convolution"),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1, groups=4), "depthwise_first", "must be a 1x1 convolution"),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv1d(4, 8, 1), "depthwise_first", "as many dimensions"),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(6, 8, 1), "depthwise_first", "4 channels"),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), "pointwise_first", "8 channels"),
        (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), "both", "order='both'"),
    ],
)
def test_two_convolutions_that_are_not_separable_are_refused(
    depthwise: nn.Module, pointwise: nn.Module, order: str, message: str
) -> None:
    with pytest.raises(SeparableValueError) as refused:
        explain(Separable(depthwise, pointwise, order), (5, 5))
    assert message in str(refused.value)
