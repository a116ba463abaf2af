"""Networks that cannot be captured as a whole run with their largest submodules compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.errors import SeparableError
from torch_separable.runtime import compile_submodules


def features(channels: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())


class Detector(nn.Module):
    """A backbone and a head, then boxes above a threshold: as many as there are, in a list of dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = features(), nn.Conv2d(8, 5, 1)
        self.backbone.out_channels = 8  # type: ignore[assignment]

    def forward(self, images: list[Tensor], threshold: float = 0.0) -> list[dict[str, Tensor]]:
        assert self.backbone.out_channels == 8
        found = []
        for image in images:
            maps = self.head(self.backbone(image[None]))[0]
            kept = maps[0] > threshold
            if kept.any():
                found.append({"scores": maps[0][kept], "boxes": maps[1:, kept]})
            else:
                found.append({"scores": maps.new_zeros(0), "boxes": maps.new_zeros(4, 0)})
        return found


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.mix = features(), features(), nn.Sequential(nn.Conv2d(8, 4, 1), nn.Flatten())

    def forward(self, left: Tensor, *, right: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        both = self.left(left) + self.right(right)
        return self.mix(both), {"both": both}


class InPlace(nn.Module):
    """A block whose first layer changes the block's input, which is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3, padding=1))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.block(x) + x]


def assert_same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_detector_runs_with_its_backbone_and_head_compiled() -> None:
    torch.manual_seed(0)
    model, images = Detector().eval(), [torch.randn(3, 16, 16), torch.randn(3, 12, 20)]
    network = compile_submodules(model, images)
    assert list(network.compiled) == ["backbone", "head"]
    assert not network.eager
    with torch.no_grad():
        for threshold in (0.0, 1e9):
            assert_same(network(images, threshold=threshold), model(images, threshold=threshold))
        larger = [torch.randn(3, 24, 8)]
        assert_same(network(larger), model(larger))
    assert "forward" not in vars(model.backbone), "the network itself must not change"


def test_several_inputs_and_nested_outputs() -> None:
    model, x, y = TwoInputs().eval(), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    network = compile_submodules(model, x, right=y)
    assert list(network.compiled) == ["left", "right", "mix"]
    with torch.no_grad():
        assert_same(network(x, right=y), model(x, right=y))


def test_submodule_that_modifies_its_input_is_left_to_its_children() -> None:
    model, x = InPlace().eval(), torch.randn(2, 3, 8, 8)
    network = compile_submodules(model, x.clone())
    assert list(network.compiled) == ["block.1"]
    with torch.no_grad():
        assert_same(network(x.clone()), model(x.clone()))


def test_layers_that_pytorch_runs_are_named() -> None:
    class Audio(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wave, self.image = nn.Conv1d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.image(self.wave(x)[:, :, None].expand(-1, -1, 8, -1).contiguous()),)

    network = compile_submodules(Audio().eval(), torch.randn(1, 2, 16))
    assert list(network.compiled) == ["image"]
    assert list(network.eager) == ["wave"]
    assert "(N, C, H, W)" in network.eager["wave"]
    assert "wave" in str(network)


@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv1d(2, 3, 3)), nn.Sequential(nn.ReLU())], ids=str)
def test_network_without_a_submodule_to_compile_is_refused(model: nn.Module) -> None:
    with pytest.raises(SeparableError, match=r"no submodule of Sequential can be compiled: .*convolution|argument"):
        compile_submodules(model, torch.randn(1, 2, 16))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(SeparableError, match=r"TwoInputs cannot run on the example arguments: .*right"):
        compile_submodules(TwoInputs(), torch.randn(1, 3, 8, 8))


def test_compile_points_to_it() -> None:
    with pytest.raises(SeparableError, match="compile_submodules"):
        ts.compile(Detector().eval(), torch.randn(1, 3, 8, 8))
