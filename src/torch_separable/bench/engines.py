"""The inference engines of a benchmark: each turns a network into a call on fixed images, with its fastest settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torch_separable._network.outputs import logits_of
from torch_separable.errors import SeparableError
from torch_separable.exporting.to_onnx import INPUT

Precision = Literal["float32", "bfloat16", "int8"]
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Job:
    """A network for an engine to run.

    Attributes:
        engine: a key of `ENGINES`.
        model: the network, in evaluation mode; for an engine in int8, the quantized one.
        images: the input, (N, C, H, W).
        threads: number of threads of the engine.
        onnx: the network as an ONNX file, for engines that read one.
    """

    engine: str
    model: nn.Module
    images: Tensor
    threads: int
    onnx: bytes | None = None


@dataclass(frozen=True)
class Engine:
    """An inference engine.

    Attributes:
        title: name in tables.
        precision: data type of its arithmetic.
        prepare: function from a job to a call that runs the images and returns the logits.
        module: Python module that it needs.
        pip: package that provides the module.
        onnx: whether it reads an ONNX file.
        slow: whether preparation takes minutes, so that it runs only on request.
    """

    title: str
    precision: Precision
    prepare: Callable[[Job], Call]
    module: str = "torch"
    pip: str = "torch-separable"
    onnx: bool = False
    slow: bool = False


def _separable(precision: Precision) -> Callable[[Job], Call]:
    def prepare(job: Job) -> Call:
        from torch_separable.runtime import compile

        compiled = compile(job.model, job.images, threads=job.threads, dtype=getattr(torch, precision), compare=False)
        return lambda: logits_of(compiled(job.images))

    return prepare


def _separable_int8(job: Job) -> Call:
    from torch_separable.runtime import compile

    compiled = compile(job.model, job.images, threads=job.threads, compare=False)
    return lambda: logits_of(compiled(job.images))


def _eager(layout: torch.memory_format, precision: Precision) -> Callable[[Job], Call]:
    def prepare(job: Job) -> Call:
        model: Any = job.model.to(memory_format=layout)  # type: ignore[call-overload]
        images = job.images.to(memory_format=layout)

        def call() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                return logits_of(model(images))

        return call

    return prepare


def _inductor(job: Job) -> Call:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    compiled = torch.compile(job.model, mode="max-autotune")
    return lambda: logits_of(compiled(job.images))


def _onnxruntime(job: Job) -> Call:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    session = ort.InferenceSession(job.onnx, options, providers=["CPUExecutionProvider"])
    # Bound inputs and outputs: a call copies nothing.
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT, ort.OrtValue.ortvalue_from_numpy(job.images.numpy()))
    outputs = ort.OrtValue.ortvalue_from_numpy(session.run(None, {INPUT: job.images.numpy()})[0])
    binding.bind_ortvalue_output(session.get_outputs()[0].name, outputs)

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return torch.from_numpy(outputs.numpy())

    return call


def _openvino(precision: Precision) -> Callable[[Job], Call]:
    def prepare(job: Job) -> Call:
        import openvino as ov

        core = ov.Core()
        hint = "bf16" if precision == "bfloat16" else "f32"
        if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise SeparableError("OpenVINO has no bfloat16 on this processor")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": job.threads,
            "INFERENCE_PRECISION_HINT": hint,
        }
        request = core.compile_model(core.read_model(job.onnx), "CPU", settings).create_infer_request()
        # The fastest of the calls that were tried: tensors are set once, and an asynchronous request is awaited.
        request.set_input_tensor(ov.Tensor(job.images.numpy(), shared_memory=True))
        outputs = torch.from_numpy(request.get_output_tensor().data)

        def call() -> Tensor:
            request.start_async()
            request.wait()
            return outputs

        return call

    return prepare


_PLAIN, _LAST = torch.contiguous_format, torch.channels_last
OURS = "separable"
ENGINES: dict[str, Engine] = {
    OURS: Engine("torch-separable", "float32", _separable("float32")),
    "eager": Engine("PyTorch eager", "float32", _eager(_PLAIN, "float32"), pip="torch"),
    "channels_last": Engine("PyTorch channels_last", "float32", _eager(_LAST, "float32"), pip="torch"),
    "inductor": Engine("torch.compile, frozen", "float32", _inductor, pip="torch", slow=True),
    "onnxruntime": Engine("ONNX Runtime", "float32", _onnxruntime, "onnxruntime", "onnxruntime", onnx=True),
    "openvino": Engine("OpenVINO", "float32", _openvino("float32"), "openvino", "openvino", onnx=True),
    f"{OURS}_bf16": Engine("torch-separable bf16", "bfloat16", _separable("bfloat16")),
    "autocast": Engine("PyTorch autocast bf16", "bfloat16", _eager(_LAST, "bfloat16"), pip="torch"),
    "openvino_bf16": Engine("OpenVINO bf16", "bfloat16", _openvino("bfloat16"), "openvino", "openvino", onnx=True),
    f"{OURS}_int8": Engine("torch-separable int8", "int8", _separable_int8),
    "onnxruntime_int8": Engine("ONNX Runtime int8", "int8", _onnxruntime, "onnxruntime", "onnxruntime", onnx=True),
    "openvino_int8": Engine("OpenVINO int8", "int8", _openvino("int8"), "openvino", "openvino", onnx=True),
}
