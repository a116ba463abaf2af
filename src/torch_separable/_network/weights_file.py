"""Weight files: tensors by name, read without executing pickled code and checked against the network."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from torch_separable._network.state_names import WeightSet, select_weights, without_prefix
from torch_separable._network.weights import buffers_that_may_be_infinite
from torch_separable._system.files import replacing
from torch_separable.errors import SeparableError


def save_weights(
    source: nn.Module | Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Write the tensors of a module or a mapping as safetensors, atomically.

    Tensors that share memory (tied weights) are written once for each name.

    Raises:
        SeparableError: the module's state holds something other than tensors, or the file cannot be written.
    """
    state = source.state_dict() if isinstance(source, nn.Module) else source
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise SeparableError(
                f"{name} in the network's state is a {type(value).__name__}; a weight file holds only tensors: let the "
                "module's get_extra_state return a tensor, or remove it"
            )
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with replacing(path) as aside:
        try:
            save_file(tensors, aside, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file, or from a ``torch.save`` file with ``weights_only=True``.

    Checkpoints that nest their weights, for example under ``state_dict`` or ``model``, are unwrapped.

    Raises:
        SeparableError: the file is absent, holds no weights, or is a pickle that would run code.
    """
    return dict(read_weight_set(path).tensors)


def read_weight_set(path: str | Path, *, ema: bool = False) -> WeightSet:
    """Read one set of weights from a checkpoint, which may hold several.

    Args:
        path: the file.
        ema: whether to read the exponential moving average of the weights.

    Raises:
        SeparableError: as `read_weights`; or ``ema`` is given and the file holds no average.
    """
    path = Path(path)
    if not path.is_file():
        raise SeparableError(f"no weights at {path}: " + ("it is a folder" if path.is_dir() else "no such file"))
    weights = select_weights(_read_tensors(path), str(path), ema=ema)
    special = [name for name, tensor in weights.tensors.items() if not _is_plain(tensor)]
    if special:
        raise SeparableError(
            f"{path} holds sparse, quantized, nested or meta tensors ({_some(special)}): save dense tensors, with "
            "`tensor.to_dense()` or `tensor.dequantize()`"
        )
    return weights


def _read_tensors(path: Path) -> object:
    """Read the file in the format that its first bytes show; ``.bin`` and ``.pt`` may be of either."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise SeparableError(f"cannot read weights from {path}: {error.strerror or error}") from error
    if head[8:] == b"{":  # safetensors: 8 bytes of header length, then the header as JSON
        return _read_safetensors(path)
    if head.startswith((b"PK", b"\x80")):  # torch.save: a zip archive, or the bare pickle that it wrote before 1.6
        return _read_torch(path)
    raise SeparableError(
        f"{path} is not a whole weight file, neither safetensors nor torch.save: give the file that "
        "`model.state_dict()` was saved to"
    )


def _read_safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise SeparableError(f"{path} is not a whole safetensors file ({error}): download or save it again") from error


def _read_torch(path: Path) -> object:
    try:
        # Pass a file object: given a path, torch.load chooses the format by the suffix. Its warnings concern contents
        # that are refused below.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SeparableError(
            f"{path} holds more than weights: it is a pickle that could run code when it is read, so it is refused. "
            "Save `model.state_dict()` with safetensors or torch.save, and give that file"
        ) from error
    except Exception as error:  # a damaged file raises many types: struct.error, AssertionError, ...
        first = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        raise SeparableError(
            f"{path} is damaged, or is not a weight file ({first}): download or save `model.state_dict()` again"
        ) from error


def load_weights(model: nn.Module, path: str | Path, *, keep_types: bool = False) -> None:
    """Load the weights in ``path`` into ``model``: all of them, or none if any does not fit.

    Args:
        model: the network.
        path: the weight file.
        keep_types: whether the network's parameters take the dtypes of the file, such as float16.

    Raises:
        SeparableError: names or shapes differ (the message lists the first of each kind), or a weight is not finite.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(nn.Linear(2, 3), f"{folder}/w.safetensors")
        ...     load_weights(nn.Linear(2, 4), f"{folder}/w.safetensors")
        Traceback (most recent call last):
        torch_separable.errors.SeparableError: ...w.safetensors are not the weights of this network (Linear): ...
    """
    weights = without_prefix(read_weight_set(path), model.state_dict())
    load_state(model, weights.tensors, path, keep_types=keep_types)


def load_state(model: nn.Module, given: Mapping[str, Tensor], where: str | Path, *, keep_types: bool = False) -> None:
    """Load tensors by name into ``model``: all of them, or none if any does not fit.

    Args:
        model: the network.
        given: tensors by name.
        where: where they come from, for messages.
        keep_types: whether the network's parameters take the dtypes of the tensors.

    Raises:
        SeparableError: as `load_weights`.
    """
    given = dict(given)
    expected = model.state_dict()
    for name, counter in expected.items():
        if name.endswith("num_batches_tracked"):  # used only in training, and absent from older checkpoints
            given.setdefault(name, counter)
    complaints = []
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    reshaped = [name for name in expected if name in given and given[name].shape != expected[name].shape]
    if missing:
        complaints.append(f"{len(missing)} missing ({_some(missing)})")
    if extra:
        complaints.append(f"{len(extra)} unknown ({_some(extra)})")
    if reshaped:
        shapes = [f"{n} is {tuple(given[n].shape)}, should be {tuple(expected[n].shape)}" for n in reshaped]
        complaints.append(f"{len(reshaped)} of another shape ({_some(shapes, '; ')})")
    if complaints:
        raise SeparableError(
            f"{where} are not the weights of this network ({type(model).__name__}): {', '.join(complaints)}"
        )
    types = {name: given[name].dtype if keep_types else tensor.dtype for name, tensor in expected.items()}
    complex_ones = [name for name, tensor in expected.items() if given[name].is_complex() and not tensor.is_complex()]
    if complex_ones:
        raise SeparableError(f"{where} holds complex weights ({_some(complex_ones)}); the network's are real")
    free = buffers_that_may_be_infinite(model)
    broken = [name for name, dtype in types.items() if not _is_sound(given[name].to(dtype), infinite=name in free)]
    if broken:
        raise SeparableError(f"{where} holds NaN or infinite weights ({_some(broken)}): give weights that are finite")
    if keep_types:
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point() and given[name].is_floating_point():
                tensor.data = tensor.data.to(given[name].dtype)
    model.load_state_dict(given)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_nested)


def _is_sound(tensor: Tensor, *, infinite: bool) -> bool:
    """Whether no value is NaN, nor infinite unless ``infinite`` allows it."""
    if not tensor.is_floating_point():
        return True
    wide = tensor.float() if tensor.itemsize == 1 else tensor  # isnan is not implemented for every 8-bit dtype
    return not bool((wide.isnan() if infinite else ~wide.isfinite()).any())


def _some(names: list[str], separator: str = ", ", most: int = 3) -> str:
    return separator.join(names[:most]) + (f"{separator}…" if len(names) > most else "")
