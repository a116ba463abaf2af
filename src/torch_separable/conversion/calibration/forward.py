"""Forward passes over calibration batches: on the model's device, without side effects, with errors that say why."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._network.outputs import evaluating
from torch_separable.conversion.calibration.images import FEWEST_IMAGES, Batch, first_images, with_layout
from torch_separable.errors import SeparableError

_CONTAINERS = (list, dict, set, deque)
_OF_EVERY_MODULE = vars(nn.Module()).keys()


def run_batch(model: nn.Module, batch: Batch) -> Any:
    """Call ``model`` on a copy of a batch, on the device and (for images) in the dtype of its parameters.

    Raises:
        SeparableError: the model raised an exception; the message contains the batch's shape and the first line of it.
    """
    return run_placed(model, place_batch(model, batch))


def run_placed(model: nn.Module, batch: Batch) -> Any:
    """Call ``model`` on a batch that `place_batch` returned. Raises as `run_batch`."""
    try:
        with _containers_restored(model):
            return model(**batch) if isinstance(batch, Mapping) else model(batch)
    except SeparableError:
        raise
    except Exception as error:
        shape = {k: tuple(v.shape) for k, v in batch.items()} if isinstance(batch, Mapping) else tuple(batch.shape)
        first_line = (str(error).splitlines() or [""])[0]
        raise SeparableError(
            f"{type(model).__name__} cannot take a batch of shape {shape}: {first_line or type(error).__name__}"
        ) from error


def place_batch(model: nn.Module, batch: Batch) -> Batch:
    """Copy a batch to the device of the model's parameters, and its floating-point tensors to their dtype.

    It is always a copy, because a network may change its input in place and later passes need the original.
    """
    reference = next(model.parameters(), torch.zeros(()))

    def copy_one(value: Tensor) -> Tensor:
        dtype = reference.dtype if value.is_floating_point() else value.dtype
        return value.to(reference.device, dtype, copy=True)

    return {name: copy_one(value) for name, value in batch.items()} if isinstance(batch, Mapping) else copy_one(batch)


def lay_out(model: nn.Module, batches: Sequence[Batch]) -> tuple[Batch, ...]:
    """Return the batches channels-last where the model accepts that, and contiguous otherwise.

    Convolutions preserve channels-last, and passes are up to a third faster in it. A network that flattens activations
    by ``view`` cannot take it.
    """
    try:
        with evaluating(model), torch.no_grad():
            run_batch(model, first_images(with_layout(torch.channels_last, batches[0]), FEWEST_IMAGES))
    except SeparableError:  # whatever else is wrong is reported when all images are run
        return tuple(with_layout(torch.contiguous_format, batch) for batch in batches)
    return tuple(with_layout(torch.channels_last, batch) for batch in batches)


@contextmanager
def _containers_restored(model: nn.Module) -> Iterator[None]:
    """Restore the model's own lists and dictionaries where the block is left by an exception.

    A network may push activations onto itself and pop them later. A pass that stops early would leave them there.
    """
    own = [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) in _CONTAINERS and name not in _OF_EVERY_MODULE
    ]
    before = [type(container)(container) for container in own]
    try:
        yield
    except BaseException:
        for container, content in zip(own, before, strict=True):
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(content)
        raise
