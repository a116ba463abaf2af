"""Every floating-point tensor in what a network returns, by a name that says where it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from torch_separable.errors import SeparableError, SeparableValueError

BARE = "output"  # name of an output that is a tensor itself
_LISTED_NAMES = 12  # in an error message
# The output whose predictions are compared, if there are several.
_PREDICTION_NAMES = (BARE, "logits", "out")


def floating_outputs(output: object) -> dict[str, Tensor]:
    """Return the floating-point tensors in a network's output, in order.

    Tuples, lists, mappings and dataclasses may be nested. The name of a tensor joins its keys, indices or fields by
    dots. Other objects are searched for ``.logits`` only.

    Args:
        output: what the network returned.

    Raises:
        SeparableError: there is no floating-point tensor in it.

    Example:
        >>> import torch
        >>> list(floating_outputs((torch.zeros(2, 10), {"boxes": torch.zeros(2, 4), "labels": torch.arange(2)})))
        ['0', '1.boxes']
        >>> list(floating_outputs(torch.zeros(2, 10)))
        ['output']
    """
    found = {name or BARE: tensor for name, tensor in tensors_in(output) if tensor.is_floating_point()}
    if not found:
        raise SeparableError(
            f"the network returned {type(output).__name__}, which contains no floating-point tensor (nor has it "
            "`.logits`). Wrap the network in a module that returns its tensors"
        )
    return found


def select_outputs(available: Sequence[str], wanted: Sequence[str] | Mapping[str, float] | None) -> dict[str, float]:
    """Return the weight of each selected output; the weights sum to 1.

    Args:
        available: names of the outputs, from `floating_outputs`.
        wanted: names of outputs or of what contains them (``"1"`` selects ``"1.boxes"``), or weights by such names;
            ``None`` selects all with equal weights.

    Raises:
        SeparableValueError: a name matches no output, or a weight is not a number above 0.

    Example:
        >>> select_outputs(["logits", "aux.logits"], {"logits": 3, "aux": 1})
        {'logits': 0.75, 'aux.logits': 0.25}
    """
    if wanted is None:
        return dict.fromkeys(available, 1 / len(available))
    if isinstance(wanted, str) or not isinstance(wanted, Sequence | Mapping) or not wanted:
        raise SeparableValueError(f"outputs={wanted!r}: give a list of names, or a mapping from names to weights")
    weights = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted, 1.0)
    selected: dict[str, float] = {}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise SeparableValueError(f"outputs has weight {weight!r} for {name!r}: must be a number above 0")
        matched = [one for one in available if one == name or one.startswith(f"{name}.")]
        if not matched:
            names = ", ".join(available[:_LISTED_NAMES]) + (", …" if len(available) > _LISTED_NAMES else "")
            raise SeparableValueError(f"outputs names {name!r}, which the network does not return. It returns {names}")
        for one in matched:
            selected[one] = weight / len(matched)
    total = sum(selected.values())
    return {name: selected[name] / total for name in available if name in selected}


def prediction_output(names: Collection[str]) -> str:
    """Return the name of the output whose predictions are compared: ``logits`` or ``out``, or else the first.

    Example:
        >>> prediction_output(["boxes", "logits"]), prediction_output(["0", "1"])
        ('logits', '0')
    """
    return next((name for name in _PREDICTION_NAMES if name in names), next(iter(names)))


def rows_by_image(output: Tensor, images: int) -> Tensor:
    """Return an output with the dimension that counts images first, and at least one other dimension.

    An output without such a dimension becomes one row. Complex outputs become pairs of real numbers.

    Example:
        >>> hidden = torch.zeros(2, 16, 5)  # of a recurrent layer: (layers, N, features)
        >>> rows_by_image(hidden, images=16).shape, rows_by_image(torch.zeros(16), images=16).shape
        (torch.Size([16, 2, 5]), torch.Size([16, 1]))
    """
    if output.is_complex():
        output = torch.view_as_real(output)
    if output.dim() and len(output) and len(output) % images == 0:
        return output if output.dim() > 1 else output[:, None]
    counting = [d for d, size in enumerate(output.shape) if size == images]
    if len(counting) == 1:
        return output.movedim(counting[0], 0)
    return output.reshape(1, -1)


def tensors_in(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of any dtype in a network's output, with their names; a bare tensor's name is ``name``."""
    if isinstance(value, Tensor):
        yield name, value
        return
    for key, item in _items_of(value):
        yield from tensors_in(item, f"{name}.{key}" if name else str(key))


def _items_of(value: object) -> list[tuple[object, object]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, tuple | list):
        return list(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    logits = getattr(value, "logits", None)
    return [("logits", logits)] if isinstance(logits, Tensor) else []
