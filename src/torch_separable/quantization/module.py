"""The quantized network as a module: exact integers in eager mode, standard operators under ``torch.export``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import torch
import torch.fx.traceback
from torch import Tensor, fx, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401 - registers the operators

from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.quantization.rounding import round_bias
from torch_separable.quantization.stored import build, describe
from torch_separable.quantization.stream import QuantizedLayer
from torch_separable.runtime.graph.ir import Program, Quantization
from torch_separable.runtime.graph.quantized import read_quantized
from torch_separable.runtime.graph.reference import run_program

ops = torch.ops.quantized_decomposed
_LARGEST = 127


class QuantizedNetwork(nn.Module):
    """A network with int8 weights and uint8 activations; made by `quantize`.

    In eager mode on the CPU a call computes what int8 kernels compute, bit for bit, in plain PyTorch. Under
    ``torch.export`` the network is a graph of float operators between PyTorch's own ``quantized_decomposed`` operators,
    which `compile`, ``export`` and other tools read.

    Attributes:
        captured: the network as a graph with quantize and dequantize operators.
        input_shape: of one image, (C, H, W).
    """

    def __init__(self, graph: fx.GraphModule, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.captured = graph
        self.input_shape = tuple(input_shape)
        self._programs: dict[int, Program] = {}
        self._lock = Lock()
        self.training = False

    def forward(self, x: Tensor) -> Any:
        """Map images (N, C, H, W) to what the network returns."""
        if torch.compiler.is_dynamo_compiling():
            return self.captured(x)
        if torch.compiler.is_exporting():
            with torch.fx.traceback.preserve_node_meta():  # keeps the names of the modules that operators come from
                return fx.Interpreter(self.captured).run(x)
        if x.dim() != 4 or tuple(x.shape[1:]) != self.input_shape:
            raise SeparableValueError(
                f"the input has shape {tuple(x.shape)}: the network was quantized for images of shape "
                f"{self.input_shape}, (N, C, H, W)"
            )
        if x.device.type != "cpu":
            with torch.no_grad():
                return self.captured(x)
        return run_program(self.program(x), x)

    def program(self, x: Tensor) -> Program:
        """The program that is run for a batch of this size."""
        with self._lock:
            found = self._programs.get(len(x))
            if found is None:
                self._programs[len(x)] = found = read_quantized(self.captured, x)
        return found

    def train(self, mode: bool = True) -> QuantizedNetwork:
        """Stay in evaluation mode.

        Raises:
            SeparableError: for ``train(True)``: rounding has no gradient.
        """
        if mode:
            raise SeparableError(
                "a quantized network cannot be trained: train or distill the float network, and quantize it again"
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return plain data: a captured graph cannot be pickled."""
        left_out = {"_programs", "_lock", "_modules"}
        kept = {name: value for name, value in self.__dict__.items() if name not in left_out}
        return {**kept, "stored": (describe(self.captured), self.captured.state_dict())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        description, tensors = state.pop("stored")
        graph = build(description, tensors, "the pickled network")
        self.__dict__.update(state, _modules={"captured": graph}, _programs={}, _lock=Lock())


def insert_operators(
    module: fx.GraphModule, values: Mapping[fx.Node, Quantization], layers: Mapping[fx.Node, QuantizedLayer]
) -> None:
    """Write quantize and dequantize operators into a captured network, and int8 weights in place of float ones."""
    graph = module.graph
    for node, layer in layers.items():
        prefix = f"int8_{node.name}"
        source = node.args[0]
        assert isinstance(source, fx.Node)
        scales, bias = round_bias(layer.weight, layer.scales, layer.bias, values[source].scale)
        tensors = {
            "weight": layer.weight,
            "scales": scales,
            "zero_points": torch.zeros(len(scales), dtype=torch.int64),
            "bias": bias,
        }
        with graph.inserting_before(node):
            parts = {}
            for name, tensor in tensors.items():
                module.register_buffer(f"{prefix}_{name}", tensor)
                parts[name] = graph.get_attr(f"{prefix}_{name}")
            weight = graph.call_function(
                ops.dequantize_per_channel.default,
                (parts["weight"], parts["scales"], parts["zero_points"], 0, -_LARGEST, _LARGEST, torch.int8),
            )
        kwargs = {key: value for key, value in node.kwargs.items() if key != "bias"}
        node.args = (node.args[0], weight, parts["bias"], *node.args[3:])
        node.kwargs = kwargs
    for node, quantization in values.items():
        parameters = (quantization.scale, quantization.zero_point, 0, 255, torch.uint8)
        with graph.inserting_after(node):
            stored = graph.call_function(ops.quantize_per_tensor.default, (node, *parameters))
        with graph.inserting_after(stored):
            value = graph.call_function(ops.dequantize_per_tensor.default, (stored, *parameters))
        stored.meta = value.meta = dict(node.meta)
        node.replace_all_uses_with(value, delete_user_cb=lambda user, stored=stored: user is not stored)  # type: ignore[misc]
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    _drop_unused(module)
    graph.lint()
    module.recompile()


def _drop_unused(module: fx.GraphModule) -> None:
    """Remove parameters and buffers that the graph no longer reads, the float weights."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for path, owner in list(module.named_modules()):
        for store in (owner._parameters, owner._buffers):
            for name in list(store):
                if (f"{path}.{name}" if path else name) not in used:
                    del store[name]
