"""Networks on the Hugging Face hub: the folder of `save` through ``huggingface_hub``'s mixin (extra ``hub``).

from torch_separable.artifacts.hub import HubNetwork

HubNetwork(conversion, network="mypackage.nets:build").push_to_hub("me/resnet20-half")
model = HubNetwork.from_pretrained("me/resnet20-half", allow=("mypackage.nets",))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_separable._system.extras import optional
from torch_separable.artifacts import run_directory
from torch_separable.artifacts.quantized_run import is_quantized
from torch_separable.artifacts.save_load import load, save
from torch_separable.conversion import Conversion, Plan
from torch_separable.errors import SeparableError
from torch_separable.models.registry import Network
from torch_separable.quantization import Quantized

_hub = optional("huggingface_hub", "hub")
_FILES = sorted(run_directory.FILES - {run_directory.PAGE})


class HubNetwork(nn.Module, _hub.ModelHubMixin, library_name="torch-separable"):  # type: ignore[misc, name-defined, call-arg]
    """A network together with the arguments of `save`, for ``save_pretrained`` and ``push_to_hub``.

    Calling it calls ``model``. ``save_pretrained(folder)`` and ``push_to_hub("user/name")`` come from the mixin.

    Args:
        model: the network, conversion or quantized network, as for `save`.
        network: the function that builds the dense network, or its name.
        arguments: keyword arguments of that function.
        input_shape: shape of one image, (C, H, W).
        plan: the plan of the conversion.
        results: measured figures by name.

    Attributes:
        model: the wrapped network.
    """

    def __init__(
        self,
        model: nn.Module | Conversion | Quantized,
        *,
        network: Network | Callable[..., nn.Module] | str | None = None,
        arguments: Mapping[str, Any] | None = None,
        input_shape: Sequence[int] | None = None,
        plan: Plan | None = None,
        results: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.model if isinstance(model, Conversion | Quantized) else model
        self.train(self.model.training)
        self._saved = model if isinstance(model, Conversion | Quantized) else None
        self._known: dict[str, Any] = {
            "network": network,
            "arguments": arguments,
            "input_shape": input_shape,
            "plan": plan,
            "results": results,
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network."""
        return self.model(*args, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        made, known = self._saved, self._known
        if made is not None and made.model is self.model:
            save(made, save_directory, **known)
        else:
            plan = made.plan if isinstance(made, Conversion) and known["plan"] is None else known["plan"]
            save(self.model, save_directory, **{**known, "plan": plan})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        allow: Iterable[str] | str = (),
        device: torch.device | str | None = None,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> HubNetwork:
        """Load a network from a folder or from the hub without executing anything in it.

        Args:
            pretrained_model_name_or_path: a folder, or ``user/name`` on the hub.
            allow: modules whose functions may build the dense network; see `load`.
            device: device of the network.
            force_download: whether to download cached files again.
            token: access token for the hub.
            cache_dir: folder for downloaded files.
            local_files_only: whether to use only downloaded files.
            revision: branch, tag or commit.

        Raises:
            SeparableError: see `load`; or the hub has no such network, or cannot be reached.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            try:
                fetched = _hub.snapshot_download(
                    str(pretrained_model_name_or_path),
                    allow_patterns=_FILES,
                    force_download=force_download,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    revision=revision,
                )
            except Exception as error:  # huggingface_hub raises many unrelated types: name, connection, server, cache
                line = (str(error).splitlines() or [type(error).__name__])[0]
                raise SeparableError(
                    f"{pretrained_model_name_or_path} is not a folder, and downloading it from the hub failed: {line}"
                ) from error
            folder = Path(fetched)
        results = run_directory.read_results(folder)
        plan = None if is_quantized(folder) else Plan.load(folder / run_directory.PLAN)
        return cls(load(folder, allow=allow, device=device), plan=plan, results=results)
