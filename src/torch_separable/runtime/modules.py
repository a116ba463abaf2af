"""Single layers by the fused kernel, for those who do not want a network compiled as a whole."""

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
from torch_separable.runtime.native.bindings import chosen_set
from torch_separable.runtime.ops import separable_conv2d

_PARTS = {"pad", "conv_dw", "bn1", "act1", "conv_pw", "bn2", "act2"}


@dataclass(frozen=True)
class FusedModules:
    """What `fuse_modules` did.

    Attributes:
        fused: names of the layers that use the fused kernel now.
        kept: the other depthwise separable layers, and why they are as they were.
    """

    fused: tuple[str, ...]
    kept: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} layers use the fused kernel in evaluation mode."]
        return "\n".join([*lines, *(f"{name} is kept: {reason}." for name, reason in self.kept.items())])

    def _repr_html_(self) -> str:
        rows = [(name, "fused") for name in self.fused] + list(self.kept.items())
        return notebook.table(("layer", "what became of it"), rows or [("", "no depthwise separable layer")])


def fuse_modules(model: nn.Module) -> FusedModules:
    """Let every `DepthwiseSeparableConv2d` of a network run by the fused kernel, in place.

    Each is replaced by a `FusedSeparableConv2d` with the same layers in it, so that the names in ``state_dict`` stay.
    In evaluation mode, where no gradients are wanted, it runs as one kernel with the batch norms folded into the
    weights; otherwise its layers run as before.

    Args:
        model: a network that has such layers within it.

    Raises:
        SeparableError: the model is such a layer itself, or this installation has no kernel library.

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
        raise SeparableError("the model is itself such a layer, which cannot replace itself: wrap it in nn.Sequential")
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


class FusedSeparableConv2d(DepthwiseSeparableConv2d):
    """A depthwise separable layer that runs as one kernel in evaluation mode where no gradients are wanted.

    In training mode, wherever a gradient is wanted, and where a layer in it is in training mode or has hooks, the
    layers run one after the other, as in `DepthwiseSeparableConv2d`. Weights that change are folded and packed anew,
    unless they change where PyTorch does not notice: by ``parameter.data``, or made under ``torch.inference_mode``.
    Images come out channels-last. Made by `fuse_modules`.
    """

    @classmethod
    def of(cls, module: DepthwiseSeparableConv2d) -> FusedSeparableConv2d:
        """Return a layer with the parts of ``module``, which both then share."""
        fused = cls.__new__(cls)
        fused.__dict__.update(module.__dict__)
        fused.__dict__["_folded"] = None
        return fused

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
        """Weights and biases of both halves, the batch norms folded into them."""
        if torch.compiler.is_compiling():  # the graph that is captured folds them
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
        """Say what the children do not."""
        return f"{super().extra_repr()}, fused in evaluation mode"


def _objection(module: DepthwiseSeparableConv2d) -> str:
    """Why the fused kernel cannot take the place of a layer; empty where it can."""
    if type(module) is not DepthwiseSeparableConv2d:
        return f"it is a {type(module).__name__}, which may do something else"
    # Not `named_children`, which leaves out a layer that stands in two places.
    parts = {name: part for name, part in module._modules.items() if part is not None}
    if not set(parts) <= _PARTS:
        return f"it has further layers ({', '.join(sorted(set(parts) - _PARTS))})"
    if module.groups != 1:
        return f"its pointwise convolution has {module.groups} groups"
    if module.padding_mode != "zeros":
        return f"it pads with {module.padding_mode}, not with zeros"
    if any(_hooked(part) for part in parts.values()):
        return "layers in it have hooks, which would not be called"
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
    """Zeros to the left, right, top and bottom."""
    if isinstance(convolution.padding, str):
        total = [d * (k - 1) for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True)]
        total = total if convolution.padding == "same" else [0, 0]
        return [amount for n in reversed(total) for amount in (n // 2, n - n // 2)]
    return [amount for n in reversed(convolution.padding) for amount in (n, n)]


def _numbers(module: nn.Module | None) -> list[float]:
    activation = IDENTITY if module is None else _activation(module)
    assert activation is not None  # `_objection` has seen to it
    return [int(activation.kind), activation.alpha, activation.beta]


def _activation(module: nn.Module) -> Activation | None:
    """Read an activation; ``None`` where it has no kernel."""
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
