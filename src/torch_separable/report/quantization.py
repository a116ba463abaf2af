"""The content of a page on a quantized network: both precisions, and the error of each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch_separable.report.fields import count, entries, number, optional_number, text


@dataclass(frozen=True)
class Precision:
    """The network in one precision.

    Attributes:
        name: ``float32`` or ``int8``.
        accuracy: on the evaluated split; ``None`` if it was not measured.
        bytes: of the weights.
        milliseconds: of one call after `compile`; ``None`` if it was not measured.
    """

    name: str
    accuracy: float | None
    bytes: int
    milliseconds: float | None


@dataclass(frozen=True)
class Quantized:
    """What quantization changed.

    Attributes:
        precisions: the network in float32 and in int8; empty if they were not compared.
        layers: quantized layers and the relative error of their outputs that rounding their weights makes.
        kept: layers in float32, and why.
        words: sentences on the outputs, the accuracy and the time.
    """

    precisions: tuple[Precision, ...]
    layers: tuple[tuple[str, float], ...]
    kept: tuple[tuple[str, str], ...]
    words: str


def quantized_network(results: dict[str, Any]) -> Quantized | None:
    """Read the quantization of a run; ``None`` if the run has none.

    Raises:
        SeparableError: a value is missing or has the wrong type; the message names it.
    """
    report = results.get("quantization")
    if report is None:
        return None
    where = "quantization"
    layers = [
        (text(layer, "name", f"{where}.layers[{i}]"), number(layer, "error", f"{where}.layers[{i}]"))
        for i, layer in enumerate(entries(report, "layers", where))
    ]
    kept = report.get("kept")
    kept = kept if isinstance(kept, dict) else {}
    images = count(report, "held_out_images", where)
    words = [
        f"{len(layers)} layers are in int8, {len(kept)} in float32.",
        f"On {images:,} held-out images {100 * number(report, 'agreement', where):.1f} % of the predicted classes are "
        f"the same, and the outputs change by {100 * number(report, 'output_error', where):.3g} % of their variance.",
    ]
    compared = results.get("precisions")
    precisions: tuple[Precision, ...] = ()
    if compared is not None:
        precisions = tuple(_precision(compared, i) for i in range(len(entries(compared, "networks", "precisions"))))
        words += _conditions(compared, precisions)
    return Quantized(precisions, tuple(layers), tuple((str(n), str(why)) for n, why in kept.items()), " ".join(words))


def _precision(compared: Any, i: int) -> Precision:
    where = f"precisions.networks[{i}]"
    network = entries(compared, "networks", "precisions")[i]
    name = text(network, "name", where)
    accuracy = number(network, "accuracy", where) if isinstance(network, dict) and "accuracy" in network else None
    return Precision(name, accuracy, count(network, "bytes", where), optional_number(compared, name, "precisions"))


def _conditions(compared: Any, precisions: tuple[Precision, ...]) -> list[str]:
    words = []
    times = [each.milliseconds for each in precisions]
    if len(times) == 2 and times[0] is not None and times[1] is not None:
        if times[1] > times[0]:
            words.append("On this machine int8 is slower than float32.")
        images, rounds, threads = (count(compared, key, "precisions") for key in ("images", "rounds", "threads"))
        words.append(f"Times are medians of {rounds} alternating calls, images per call: {images}, threads: {threads}.")
    elif compared.get("problem"):
        words.append(f"The networks were not compiled: {text(compared, 'problem', 'precisions')}.")
    if any(each.accuracy is not None for each in precisions):
        seen = compared.get("seen_by_teacher") is True
        words.append(
            "Accuracies were measured on images that the network may have been trained on."
            if seen
            else f"Accuracies were measured on the split {compared.get('split')}."
        )
    else:
        words.append("Accuracy was not measured.")
    return words
