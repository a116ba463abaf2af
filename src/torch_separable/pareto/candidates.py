"""What is measured for a frontier: networks, the engines that run them, and how their outputs are computed."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._network.outputs import evaluating, logits_of
from torch_separable._system.quiet import quiet
from torch_separable.bench.engines import ENGINES, OURS
from torch_separable.conversion import Budget, apply, calibrate
from torch_separable.conversion.planning.planner import plans
from torch_separable.cost import analyze
from torch_separable.errors import MissingExtraError, SeparableError
from torch_separable.exporting.capture import LOGITS, capture, prepared_for_logits
from torch_separable.exporting.to_onnx import INPUT, OPSET, to_onnx
from torch_separable.mixed_precision import MixedConversion, convert
from torch_separable.mixed_precision.planning import has_bfloat16
from torch_separable.quantization import quantize
from torch_separable.runtime import compile

Predict = Callable[[Tensor], Tensor]

_BATCH = 100  # images in a pass that computes outputs


@dataclass(frozen=True)
class Candidate:
    """A network in an engine.

    Attributes:
        form: ``"dense"``, or the budget that it was converted within.
        engine: key of `ENGINES`.
        title: of the engine.
        precision: of its arithmetic.
        macs: multiply-accumulates for one image.
        model: the network; what the engine does not read is empty.
        onnx: the network for one image as a file, for engines that read one.
        predict: outputs of the network in this precision, for images (N, C, H, W).
    """

    form: str
    engine: str
    title: str
    precision: str
    macs: int
    model: nn.Module
    onnx: bytes | None
    predict: Predict


def ours(
    model: nn.Module, images: Tensor, budgets: Sequence[Budget], problems: list[str], *, progress: bool
) -> Iterator[Candidate]:
    """Yield the dense network and the converted ones in every precision of this package's runtime.

    A budget of MACs or parameters gives one converted network, in every precision; one of milliseconds gives the
    network whose precisions are planned together with its ranks.

    Args:
        model: the dense network.
        images: that everything is fitted to.
        budgets: for the converted networks.
        problems: takes a sentence for each budget that cannot be met.
        progress: whether to show progress bars on a terminal.
    """
    yield from _precisions("dense", model, images, progress)
    counted = [budget for budget in budgets if budget.kind != "latency_ms"]
    for budget, converted in _converted(model, images, counted, problems, progress):
        yield from _precisions(_named(budget), converted, images, progress)
    for budget in budgets:
        if budget.kind != "latency_ms":
            continue
        try:
            done = convert(model, images, budget=budget, precision="auto", progress=progress)
        except SeparableError as error:
            problems.append(f"{error}.")
            continue
        assert isinstance(done, MixedConversion)
        yield _ours(_named(budget), done.model, "auto", done.dtype, images, done.report.macs.converted)


def _converted(
    model: nn.Module, images: Tensor, budgets: Sequence[Budget], problems: list[str], progress: bool
) -> Iterator[tuple[Budget, nn.Module]]:
    """Convert within each budget that can be met; the layers are measured once."""
    if not budgets:
        return
    try:
        statistics = calibrate(model, images, progress=progress)
    except SeparableError as error:
        problems.append(f"{error}.")
        return
    reachable = []
    try:
        reachable = list(zip(budgets, plans(model, statistics, budgets, progress=progress), strict=True))
    except SeparableError:  # one of them is out of reach
        for budget in budgets:
            try:
                reachable.append((budget, plans(model, statistics, [budget], progress=progress)[0]))
            except SeparableError as error:
                problems.append(f"{error}.")
    for budget, plan in reachable:
        yield budget, apply(model, plan, statistics, progress=progress)


def _precisions(form: str, model: nn.Module, images: Tensor, progress: bool) -> Iterator[Candidate]:
    macs = analyze(model, images[:1]).macs
    yield _ours(form, model, "f32", torch.float32, images, macs)
    if has_bfloat16():
        yield _ours(form, model, "bf16", torch.bfloat16, images, macs)
    quantized = quantize(model, images, progress=progress).model
    yield _ours(form, quantized, "int8", torch.float32, images, macs)


def _ours(form: str, model: nn.Module, precision: str, dtype: torch.dtype, images: Tensor, macs: int) -> Candidate:
    key = f"{OURS}_bf16" if dtype == torch.bfloat16 else OURS
    compiled = compile(model, images[:_BATCH], dtype=dtype)
    return Candidate(form, key, ENGINES[OURS].title, precision, macs, model, None, lambda x: logits_of(compiled(x)))


def _named(budget: Budget) -> str:
    """Name a budget as on the command line.

    Example:
        >>> _named(Budget(macs=0.5))
        'macs=0.5'
    """
    return f"{budget.kind}={getattr(budget, budget.kind):g}"


def peers(model: nn.Module, images: Tensor, keys: Sequence[str], problems: list[str]) -> Iterator[Candidate]:
    """Yield the dense network in other engines: their float modes, and int8 by ONNX Runtime's own quantization.

    Args:
        model: the dense network.
        images: that ranges are calibrated on.
        keys: of `PEERS`.
        problems: takes a sentence for each engine that is left out.
    """
    ready = prepared_for_logits(model, images.shape[1:], None)
    macs = analyze(ready, images[:1]).macs
    files: dict[tuple[str, int], bytes] = {}

    def file(precision: str, batch: int) -> bytes:
        if (precision, batch) not in files:
            source = to_onnx(capture(ready, images.shape[1:], batch), OPSET, {}, (LOGITS,))
            files[precision, batch] = source if precision != "int8" else quantized_file(source, images, batch)
        return files[precision, batch]

    for key in keys:
        engine, precision = PEERS[key]
        title = ENGINES[engine].title.removesuffix(" bf16")
        if importlib.util.find_spec(ENGINES[engine].module) is None:
            problems.append(f"{title} is not installed: pip install {ENGINES[engine].pip}.")
        elif precision == "bf16" and not has_bfloat16():
            problems.append(f"{title} bf16 is left out: this processor has no bfloat16 instructions.")
        else:
            try:
                run = _openvino if engine.startswith("openvino") else _onnxruntime
                predict = run(file(precision, _BATCH), precision)
                yield Candidate("dense", engine, title, precision, macs, nn.Identity(), file(precision, 1), predict)
            except MissingExtraError as error:
                problems.append(f"{title} {precision} left out: {error}.")


# Engine and precision of each peer.
PEERS = {
    "openvino": ("openvino", "f32"),
    "openvino_bf16": ("openvino_bf16", "bf16"),
    "openvino_int8": ("openvino", "int8"),
    "onnxruntime": ("onnxruntime", "f32"),
    "onnxruntime_int8": ("onnxruntime", "int8"),
}


def quantized_file(source: bytes, images: Tensor, batch: int) -> bytes:
    """Quantize an ONNX file with ONNX Runtime: int8 weights per channel, uint8 activations, as a QDQ graph.

    Args:
        source: the file, for a fixed number of images.
        images: that ranges are calibrated on.
        batch: number of images that the file takes.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            whole = [part for part in images.split(batch) if len(part) == batch]
            self.parts = iter(whole or [images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch]])

        def get_next(self) -> dict[str, Any] | None:
            part = next(self.parts, None)
            return None if part is None else {INPUT: part.contiguous().numpy()}

    with tempfile.TemporaryDirectory() as folder, quiet():
        given, ready, done = (Path(folder) / f"{name}.onnx" for name in ("given", "ready", "done"))
        given.write_bytes(source)
        quant_pre_process(str(given), str(ready))
        quantize_static(
            str(ready), str(done), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return done.read_bytes()


def _onnxruntime(file: bytes, precision: str) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return _in_batches(lambda x: torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0]))


def _openvino(file: bytes, precision: str) -> Predict:
    import openvino

    core = openvino.Core()
    hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    compiled = core.compile_model(core.read_model(file), "CPU", hint)
    return _in_batches(lambda x: torch.from_numpy(compiled({INPUT: x.numpy()})[0].copy()))


def _in_batches(run: Predict) -> Predict:
    """Fill up the last batch, because the file takes a fixed number of images."""

    def predict(x: Tensor) -> Tensor:
        missing = _BATCH - len(x)
        filled = torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing > 0 else x
        return run(filled.contiguous())[: len(x)]

    return predict


def outputs_of(predict: Predict, images: Tensor) -> Tensor:
    """Compute outputs (N, ...) in batches."""
    with torch.no_grad():
        return torch.cat([predict(part.contiguous()) for part in images.split(_BATCH)])


def eager(model: nn.Module) -> Predict:
    """Return a function that computes outputs in PyTorch, the reference of agreement."""

    def predict(x: Tensor) -> Tensor:
        with evaluating(model):
            return logits_of(model(x))

    return predict
