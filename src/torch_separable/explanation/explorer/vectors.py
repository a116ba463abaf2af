"""Test vectors: the library's results for a few hundred convolutions, with which the page compares its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

from torch_separable.cost.formulas import ConvSpec
from torch_separable.errors import SeparableValueError
from torch_separable.explanation.arithmetic import share
from torch_separable.explanation.explorer.state import SEPARABLE_ORDERS, ExplorerState, Kind, Pair


def vectors() -> dict[str, list[dict[str, Any]]]:
    """Return the cost of convolutions, the errors of invalid ones, and the explanations of layers."""
    return {
        "specs": [_spec_facts(spec, size) for spec, size in _specs()],
        "divisions": [_division_facts(*channels) for channels in _DIVISIONS],
        "layers": [_layer_facts(state) for state in _layers()],
    }


_DIVISIONS = (
    (1, 1),
    (1, 8),
    (2, 4),
    (3, 5),
    (4, 8),
    (8, 12),
    (12, 8),
    (16, 16),
    (24, 36),
    (30, 42),
    (64, 96),
    (512, 768),
)


def _specs() -> Iterator[tuple[ConvSpec, Pair]]:
    """Yield every 37th of all combinations of the values below."""
    channels = ((1, 1, 1), (4, 8, 1), (4, 8, 2), (4, 8, 4), (6, 9, 3), (16, 16, 16), (512, 768, 256), (4096, 4096, 1))
    kernels = ((1, 1), (2, 2), (3, 3), (3, 5), (11, 11))
    geometry = tuple(itertools.product(((1, 1), (2, 2), (3, 1)), ((0, 0), (1, 1), (2, 3)), ((1, 1), (2, 2), (1, 3))))
    sizes = ((3, 3), (8, 8), (7, 10), (224, 224), (1024, 1024))
    combinations = itertools.product(channels, kernels, geometry, (True, False), sizes)
    for (inputs, outputs, groups), kernel, (stride, padding, dilation), bias, size in itertools.islice(
        combinations, 0, None, 37
    ):
        yield ConvSpec(inputs, outputs, kernel, stride, padding, dilation, groups, bias), size


def _spec_facts(spec: ConvSpec, size: Pair) -> dict[str, Any]:
    given = {
        "in": spec.in_channels,
        "out": spec.out_channels,
        "kernel": spec.kernel_size,
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "bias": spec.bias,
    }
    facts = {
        "spec": given,
        "input": size,
        "weights": spec.weights,
        "parameters": spec.parameters,
        "formula": spec.formula(),
    }
    try:
        return facts | {"output": spec.output_size(size), "macs": spec.macs(size)}
    except SeparableValueError as error:
        return facts | {"error": str(error)}


def _division_facts(inputs: int, outputs: int) -> dict[str, Any]:
    groups: list[int] = []
    errors: dict[str, str] = {}
    for number in range(1, max(inputs, outputs) + 1):
        try:
            ConvSpec(inputs, outputs, (1, 1), groups=number)
            groups.append(number)
        except SeparableValueError as error:
            if len(errors) < 12:
                errors[str(number)] = str(error)
    return {"in": inputs, "out": outputs, "groups": groups, "errors": errors}


def _layers() -> Iterator[ExplorerState]:
    article = ExplorerState()
    for show in get_args(Kind):
        yield replace(article, show=show)
        yield replace(
            article, show=show, in_channels=8, out_channels=24, kernel_size=(3, 5), input_size=(9, 14), groups=4
        )
        yield replace(
            article, show=show, in_channels=512, out_channels=512, input_size=(14, 14), stride=(2, 2), groups=32
        )
    for show in SEPARABLE_ORDERS:
        yield replace(article, show=show, depth_multiplier=3, padding=(0, 0), dilation=(2, 1), input_size=(8, 8))
        yield replace(article, show=show, in_channels=1, out_channels=1, input_size=(224, 224), kernel_size=(2, 2))
    yield replace(article, kernel_size=(1, 1))
    yield replace(article, kernel_size=(1, 1), stride=(2, 2), show="grouped", input_size=(7, 7))
    yield replace(
        article, in_channels=36, out_channels=36, groups=12, show="grouped", kernel_size=(5, 5), input_size=(5, 5)
    )


def _layer_facts(state: ExplorerState) -> dict[str, Any]:
    explanation = state.explanation()
    return {
        "state": state.document(),
        "title": explanation.title,
        "weights": explanation.weights,
        "parameters": explanation.parameters,
        "macs": explanation.macs,
        "steps": [[step.part, step.title, step.symbols, step.numbers, step.result_text] for step in explanation.steps],
        "alternatives": [
            [each.name, each.weights, each.parameters, each.macs, share(each.share), each.chosen]
            for each in explanation.alternatives
        ],
    }
