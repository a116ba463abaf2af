"""Checkpoints as other tools write them: which set of weights to load, and which prefix to remove from its names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from torch_separable.errors import SeparableError

_SETS = ("state_dict", "model", "model_state_dict", "params", "network", "net")
_AVERAGED_SETS = ("state_dict_ema", "model_ema", "ema", "params_ema", "ema_state_dict", "model_ema_state_dict")
# nn.DataParallel and AveragedModel, torch.compile, Lightning modules, and common names of a wrapped network.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel


@dataclass(frozen=True)
class WeightSet:
    """The weights that were selected from a checkpoint.

    Attributes:
        tensors: tensors by name.
        name: key of the set in the file; empty if the file holds one set at its top level.
        others: keys of the other sets.
        prefix: prefix that was removed from every name.
    """

    tensors: Mapping[str, Tensor]
    name: str = ""
    others: tuple[str, ...] = ()
    prefix: str = ""

    def describe(self) -> str:
        """Return what was selected and removed, for a message; empty if there was no choice and no prefix."""
        parts = []
        if self.others:
            parts.append(f"{self.name} was loaded; the file also holds {', '.join(self.others)}")
        elif self.name in _AVERAGED_SETS:
            parts.append(f"{self.name} was loaded, the only weights in the file")
        if self.prefix:
            parts.append(f"the prefix {self.prefix} was removed from every name")
        return "; ".join(parts)


def select_weights(content: object, where: str, *, ema: bool = False) -> WeightSet:
    """Select one set of weights from the content of a checkpoint.

    Args:
        content: tensors by name, or a mapping that holds such mappings.
        where: the file, for messages.
        ema: whether to select the exponential moving average of the weights.

    Raises:
        SeparableError: there are no weights, or ``ema`` is given and there is no average.

    Example:
        >>> import torch
        >>> weights = {"fc.weight": torch.zeros(1)}
        >>> select_weights({"state_dict": weights, "state_dict_ema": weights}, "w.pth", ema=True).name
        'state_dict_ema'
    """
    if not isinstance(content, Mapping):
        raise SeparableError(f"{where} holds no weights: expected tensors by name, as `model.state_dict()` gives them")
    found = {name: content[name] for name in (*_SETS, *_AVERAGED_SETS) if isinstance(content.get(name), Mapping)}
    averaged = [name for name in found if name in _AVERAGED_SETS]
    plain = [name for name in found if name not in _AVERAGED_SETS]
    if ema and not averaged:
        listed = ", ".join(plain) or "one set of weights"
        raise SeparableError(f"{where} holds no averaged weights for ema (--ema): it holds {listed}")
    name = next(iter(averaged if ema else [*plain, *averaged]), "")
    tensors = found[name] if name else content
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise SeparableError(f"{where} holds no weights: expected tensors by name, as `model.state_dict()` gives them")
    return WeightSet({str(key): value for key, value in tensors.items()}, name, tuple(o for o in found if o != name))


def without_prefix(weights: WeightSet, known: Collection[str]) -> WeightSet:
    """Remove prefixes that wrappers add to every name, unless a name is already one of ``known``.

    Example:
        >>> import torch
        >>> without_prefix(WeightSet({"module.fc.weight": torch.zeros(1)}), {"fc.weight"}).prefix
        'module.'
    """
    tensors = dict(weights.tensors)
    if _COUNTER not in known:
        tensors.pop(_COUNTER, None)
    prefix = ""
    while tensors and not any(name in known for name in tensors):
        found = next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None)
        if found is None:
            break
        prefix += found
        tensors = {name.removeprefix(found): tensor for name, tensor in tensors.items()}
    # torch.compile of a submodule puts its prefix inside the names.
    compiled = "_orig_mod."
    if any(compiled in name for name in tensors) and not any(compiled in name for name in known):
        tensors = {name.replace(compiled, ""): tensor for name, tensor in tensors.items()}
    return WeightSet(tensors, weights.name, weights.others, prefix)
