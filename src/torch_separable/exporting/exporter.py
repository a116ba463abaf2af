"""Export a network: capture it, write the file, run the file, and keep it if the outputs agree."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from torch_separable._network.ambient import default_settings
from torch_separable._network.checks import as_network
from torch_separable._system.files import replacing
from torch_separable._system.locking import sole_writer
from torch_separable.conversion import Conversion
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.exporting import to_executorch, to_native, to_onnx, to_pt2
from torch_separable.exporting.capture import Ready, capture, prepared
from torch_separable.exporting.comparison import compare_outputs, runner
from torch_separable.exporting.qdq import is_quantized
from torch_separable.exporting.result import Exported, Format
from torch_separable.models.registry import built_by

SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "pt2", ".pte": "executorch", ".tsn": "native"}
TOLERANCE: dict[Format, float] = {"onnx": 1e-4, "pt2": 1e-4, "executorch": 1e-3, "native": 1e-4}
# Of quantized networks: runtimes compute the same integer sums but round ties differently, so single values differ by
# one quantum, and the layers behind them see other inputs.
QUANTIZED_TOLERANCE = 0.05
_TIMES_SIMULATED = 4
_NOISE_IMAGES = 8
_COMPARED_BATCH = 32
_LOCK_TIMEOUT = 30.0  # seconds; another writer into the folder may be waiting for the disk


@default_settings()
def export(
    model: nn.Module | Conversion,
    path: str | Path,
    *,
    to: Format | None = None,
    input_shape: Sequence[int] | None = None,
    images: Tensor | None = None,
    batch: int | Sequence[int] | None = None,
    dynamic_size: bool = False,
    opset: int | None = None,
    native: to_native.NativeOptions | None = None,
) -> Exported:
    """Write a network as a file for another runtime, with batch norms folded into convolutions.

    The file is run on the CPU and compared with the network. It is kept only if the outputs differ by no more than 1e-4
    (ExecuTorch: 1e-3), relative to the largest output if that is above 1. ``model`` is not changed.

    A quantized network becomes a graph with quantize and dequantize operators (QDQ), which other runtimes fuse into
    int8 kernels of their own. Single values then differ by one quantum, so outputs may differ by 5 %.

    If the network returns a tuple, a list, a mapping or a dataclass, all tensors in it become outputs of the file, in
    order. Of an output with ``logits``, only these are exported.

    Args:
        model: any network; it is exported in evaluation mode and float32, or as `quantize` made it.
        path: path of the file.
        to: ``"onnx"``, ``"pt2"``, ``"executorch"`` or ``"native"``; by default the suffix decides: .onnx, .pt2, .pte,
            .tsn. A native file is a compiled network, which ``separable_runtime`` runs without PyTorch.
        input_shape: shape of one image, (C, H, W). It is known if ``images`` are given, or if ``model`` was returned by
            `load` or `convert`.
        images: images (N, C, H, W) to compare on, normalized as in training; by default a few of noise.
        batch: a fixed batch size; by default it is dynamic, except for ExecuTorch and native files, which plan their
            memory ahead: 1. A native file can have several.
        dynamic_size: whether the file accepts images of other sizes; ONNX and ``.pt2`` only. The outputs are then
            compared on a second size as well.
        opset: version of ONNX operators; 18 by default.
        native: instruction sets, threads, precision and description of a native file.

    Warns:
        UserWarning: OpenVINO is installed, and its outputs differ; the file is kept if ONNX Runtime agrees.

    Raises:
        SeparableError: the network cannot be exported, or the outputs of the file differ.
        MissingExtraError: a package is not installed (extras ``export`` and ``executorch``).

    Example:
        >>> import tempfile
        >>> from torch_separable.models import mobilenet_v1
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = export(mobilenet_v1(0.25), f"{folder}/network.pt2", input_shape=(3, 64, 64))
        >>> file.operators["aten.conv2d.default"], max(file.parity.values()) < 1e-4
        (27, True)
    """
    path = Path(path)
    network, shape = _network(model, input_shape, images)
    form = _format(path, to)
    if path.is_dir():
        raise SeparableError(f"{path} is a folder: name a file, such as {path / 'model.onnx'}")
    if form == "native":
        if dynamic_size or opset is not None:
            raise SeparableValueError("dynamic_size and opset: native files are compiled for one size of images")
        options = native or to_native.NativeOptions()
        return to_native.to_native(network, path, shape, batch, images, options, TOLERANCE[form])
    if native is not None:
        raise SeparableValueError(f'native={native!r}: needs to="native" or the suffix .tsn')
    if batch is not None and (type(batch) is not int or batch < 1):
        raise SeparableValueError(f"batch={batch!r}: must be a whole number, at least 1, or None for any")
    if opset is not None and (form != "onnx" or opset not in to_onnx.OPSETS):
        known = f"{to_onnx.OPSETS.start} to {to_onnx.OPSETS.stop - 1}"
        raise SeparableValueError(f"opset={opset!r}: is an argument of ONNX export, and must be one of {known}")
    if dynamic_size and form == "executorch":
        raise SeparableValueError("dynamic_size=True: ExecuTorch plans memory for one size; export to ONNX or .pt2")
    if form == "executorch" and batch is None:
        batch = 1

    ready = prepared(network, shape, batch)
    if dynamic_size:
        _check_sizes(ready, shape, batch, type(network).__name__)
    program = capture(ready.network, shape, batch, dynamic_size=dynamic_size)
    _check_operators(program, path)
    quantized = is_quantized(program.graph)
    if quantized and form == "executorch":
        raise SeparableError(
            f"{path} is not written: ExecuTorch's XNNPACK kernels take int8 activations, and this network has uint8 "
            "ones. Export it to ONNX or .pt2"
        )
    if form == "onnx":
        opset = opset or to_onnx.OPSET
        content = to_onnx.to_onnx(program, opset, _axes(shape, batch, dynamic_size), ready.outputs)
        operators, runtimes = to_onnx.operators(content), to_onnx.runtimes(content, quantized=quantized)
    elif form == "pt2":
        content = to_pt2.to_pt2(program)
        operators, runtimes = to_pt2.operators(program), to_pt2.runtimes(content)
    else:
        content, operators = to_executorch.to_executorch(program)
        runtimes = to_executorch.runtimes(content)

    real = images is not None
    compared = (
        torch.randn(_NOISE_IMAGES, *shape, generator=torch.Generator().manual_seed(0)) if images is None else images
    )
    batches = _batches(compared.detach().cpu().float(), batch)
    limits = [TOLERANCE[form]] * len(ready.outputs)
    if quantized:
        # PyTorch's own float32 arithmetic on the same graph shows how much the network amplifies single quanta.
        simulated = compare_outputs("PyTorch", runner(program.module(check_guards=False)), ready, batches)
        limits = [max(QUANTIZED_TOLERANCE, _TIMES_SIMULATED * each.relative) for each in simulated]
    batches += [_resized(one) for one in batches] if dynamic_size else []
    differences = {name: compare_outputs(name, run, ready, batches) for name, run in runtimes.items()}
    for name, of_outputs in differences.items():
        compared_with = zip(of_outputs, limits, strict=True)
        reason = next((each.describe(name, limit) for each, limit in compared_with if each.exceeds(limit)), None)
        if reason is None:
            continue
        if not name.startswith(to_onnx.SECOND_RUNTIME):
            raise SeparableError(f"{path} is not written: {reason}")
        warnings.warn(f"{path}: {reason}. It is written, because ONNX Runtime agrees with the network", stacklevel=3)
    largest = max(each.largest for each in next(iter(differences.values())))
    parity = {name: max(each.difference for each in of_outputs) for name, of_outputs in differences.items()}
    with sole_writer(path.parent, wait=_LOCK_TIMEOUT, leftovers_of=path.name), replacing(path) as aside:
        aside.write_bytes(content)
    return Exported(
        path, form, len(content), shape, batch, opset, operators, len(compared), real, largest, parity, ready.outputs
    )  # fmt: skip


def _network(
    model: nn.Module | Conversion, input_shape: Sequence[int] | None, images: Tensor | None
) -> tuple[nn.Module, tuple[int, ...]]:
    network = as_network(model.model if isinstance(model, Conversion) else model)
    if images is not None and not isinstance(images, Tensor):
        raise SeparableValueError(f"images are a {type(images).__name__}: expected a tensor (N, C, H, W)")
    known = built_by(network)
    shape = input_shape if input_shape is not None else getattr(network, "input_shape", None)  # quantized networks
    if shape is None and images is not None:
        shape = images.shape[1:]
    if shape is None and isinstance(model, Conversion):
        shape = model.report.input_shape or None
    if shape is None and known is not None:
        shape = known.input_shape
    if shape is None:
        raise SeparableError("the shape of one image is unknown: give input_shape=(C, H, W) (--input C,H,W), or images")
    if not shape or not all(type(n) is int and n > 0 for n in shape):
        raise SeparableValueError(f"input_shape={tuple(shape)}: must be positive whole numbers, such as (3, 32, 32)")
    if images is not None and (len(images) == 0 or tuple(images.shape[1:]) != tuple(shape)):
        raise SeparableValueError(
            f"images have shape {tuple(images.shape)}: expected (N, {', '.join(map(str, shape))}), N at least 1"
        )
    return network, tuple(shape)


def _format(path: Path, to: str | None) -> Format:
    if to is None:
        if path.suffix not in SUFFIXES:
            raise SeparableValueError(f"{path} has none of the suffixes {', '.join(SUFFIXES)}: give the format as `to`")
        return SUFFIXES[path.suffix]
    if to not in get_args(Format):
        raise SeparableValueError(f"to={to!r}: must be one of {', '.join(get_args(Format))}")
    if SUFFIXES.get(path.suffix, to) != to:
        raise SeparableValueError(
            f"{path} has the suffix of {SUFFIXES[path.suffix]}, but to={to!r}: use another suffix"
        )
    return to  # type: ignore[return-value]


def _axes(shape: Sequence[int], batch: int | None, dynamic_size: bool) -> dict[int, str]:
    """Name the dynamic dimensions of the input."""
    axes = {0: "batch"} if batch is None else {}
    if dynamic_size:
        names = ("height", "width") if len(shape) == 3 else tuple(f"size{i}" for i in range(1, len(shape)))
        axes |= {2 + i: name for i, name in enumerate(names)}
    return axes


def _check_operators(program: ExportedProgram, path: Path) -> None:
    """Refuse a graph with operators of this package, which other processes cannot load."""
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith("torch_separable"):
            raise SeparableError(
                f"{path} is not written: the network calls {node.target}, which exists only in this package. Call "
                "ordinary layers instead"
            )


def _check_sizes(ready: Ready, shape: tuple[int, ...], batch: int | None, name: str) -> None:
    """Require that the network runs on another size: ``torch.export`` may defer the failure to the file's user."""
    example = _resized(torch.zeros(batch or 2, *shape))
    try:
        ready(example)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SeparableError(
            f"{name} takes {shape} but not {tuple(example.shape[1:])}: {first}. It can be exported for a fixed size "
            "only: leave out dynamic_size (--dynamic-size)"
        ) from error


def _resized(images: Tensor) -> Tensor:
    """Return noise of another size: half as high again, and twice as wide."""
    sizes = [size + -(-size // 2) if i == 0 else 2 * size for i, size in enumerate(images.shape[2:])]
    return torch.randn(*images.shape[:2], *sizes, generator=torch.Generator().manual_seed(0))


def _batches(images: Tensor, batch: int | None) -> list[Tensor]:
    """Split the images into batches; for a dynamic batch size, into batches of several sizes."""
    if batch is None:
        return [images[:1], *images[1:].split(_COMPARED_BATCH)] if len(images) > 1 else [images]
    whole = torch.arange(-(-len(images) // batch) * batch) % len(images)
    return list(images[whole].split(batch))
