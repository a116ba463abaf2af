"""Replace depthwise separable layers by modules that call the fused kernel, without compiling the network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._console import notebook
from torch_separable._network.checks import as_network
from torch_separable.errors import SeparableError
from torch_separable.nn import DepthwiseSeparableConv2d
from torch_separable.runtime.graph.ir import IDENTITY, RELU, Activation, ActivationKind
from torch_separable.runtime.native.instruction_sets import chosen_set
from torch_separable.runtime.ops import separable_conv2d

_PARTS = {"pad", "conv_dw", "bn1", "act1", "conv_pw", "bn2", "act2"}


@dataclass(frozen=True)
class FusedModules:
    """The result of `fuse_modules`.

    Attributes:
        fused: names of the layers that now use the fused kernel.
        kept: names of the other depthwise separable layers, with the reasons why they were not replaced.
    """

    fused: tuple[str, ...]
    kept: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} layers use the fused kernel in evaluation mode."]
        return "\n".join([*lines, *(f"{name} was not replaced: {reason}." for name, reason in self.kept.items())])

    def _repr_html_(self) -> str:
        rows = [(name, "fused") for name in self.fused] + list(self.kept.items())
        return notebook.table(("layer", "result"), rows or [("", "no depthwise separable layer")])


def fuse_modules(model: nn.Module) -> FusedModules:
    """Replace every `DepthwiseSeparableConv2d` in a network by a module that calls the fused kernel, in place.

    The `FusedSeparableConv2d` has the same child modules, so the names in ``state_dict`` stay. In evaluation mode and
    without gradients it runs as one kernel, with batch norms folded into the weights; otherwise it runs the child
    modules.

    Args:
        model: a network that contains such layers.

    Raises:
        SeparableError: the model itself is such a layer, or this installation has no kernel library.

    Example:
        >>> import torch_separable as ts
        >>> model = ts.models.mobilenet_v1(0.25).eval()
        >>> len(fuse_modules(model).fused)
        13
        >>> with torch.no_grad():
        ...     model(torch.randn(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    chosen_set()
    as_network(model)
    if isinstance(model, DepthwiseSeparableConv2d):
        raise SeparableError(
            "the model itself is a DepthwiseSeparableConv2d, which cannot be replaced in place: wrap it in "
            "nn.Sequential"
        )
    made: dict[int, nn.Module] = {}
    fused: list[str] = []
    kept: dict[str, str] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, DepthwiseSeparableConv2d) or isinstance(module, FusedSeparableConv2d):
            continue
        reason = _objection(module)
        if reason:
            kept[name] = reason
            continue
        parent, _, child = name.rpartition(".")
        made.setdefault(id(module), FusedSeparableConv2d.of(module))
        setattr(model.get_submodule(parent), child, made[id(module)])
        fused.append(name)
    return FusedModules(tuple(fused), kept)


def unfuse_modules(model: nn.Module) -> int:
    """Undo `fuse_modules` in place, and return the number of layers that were replaced.

    Example:
        >>> import torch_separable as ts
        >>> model = ts.models.mobilenet_v1(0.25)
        >>> len(fuse_modules(model).fused) == unfuse_modules(model)
        True
    """
    made: dict[int, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, FusedSeparableConv2d) and name:
            parent, _, child = name.rpartition(".")
            plain = made.setdefault(id(module), module.unfused())
            setattr(model.get_submodule(parent), child, plain)
    return len(made)


class FusedSeparableConv2d(DepthwiseSeparableConv2d):
    """A depthwise separable layer that runs as one kernel in evaluation mode without gradients; see `fuse_modules`.

    In training mode, if a gradient is needed, or if a child module is in training mode or has hooks, the child modules
    run one after the other, as in `DepthwiseSeparableConv2d`. Weights are folded and packed again after they change,
    except for changes that PyTorch does not count: those through ``parameter.data``, and those of tensors created under
    ``torch.inference_mode``. The output is in channels-last memory format.
    """

    @classmethod
    def of(cls, module: DepthwiseSeparableConv2d) -> FusedSeparableConv2d:
        """Return a layer that shares the child modules of ``module``."""
        fused = cls.__new__(cls)
        fused.__dict__.update(module.__dict__)
        fused.__dict__["_folded"] = None
        return fused

    def unfused(self) -> DepthwiseSeparableConv2d:
        """Return an ordinary layer that shares the child modules."""
        plain = DepthwiseSeparableConv2d.__new__(DepthwiseSeparableConv2d)
        plain.__dict__.update({name: value for name, value in self.__dict__.items() if name != "_folded"})
        return plain

    def forward(self, input: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, M, H', W')."""
        if not self._runs_fused(input):
            return super().forward(input)
        padding = self.pad.amounts(input.shape[2:]) if hasattr(self, "pad") else _amounts(self.conv_dw)
        parts: Any = self._weights()
        return separable_conv2d(  # type: ignore[no-any-return]
            input, *parts, self.stride, padding, self.dilation,
            _numbers(getattr(self, "act1", None)), _numbers(getattr(self, "act2", None)),
            self.order == "pointwise_first",
        )  # fmt: skip

    def _runs_fused(self, input: Tensor) -> bool:
        if self.training or input.dtype != torch.float32 or input.device.type != "cpu" or input.dim() != 4:
            return False
        if any(part.training or _hooked(part) for part in self._modules.values() if part is not None):
            return False
        if self.conv_pw.weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return False
        wanted = input.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        return not (wanted and torch.is_grad_enabled())

    def _weights(self) -> tuple[Tensor, ...]:
        """Return weights and biases of both convolutions, with batch norms folded."""
        if torch.compiler.is_compiling():  # the folding becomes part of the captured graph
            return self._fold()
        tensors = (*self.parameters(), *self.buffers())
        state = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
        kept: tuple[Any, tuple[Tensor, ...]] | None = self.__dict__["_folded"]
        if kept is None or kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                kept = state, self._fold()
            self.__dict__["_folded"] = kept
        return kept[1]

    def _fold(self) -> tuple[Tensor, ...]:
        convolutions = [self.conv_dw, self.conv_pw]
        if self.order == "pointwise_first":
            convolutions.reverse()
        parts: list[Tensor] = []
        for convolution, norm in zip(
            convolutions, (getattr(self, "bn1", None), getattr(self, "bn2", None)), strict=True
        ):
            weight, bias = convolution.weight.detach(), convolution.bias
            bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
            if norm is not None and not isinstance(norm, nn.Identity):
                scale = (norm.running_var.double() + norm.eps).rsqrt()
                scale = scale if norm.weight is None else scale * norm.weight.detach().double()
                shift = 0.0 if norm.bias is None else norm.bias.detach().double()
                bias = ((bias.double() - norm.running_mean.double()) * scale + shift).float()
                weight = (weight.double() * scale[:, None, None, None]).float()
            parts += [weight.contiguous(), bias.contiguous().clone()]
        return tuple(parts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_folded": None}

    def extra_repr(self) -> str:
        """Show the layer's arguments, and that it is fused."""
        return f"{super().extra_repr()}, fused in evaluation mode"


def _objection(module: DepthwiseSeparableConv2d) -> str:
    """Return why the fused kernel cannot run a layer; empty if it can."""
    if type(module) is not DepthwiseSeparableConv2d:
        return f"it is a {type(module).__name__}, a subclass that may compute something else"
    # Not `named_children`, which skips a layer that has two names.
    parts = {name: part for name, part in module._modules.items() if part is not None}
    if not set(parts) <= _PARTS:
        return f"it has further layers ({', '.join(sorted(set(parts) - _PARTS))})"
    if module.groups != 1:
        return f"its pointwise convolution has {module.groups} groups"
    if module.padding_mode != "zeros":
        return f"it pads with {module.padding_mode}, not with zeros"
    if any(_hooked(part) for part in parts.values()):
        return "its child modules have hooks, which would not be called"
    for name in ("bn1", "bn2"):
        norm = parts.get(name, nn.Identity())
        if not isinstance(norm, nn.BatchNorm2d | nn.Identity):
            return f"{name} is a {type(norm).__name__}, which cannot be folded into weights"
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is None:
            return f"{name} has no running statistics"
    for name in ("act1", "act2"):
        if name in parts and _activation(parts[name]) is None:
            return f"{name} is a {type(parts[name]).__name__}, which has no kernel"
    return ""


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _amounts(convolution: nn.Conv2d) -> list[int]:
    """Return the zeros to the left, right, top and bottom."""
    if isinstance(convolution.padding, str):
        total = [d * (k - 1) for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True)]
        total = total if convolution.padding == "same" else [0, 0]
        return [amount for n in reversed(total) for amount in (n // 2, n - n // 2)]
    return [amount for n in reversed(convolution.padding) for amount in (n, n)]


def _numbers(module: nn.Module | None) -> list[float]:
    activation = IDENTITY if module is None else _activation(module)
    assert activation is not None  # checked by `_objection`
    return [int(activation.kind), activation.alpha, activation.beta]


def _activation(module: nn.Module) -> Activation | None:
    """Convert an activation module; ``None`` if it has no kernel."""
    kind = type(module)
    if kind in _ACTIVATIONS:
        return _ACTIVATIONS[kind]
    if isinstance(module, nn.Hardtanh):
        return Activation(alpha=float(module.min_val), beta=float(module.max_val))
    if kind is nn.LeakyReLU:
        return Activation(ActivationKind.LEAKY_RELU, float(module.negative_slope), math.inf)  # type: ignore[arg-type]
    if kind is nn.GELU:
        return Activation(ActivationKind.GELU if module.approximate == "none" else ActivationKind.GELU_TANH)
    return None


_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Identity: IDENTITY,
    nn.ReLU: RELU,
    nn.SiLU: Activation(ActivationKind.SILU),
    nn.Hardswish: Activation(ActivationKind.HARDSWISH),
    nn.Hardsigmoid: Activation(ActivationKind.HARDSIGMOID),
    nn.Sigmoid: Activation(ActivationKind.SIGMOID),
}
