"""Make the inputs of a network from the shapes that a caller of `summary` gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable.errors import SeparableValueError

Size = Sequence[int]
Inputs = Tensor | Size | Sequence[Tensor] | Sequence[Size] | Mapping[str, Tensor | Size]

LARGEST_REAL = 2**30  # bytes; the activations of a network may be many times larger than its input


def make_inputs(
    model: nn.Module, given: Inputs, batch_size: int, device: torch.device | str | None, dtypes: Any
) -> tuple[tuple[Any, ...], dict[str, Any], AbstractContextManager[object]]:
    """Make the arguments of the forward pass from shapes or tensors, and the context in which to run it.

    Tensors above `LARGEST_REAL` bytes are fake: they have a shape and no memory, and operators in their context compute
    only shapes.

    Raises:
        SeparableValueError: an argument is invalid.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SeparableValueError(f"batch_size={batch_size!r}: must be a whole number, at least 1")
    given, batch_size = _without_batch(model, given, batch_size)
    reference = next((p for p in model.parameters() if p.is_floating_point()), None)
    place = _device(device) if device is not None else reference.device if reference is not None else "cpu"
    default = reference.dtype if reference is not None else torch.float32

    mode: AbstractContextManager[object] = nullcontext()
    if sum(math.prod((batch_size, *shape)) for shape in _shapes(given)) * default.itemsize > LARGEST_REAL:
        from torch._subclasses.fake_tensor import FakeTensorMode  # importing it takes a second

        mode = FakeTensorMode(allow_non_fake_inputs=True)

    def make(value: Any, dtype: torch.dtype | None, where: str) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(place)
        if not _is_size(value):
            raise SeparableValueError(
                f"{where}={value!r}: expected the shape of one input without the batch, such as (3, 224, 224), "
                "or a tensor"
            )
        dtype = dtype or default
        shape = (batch_size, *value)
        if not isinstance(mode, nullcontext):
            with mode:
                return torch.empty(shape, device=place, dtype=dtype)
        if dtype.is_floating_point:
            # A ramp gives distinct pixels without drawing from the caller's random generator.
            return torch.linspace(0, 1, math.prod(shape), device=place).view(shape).to(dtype)
        return torch.zeros(shape, device=place, dtype=dtype)

    if isinstance(given, Mapping):
        wanted = _dtypes(dtypes, len(given))
        named = {name: make(v, d, f"input_shape[{name!r}]") for (name, v), d in zip(given.items(), wanted, strict=True)}
        return (), named, mode
    if isinstance(given, Tensor) or _is_size(given):
        return (make(given, _dtypes(dtypes, 1)[0], "input_shape"),), {}, mode
    if not isinstance(given, list | tuple) or all(isinstance(entry, int | float) for entry in given):
        raise SeparableValueError(
            f"input_shape={given!r}: expected the shape of one input without the batch, such as (3, 224, 224), "
            "a tensor, a list of these, or a mapping"
        )
    wanted = _dtypes(dtypes, len(given))
    return tuple(make(v, d, f"input_shape[{i}]") for i, (v, d) in enumerate(zip(given, wanted, strict=True))), {}, mode


def _without_batch(model: nn.Module, given: Inputs, batch_size: int) -> tuple[Inputs, int]:
    """Split a shape such as (1, 3, 32, 32), as other tools take it, into the shape of one input and the batch size.

    The dimensions of the network's convolutions decide whether a shape contains the batch.
    """
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    dimensions = {module.weight.dim() for module in model.modules() if isinstance(module, convolutions)}
    if not isinstance(given, tuple | list) or not _is_size(given) or dimensions != {len(given)}:
        return given, batch_size
    first, *shape = given
    if batch_size not in (1, first):
        raise SeparableValueError(
            f"input_shape={tuple(given)} has the batch {first}, but batch_size={batch_size} is given: give one of them"
        )
    return tuple(shape), int(first)


def _shapes(given: Inputs) -> list[Any]:
    """Return the shapes among the inputs; anything else is left to `make_inputs` to refuse."""
    if _is_size(given):
        return [given]
    values: Any = given.values() if isinstance(given, Mapping) else given if isinstance(given, list | tuple) else ()
    return [value for value in values if _is_size(value)]


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise SeparableValueError(f"device={device!r}: {str(error).splitlines()[0]}") from error


def _is_size(value: object) -> bool:
    sequence = isinstance(value, list | tuple | torch.Size)
    return sequence and len(value) > 0 and all(type(n) is int and n > 0 for n in value)  # type: ignore[arg-type, attr-defined]


def _dtypes(dtypes: Any, count: int) -> list[torch.dtype | None]:
    if dtypes is None or isinstance(dtypes, torch.dtype):
        return [dtypes] * count
    if not isinstance(dtypes, list | tuple) or not all(isinstance(dtype, torch.dtype) for dtype in dtypes):
        raise SeparableValueError(f"dtypes={dtypes!r}: expected a torch.dtype, or a list of these")
    if len(dtypes) != count:
        raise SeparableValueError(f"dtypes has {len(dtypes)} entries for {count} inputs: give one, or one per input")
    return list(dtypes)
