"""Checkpoints as people have them: prefixes of wrappers, several sets of weights, other keys beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_separable._network.weights_file import load_weights
from torch_separable.errors import SeparableError
from torch_separable.importing import import_weights
from torch_separable.importing.layouts import LAYOUTS
from torch_separable.models import mobilenet_v2, resnet20

State = dict[str, Tensor]


def prefixed(prefix: str) -> Callable[[State], dict[str, Any]]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


CHECKPOINTS: dict[str, tuple[Callable[[State], dict[str, Any]], str]] = {
    "plain": (dict, ""),
    "DataParallel": (prefixed("module."), "module."),
    "torch.compile": (prefixed("_orig_mod."), "_orig_mod."),
    "both": (prefixed("module._orig_mod."), "module._orig_mod."),
    "wrapper": (prefixed("net."), "net."),
    "Lightning": (
        lambda s: {"state_dict": prefixed("model.")(s), "epoch": 3, "hyper_parameters": {"lr": 0.1}},
        "model.",
    ),
    "AveragedModel": (lambda s: {"n_averaged": torch.tensor(4), **prefixed("module.")(s)}, "module."),
    "training": (lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 1}, ""),
    "compiled submodule": (lambda s: {n.replace("layer1.", "layer1._orig_mod."): t for n, t in s.items()}, ""),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_wrappers_load_and_the_prefix_is_named(tmp_path: Path, kind: str) -> None:
    make, prefix = CHECKPOINTS[kind]
    trained, network, again = resnet20(), resnet20(), resnet20()
    torch.save(make(trained.state_dict()), tmp_path / "w.pth")
    report = import_weights(network, tmp_path / "w.pth")
    load_weights(again, tmp_path / "w.pth")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
        assert torch.equal(again.state_dict()[name], tensor)
    assert (f"the prefix {prefix} was removed" in str(report)) == bool(prefix)


def test_prefix_of_another_packages_names_is_removed() -> None:
    plain = mobilenet_v2(0.25)
    layout = next(layout for layout in LAYOUTS.values() if isinstance(plain, layout.network))
    names = layout.names(plain)
    theirs = {}
    for name, tensor in plain.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if module in names:
            theirs[f"module.{names[module]}.{leaf}"] = tensor
    report = import_weights(mobilenet_v2(0.25), theirs, strict=False)
    assert report.layout == layout.name
    assert not report.missing


def test_prefix_that_belongs_to_the_network_stays(tmp_path: Path) -> None:
    wrapped = nn.ModuleDict({"model": nn.Linear(2, 2)})
    torch.save(wrapped.state_dict(), tmp_path / "w.pth")
    assert import_weights(nn.ModuleDict({"model": nn.Linear(2, 2)}), tmp_path / "w.pth").selection == ""


@pytest.mark.parametrize(
    ("plain", "averaged"), [("state_dict", "state_dict_ema"), ("model", "ema"), ("params", "params_ema")]
)
def test_one_of_several_sets_is_loaded_and_named(tmp_path: Path, plain: str, averaged: str) -> None:
    first, second = resnet20(), resnet20()
    torch.save({averaged: second.state_dict(), plain: first.state_dict()}, tmp_path / "w.pth")
    for ema, expected, name, other in ((False, first, plain, averaged), (True, second, averaged, plain)):
        network = resnet20()
        report = import_weights(network, tmp_path / "w.pth", ema=ema)
        assert torch.equal(network.state_dict()["conv1.weight"], expected.state_dict()["conv1.weight"])
        assert report.selection == f"{name} was loaded; the file also holds {other}"


def test_only_averaged_weights_are_loaded_and_said_to_be(tmp_path: Path) -> None:
    torch.save({"state_dict_ema": resnet20().state_dict(), "epoch": 3}, tmp_path / "w.pth")
    assert "state_dict_ema was loaded, the only weights" in str(import_weights(resnet20(), tmp_path / "w.pth"))


def test_missing_average_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": resnet20().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(SeparableError, match=r"w\.pth holds no averaged weights .*it holds state_dict"):
        import_weights(resnet20(), tmp_path / "w.pth", ema=True)
