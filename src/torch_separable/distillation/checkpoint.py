"""Checkpoints of a distillation: one file from which training resumes exactly.

The file is safetensors: named tensors, and numbers as JSON in the header. Loading it never unpickles anything. It is
written to a temporary name and then renamed, so a process killed at any moment leaves the previous checkpoint intact.
No random generator state is stored, because every random number is derived from (seed, step).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_separable._network.weights_file import save_weights
from torch_separable.errors import SeparableError

_SCHEMA = 1
_HEADER = "torch_separable_distillation"


@dataclass(frozen=True)
class Checkpoint:
    """The state that a distillation needs to resume.

    Attributes:
        identity: settings, data and networks of the run; a checkpoint with another identity is refused.
        numbers: completed steps, sums of the current epoch, best result so far.
        tensors: by group (``student``, ``ema``, ``optimizer``) and name.
    """

    identity: Mapping[str, Any]
    numbers: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            SeparableError: the file cannot be written; an existing file is unchanged.
        """
        header = {"schema": _SCHEMA, "identity": self.identity, "numbers": self.numbers}
        flat = {f"{group}/{name}": tensor for group, named in self.tensors.items() for name, tensor in named.items()}
        save_weights(flat, path, metadata={_HEADER: json.dumps(header, allow_nan=False)})

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read the file into CPU memory.

        Raises:
            SeparableError: the file is damaged, is not a distillation checkpoint, or has another schema version.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors: dict[str, dict[str, Tensor]] = {}
                if _HEADER in metadata:
                    for key in file.keys():  # noqa: SIM118 - not a mapping
                        group, _, name = key.partition("/")
                        tensors.setdefault(group, {})[name] = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise SeparableError(
                f"{path} is not a complete checkpoint: {error}; remove it to start again, or give another output_dir"
            ) from error
        if _HEADER not in metadata:
            raise SeparableError(f"{path} is not a distillation checkpoint: give another output_dir")
        try:
            header = json.loads(metadata[_HEADER])
            schema, identity, numbers = header["schema"], header["identity"], header["numbers"]
        except (ValueError, KeyError, TypeError) as error:
            raise SeparableError(f"{path} has a damaged header: remove it to start again") from error
        if schema != _SCHEMA:
            raise SeparableError(
                f"{path} has schema {schema}; this version of torch-separable reads {_SCHEMA}: resume with the version "
                "that wrote it, or give another output_dir"
            )
        return cls(identity, numbers, tensors)

    def check(self, identity: Mapping[str, Any], path: Path) -> None:
        """Raise if the checkpoint belongs to another run, naming the first difference."""
        ours, written = _flat(identity), _flat(self.identity)
        for key in {**ours, **written}:
            mine, theirs = ours.get(key), written.get(key)
            same = mine == theirs
            if key.endswith(".norm") and mine is not None and theirs is not None:
                # The norm of the initial weights: repeating a conversion may change their last digits.
                same = abs(mine - theirs) <= 1e-4 * abs(mine)
            if not same:
                raise SeparableError(
                    f"{path} belongs to another run: {key} is {theirs!r} there and {mine!r} here; give another "
                    "output_dir, or resume=False (--fresh) to start again"
                )


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors by ``parameter index/name``, without its hyperparameters."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}/{name}": torch.as_tensor(value) for index, named in state.items() for name, value in named.items()
    }


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the tensors of ``optimizer_state`` in the memory format of each parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition("/")
        parameter = parameters[int(index)]
        # With equal memory formats, PyTorch runs the same kernel, with the same rounding, as the uninterrupted run.
        like = torch.empty_like(parameter if tensor.ndim and tensor.shape == parameter.shape else tensor)
        state.setdefault(int(index), {})[name] = like.copy_(tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def describe_network(model: nn.Module) -> dict[str, Any]:
    """Return what identifies a network: type, number of tensors, number of values, and norm of the weights."""
    state = model.state_dict()
    floating = [tensor.detach().cpu().double() for tensor in state.values() if tensor.is_floating_point()]
    norm = float(torch.stack([tensor.norm() for tensor in floating]).norm()) if floating else 0.0
    return {
        "type": type(model).__name__,
        "tensors": len(state),
        "values": sum(tensor.numel() for tensor in state.values()),
        "norm": norm,
    }


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
