"""Write ONNX files with PyTorch's exporter, and run them in ONNX Runtime and, if it is installed, OpenVINO."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from torch_separable._system.extras import optional
from torch_separable._version import __version__
from torch_separable.errors import SeparableError
from torch_separable.exporting.qdq import is_quantized, with_integer_biases

OPSET = 18
OPSETS = range(18, 24)
INPUT = "images"
SECOND_RUNTIME = "OpenVINO"  # where it disagrees, a warning says so; ONNX Runtime's outputs decide
IN_FLOAT32 = "OpenVINO, float32 kernels"


def to_onnx(program: ExportedProgram, opset: int, axes: Mapping[int, str], outputs: Sequence[str]) -> bytes:
    """Return the content of the file.

    Args:
        program: the result of `capture`.
        opset: version of ONNX operators.
        axes: names of the input's dynamic dimensions.
        outputs: names of the outputs.

    Raises:
        SeparableError: an operator has no counterpart in ONNX, or the file would exceed 2 GB.
        MissingExtraError: onnx and onnxscript are not installed (extra ``export``).
    """
    optional("onnxscript", "export")
    try:
        with _silence():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=(dict(axes),) if axes else None,  # names the dimensions
                verbose=False,
            )
        assert exported is not None
        model: Any = exported.model_proto
        model.producer_name, model.producer_version = "torch-separable", __version__
        if (written := model.opset_import[0].version) != opset:
            raise SeparableError(f"opset={opset}: this network can only be written in opset {written}")
        if is_quantized(program.graph):
            model = with_integer_biases(model)
        content: bytes = model.SerializeToString()
    except SeparableError:
        raise
    except Exception as error:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SeparableError(f"the network cannot be written as ONNX: {line}") from error
    return content


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the exporter's warnings about optional packages, such as torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def operators(content: bytes) -> dict[str, int]:
    """Return the number of graph nodes by operator."""
    model = optional("onnx", "export").load_from_string(content)
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


def runtimes(content: bytes, *, quantized: bool = False) -> dict[str, Callable[[Tensor], tuple[Tensor, ...]]]:
    """Load the file into the installed runtimes.

    Args:
        content: of the file.
        quantized: whether it has quantize and dequantize operators; OpenVINO is then also run without int8 kernels.

    Raises:
        SeparableError: ONNX Runtime cannot load it.
        MissingExtraError: onnxruntime is not installed (extra ``export``).
    """
    ort = optional("onnxruntime", "export")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Its kernels for processors without VNNI add pairs of int8 products with saturation at 16 bits, which is wrong for
    # large ones; with this setting they are exact, and slower. It has no effect on other processors.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise SeparableError(f"ONNX Runtime {ort.__version__} cannot load the file: {error}") from error
    found: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
        "ONNX Runtime": lambda images: tuple(map(torch.as_tensor, session.run(None, {INPUT: images.numpy()})))
    }
    if importlib.util.find_spec("openvino") is None:
        return found
    # Without the hint OpenVINO computes in bfloat16 on processors that have it, with about three digits.
    modes = {SECOND_RUNTIME: {"INFERENCE_PRECISION_HINT": "f32"}}
    if quantized:
        # Where its int8 kernels saturate, on processors without VNNI, this shows what the file itself says.
        modes[IN_FLOAT32] = {**modes[SECOND_RUNTIME], "LP_TRANSFORMS_MODE": "NO"}
    ov = optional("openvino", "export")
    core = ov.Core()
    for name, settings in modes.items():
        try:
            compiled = core.compile_model(core.read_model(content), "CPU", settings)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [""])[-1]
            warnings.warn(f"{name} {ov.__version__} cannot load the file: {reason}", stacklevel=3)
            return found
        found[name] = partial(_run_openvino, compiled)
    return found


def _run_openvino(compiled: Any, images: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.as_tensor(output.copy()) for output in compiled(images.numpy()).values())
