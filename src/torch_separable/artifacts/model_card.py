"""The model card (README.md) of a saved network, for readers of the folder and of its page on the hub."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch_separable.conversion import Plan
from torch_separable.models.registry import Network, is_built_in

MARK = "<!-- written by torch-separable; without this line, the file is yours and stays as it is -->"
_FRONT = """---
library_name: torch-separable
tags:
- pytorch
- torch-separable
- depthwise-separable-convolution
- model-compression
# license: add the license of these weights
---"""


def model_card(
    plan: Plan,
    network: Network,
    results: Mapping[str, Any],
    size: int,
    machine: Mapping[str, Any],
    command: str | None = None,
) -> str:
    """Return the card as Markdown with the hub's front matter. All figures in it are measured or counted.

    Args:
        plan: the plan of the conversion.
        network: how the dense network is built.
        results: measured results: a conversion report, the steps of a run, or figures by name.
        size: size of the weights file in bytes.
        machine: processor, threads and versions that the figures depend on.
        command: the command that made the network.

    Example:
        >>> print(model_card(Plan("svd", (), macs=(90, 30)), Network("resnet20"), {}, 1234, {"torch": "2.13"}))
        ---
        library_name: torch-separable
        ...
        | MACs | 90 | 30 | 3.00x |
        ...
    """
    title = _plain(results.get("title") or f"{network.model}, depthwise separable")
    given = ", ".join(f"{key}={value!r}" for key, value in network.arguments.items())
    allow = "" if is_built_in(network.model) else f', allow=("{network.model.partition(":")[0]}",)'
    built = f"The dense network is `{_code(f'{network.model}({given})')}`"
    if network.input_shape:
        built += f"; it takes images of shape `{network.input_shape}`, prepared as in its training"
    layers = f"{len(plan.converted)} of its {len(plan.layers)} convolutions are depthwise separable"
    parts = [
        _FRONT,
        MARK,
        f"# {title}",
        f"{built}. In this one, {layers}: each is a depthwise and a pointwise convolution (`plan.json` says which).",
        "\n".join(_figures(plan, results, size)),
        *_steps(results),
        "## Use it",
        f'```python\nimport torch_separable as ts\n\nmodel = ts.load("path/of/this/folder"{allow})\n```',
        "Loading executes nothing in this folder: weights are safetensors, the rest is JSON."
        + (f" `allow` permits importing `{_code(network.model)}` from your own installation." if allow else ""),
        "## How it was made",
        *([f"```\n{command}\n```"] if command else []),
        _made_on(machine),
    ]
    return "\n\n".join(parts) + "\n"


def quantized_card(
    input_shape: Sequence[int],
    results: Mapping[str, Any],
    size: int,
    machine: Mapping[str, Any],
    command: str | None = None,
) -> str:
    """Return the card of a quantized network. All figures in it are measured or counted.

    Args:
        input_shape: shape of one image, (C, H, W).
        results: measured results: a quantization report, the steps of a run, or figures by name.
        size: size of the weights file in bytes.
        machine: processor, threads and versions that the figures depend on.
        command: the command that made the network.

    Example:
        >>> print(quantized_card((3, 8, 8), {"title": "Net"}, 1234, {"torch": "2.13"}))
        ---
        library_name: torch-separable
        ...
        | bytes of weights | 1,234 |
        ...
    """
    report = results.get("quantization")
    rows = [f"| bytes of weights | {size:,} |"]
    if isinstance(report, Mapping):
        kept = len(report["kept"])
        rows = [
            f"| layers in int8 | {len(report['layers'])}{f'; {kept} stay in float32' if kept else ''} |",
            *rows,
            f"| same predicted class, {report['held_out_images']:,} held-out images "
            f"| {100 * report['agreement']:.2f} % |",
            f"| change of the outputs, share of their variance | {100 * report['output_error']:.3g} % |",
        ]
    rows += [
        f"| {_plain(name)} | {value:,} |"
        for name, value in results.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    parts = [
        _FRONT.replace("depthwise-separable-convolution", "quantized"),
        MARK,
        f"# {_plain(results.get('title') or 'Quantized network')}",
        f"Weights are int8 with a scale for each output channel, activations uint8. It takes images of shape "
        f"`{tuple(input_shape)}`, prepared as in the training of the float network.",
        "\n".join(["| | |\n|---|---:|", *rows]),
        *_steps(results),
        "## Use it",
        '```python\nimport torch_separable as ts\n\nmodel = ts.load("path/of/this/folder")\n'
        "compiled = ts.compile(model, images)  # int8 kernels\n```",
        "Loading executes nothing in this folder: weights are safetensors, the rest is JSON (`network.json` lists the "
        "operators).",
        "## How it was made",
        *([f"```\n{command}\n```"] if command else []),
        _made_on(machine),
    ]
    return "\n\n".join(parts) + "\n"


def _made_on(machine: Mapping[str, Any]) -> str:
    return "; ".join(f"{_plain(name.replace('_', ' '))}: {_plain(value)}" for name, value in machine.items()) + "."


def _figures(plan: Plan, results: Mapping[str, Any], size: int) -> Iterable[str]:
    yield "| | dense | this network | |\n|---|---:|---:|---:|"
    for name, (dense, separable) in (("MACs", plan.macs), ("parameters", plan.parameters)):
        if dense and separable:
            yield f"| {name} | {dense:,} | {separable:,} | {dense / separable:.2f}x |"
    if plan.latency is not None:
        (before, after), by = plan.latency.milliseconds, f"{plan.latency.engine}, threads: {plan.latency.threads}"
        yield f"| milliseconds of one image, planned ({by}) | {before:.3g} | {after:.3g} | {before / after:.2f}x |"
    yield f"| bytes of weights | | {size:,} | |"
    conversion = results.get("conversion")
    if isinstance(conversion, Mapping):
        yield f"| same predicted class, held-out calibration images | | {100 * conversion['agreement']:.2f} % | |"
        yield f"| output error, share of the output variance | | {100 * conversion['output_error']:.3g} % | |"
    for name, value in results.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"| {_plain(name)} | | {value:,} | |"


def _steps(results: Mapping[str, Any]) -> list[str]:
    if "steps" not in results:
        return []
    rows = [
        f"| {_plain(step['name'])} | {_percent(step.get('accuracy'))} | {step['macs']:,} | {step['parameters']:,} |"
        for step in results["steps"]
    ]
    table = "\n".join(["| step | accuracy | MACs | parameters |", "|---|---:|---:|---:|", *rows])
    data, counts = results.get("data"), {step.get("count") for step in results["steps"]} - {None}
    if not isinstance(data, Mapping) or not counts:
        return [table]
    count = f"{max(counts):,}"
    if data.get("seen_by_teacher") is True:
        return [
            table,
            f"Accuracies were measured on {count} images that the dense network may have been trained on. They do not "
            "show how much accuracy was lost.",
        ]
    split = data.get("split")
    where = f"of the split {_plain(split)}" if isinstance(split, str) else "that were held out"
    return [table, f"Accuracies were measured on {count} images {where}."]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _plain(value: object) -> str:
    """Escape text so that it contains no line break, cell border or markup."""
    text = " ".join(str(value).split())
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return text


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
