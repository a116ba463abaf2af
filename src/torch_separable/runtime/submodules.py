"""Compile the parts of a network that cannot be captured as a whole, such as a detector with its postprocessing."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._network.ambient import default_settings
from torch_separable._network.checks import as_network, require_float32
from torch_separable._network.copying import copied
from torch_separable._network.weights import check_weights, refresh_weights
from torch_separable.errors import SeparableError
from torch_separable.runtime.engine import CompiledModel
from torch_separable.runtime.graph.ir import Convolution, DepthwiseConv
from torch_separable.runtime.native.instruction_sets import InstructionSet, chosen_set

_LAYERS_WITH_KERNELS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class CompiledSubmodules:
    """A network whose forward runs in Python and calls compiled submodules; returned by `compile_submodules`.

    Attributes:
        model: a copy of the network in evaluation mode.
        compiled: the compiled submodules by name.
        eager: names of the layers that PyTorch runs, with the reason.
    """

    model: nn.Module
    compiled: dict[str, CompiledModel]
    eager: dict[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network without gradients, with any arguments that it takes."""
        with torch.no_grad():
            return self.model(*args, **kwargs)

    def __str__(self) -> str:
        lines = [f"{len(self.compiled)} submodules are compiled: {', '.join(self.compiled)}."]
        return "\n".join([*lines, *(f"{name} runs in PyTorch: {reason}." for name, reason in self.eager.items())])


@default_settings()
def compile_submodules(model: nn.Module, *args: Any, threads: int | None = None, **kwargs: Any) -> CompiledSubmodules:
    """Compile the largest submodules of a network that map one tensor (N, C, H, W), and run the rest in PyTorch.

    Use it for networks that `compile` refuses: those that take several tensors or return other than tensors, and those
    with data-dependent Python code, such as detectors. The network runs once on the arguments, which show what each
    submodule is called with. From the top down, a submodule is compiled if every call passes it a single float32 tensor
    (N, C, H, W), if ``torch.export`` captures it, and if it does not modify its input; else its children are tried.

    Args:
        model: the trained network; it is not changed.
        *args: example arguments of its forward.
        threads: number of threads; ``None`` for that of PyTorch.
        **kwargs: example keyword arguments.

    Raises:
        SeparableError: no submodule can be compiled; the message names the reason for the largest.

    Example:
        >>> class TwoInputs(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        ...     def forward(self, left, right):
        ...         return {"sum": self.left(left) + self.right(right)}
        >>> images = torch.randn(2, 3, 8, 8)
        >>> network = compile_submodules(TwoInputs().eval(), images, right=images)
        >>> list(network.compiled), network(images, right=images)["sum"].shape
        (['left', 'right'], torch.Size([2, 8, 6, 6]))
    """
    require_float32(as_network(model), "model", "compile_submodules")
    kernels = chosen_set()
    check_weights(model)
    refresh_weights(model)
    own = copied(model).eval()
    calls = _recorded(own, args, kwargs)
    compiled: dict[str, CompiledModel] = {}
    eager: dict[str, str] = {}

    def visit(name: str, module: nn.Module) -> None:
        if not any(isinstance(layer, _LAYERS_WITH_KERNELS) for layer in module.modules()):
            return
        reason = "it is the whole network"
        if name:
            try:
                compiled[name] = _compiled(module, calls.get(name, _Calls()), kernels, threads)
                return
            except SeparableError as error:
                reason = str(error)
        children = [(child, part) for child, part in module.named_children() if part is not None]
        if isinstance(module, _LAYERS_WITH_KERNELS) or not children:
            eager[name] = reason
        for child, part in children:
            visit(f"{name}.{child}" if name else child, part)

    visit("", own)
    if not compiled:
        name, reason = next(iter(eager.items()), ("", "it has no convolution or linear layer"))
        where = f"layer {name!r}" if name else "the network"
        raise SeparableError(f"no submodule of {type(model).__name__} can be compiled: {where}: {reason}")
    for name, part in compiled.items():
        module = own.get_submodule(name)
        module.forward = _Forward(module, part)
    return CompiledSubmodules(own, compiled, eager)


@dataclass
class _Calls:
    """The calls of one submodule.

    Attributes:
        image: the argument of the first call.
        problem: why the calls cannot be compiled; empty if they can.
    """

    image: Tensor | None = None
    problem: str = ""


def _recorded(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, _Calls]:
    """Run the network once, and record the arguments of each submodule."""
    calls: dict[str, _Calls] = {}

    def hook(name: str, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        call = calls.setdefault(name, _Calls())
        if _is_one_image(given, named):
            call.image = given[0] if call.image is None else call.image
        else:
            call.problem = "it is called with other arguments than one float32 tensor (N, C, H, W)"

    handles = [
        module.register_forward_pre_hook(partial(hook, name), with_kwargs=True)
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SeparableError(f"{type(model).__name__} cannot run on the example arguments: {first}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _is_one_image(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return (
        len(args) == 1
        and not kwargs
        and isinstance(args[0], Tensor)
        and args[0].dim() == 4
        and args[0].dtype == torch.float32
        and args[0].device.type == "cpu"
        and args[0].numel() > 0
    )


def _compiled(module: nn.Module, calls: _Calls, kernels: InstructionSet, threads: int | None) -> CompiledModel:
    """Compile a submodule.

    Raises:
        SeparableError: it cannot be compiled; the message is the reason.
    """
    if calls.problem:
        raise SeparableError(calls.problem)
    if calls.image is None:
        raise SeparableError("it did not run on the example arguments")
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        raise SeparableError("hooks are registered in it, which would not be called")
    # A shallow copy, because the forward of the module itself will call the compiled one.
    compiled = CompiledModel(copy.copy(module), kernels, threads)
    program = compiled.program(calls.image)
    if not any(isinstance(node, Convolution | DepthwiseConv) for node in program.nodes):
        raise SeparableError("no kernel would run a convolution or linear layer of it")
    probe = calls.image.clone()
    before = probe._version
    with torch.no_grad():
        module(probe)
    if probe._version != before:
        raise SeparableError("it modifies its input in place")
    return compiled


class _Forward:
    """The forward of a compiled submodule; calls that the compiled one does not take run in PyTorch."""

    def __init__(self, module: nn.Module, compiled: CompiledModel) -> None:
        self.eager, self.compiled = type(module).forward.__get__(module), compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.compiled(*args) if _is_one_image(args, kwargs) else self.eager(*args, **kwargs)
