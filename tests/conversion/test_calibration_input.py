"""`calibrate` accepts images in every form, and names what is wrong with unusable images and networks."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from calibration_cases import images, raises, small
from torch_separable.conversion import LayerStatistics, calibrate
from torch_separable.errors import SeparableValueError


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, ids: Tensor, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.conv(input=pixel_values).mean((2, 3)) + ids[:, :1]}


def test_images_are_accepted_in_every_form() -> None:
    model, given = small(), images(40)
    of_tensor = calibrate(model, given).layers
    for form in (given.split(16), [given[:0], *given.split(10)], (batch for batch in given.split(7))):
        for one, other in zip(of_tensor, calibrate(model, form).layers, strict=True):
            assert one.name == other.name
            assert one.moments is not None
            assert other.moments is not None
            torch.testing.assert_close(one.moments[0].patches, other.moments[0].patches, rtol=1e-5, atol=1e-6)
    both = {"ids": torch.zeros(40, 2, dtype=torch.long), "pixel_values": given}
    assert calibrate(ByName(), both).outputs.values["logits"].shape == (40, 4)
    mappings = [{"ids": torch.zeros(10, 2, dtype=torch.long), "pixel_values": batch} for batch in given.split(10)]
    statistics = calibrate(ByName(), mappings)
    assert statistics.outputs.values["logits"].shape == (40, 4)
    assert statistics["conv"].moments is not None
    assert statistics["conv"].moments[0].count == 40 * 36


def test_sequences_and_volumes_are_accepted() -> None:
    for conv, shape in ((nn.Conv1d(3, 4, 5), (16, 3, 20)), (nn.Conv3d(2, 4, 3), (16, 2, 5, 6, 7))):
        layer = calibrate(nn.Sequential(conv), torch.randn(shape))["0"]
        assert layer.inputs == ((1, *shape[2:]),)
        assert layer.macs == conv.weight.numel() * math.prod(layer.spec.output_size(shape[2:]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_are_cast_to_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    layer = calibrate(small().to(dtype), images())["0"]
    assert layer.moments is not None
    assert layer.moments[0].patches.dtype == torch.float64


def test_unusable_images_raise() -> None:
    model = small()
    with raises("0 calibration images"):
        calibrate(model, images(0))
    with raises("0 calibration images"):
        calibrate(model, [])
    with raises("1 calibration images"):
        calibrate(model, images(1))
    with raises("7 calibration images: at least 8 "):
        calibrate(model, images(7))
    with raises(r"\(8, 8\): expected \(N, C, H, W\)", SeparableValueError):
        calibrate(model, torch.zeros(8, 8))
    with raises("NoneType", SeparableValueError):
        calibrate(model, None)  # type: ignore[arg-type]
    with raises("batch 0 .* set", SeparableValueError):
        calibrate(model, [{1, 2}])  # type: ignore[list-item]
    with raises("batch 0 .* torch.uint8", SeparableValueError):
        calibrate(model, torch.zeros(16, 3, 8, 8, dtype=torch.uint8))
    for held, shapes in ((torch.tensor(3.0), r"\(8, 3, 8, 8\), \(\)"), (torch.ones(3), r"\(8, 3, 8, 8\), \(3,\)")):
        with raises(f"batch 0 .* shapes {shapes}"):
            calibrate(ByName(), [{"pixel_values": images(8), "ids": held}])
    for same in (torch.zeros(16, 3, 8, 8), images(1).expand(16, 3, 8, 8), [images(1)] * 16):
        with raises("all 16 calibration images are identical"):
            calibrate(model, same)
    broken = images(80)
    broken[70, 0, 2, 2] = torch.nan
    with raises("batch 1 .* NaN"):
        calibrate(model, broken)
    with raises(r"Sequential .*\(8, 4, 8, 8\): .* 3 channels"):
        calibrate(model, images(channels=4))
    with raises(r"Sequential .*\(8, 3, 9, 9\)"):
        calibrate(model, images(size=11)[..., :9, :9])
    with raises(r"ByName .*{'x': \(8, 3, 8, 8\)}"):
        calibrate(ByName(), [{"x": images()}])
    with raises("144 .* batch 0 .* 256 .* batch 1.* images of one size"):
        calibrate(nn.Sequential(nn.Conv2d(3, 4, 3)), [images(8), images(8, size=10)])


def test_unusable_networks_raise() -> None:
    with raises(r"Sequential has no convolution to convert \(0: 1x1"):
        calibrate(nn.Sequential(nn.Conv2d(3, 4, 1)), images())
    with raises(r"Sequential has no convolution to convert .*nn\.Conv1d"):
        calibrate(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), images())
    with raises("Idle"):
        calibrate(Idle(), images())
    model = small()
    with torch.no_grad():
        model[3].weight[1, 2, 0, 1] = torch.inf
    with raises("3.weight"):
        calibrate(model, images())
    model = small()
    model[1].running_var[2] = torch.nan
    with raises("1.running_var"):
        calibrate(model, images())
    with raises("0.weight"):
        calibrate(nn.Sequential(nn.LazyConv2d(4, 3)), images())


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def test_error_names_the_layer_whose_activation_is_not_finite() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Root(), nn.Conv2d(4, 4, 3))
    with raises("input of layer 2 .* batch 0"):
        calibrate(model, images())
    with torch.no_grad():
        model[0].weight.fill_(1e38)
    with raises("output of layer 0 .* batch 0"):
        calibrate(model, images())


def test_unnormalised_images_warn() -> None:
    with pytest.warns(UserWarning, match="up to 255"):
        calibrate(small(), torch.linspace(0, 255, 16 * 3 * 64).view(16, 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(small(), images())


def test_layers_with_fewer_pixels_than_patch_entries_warn() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(3), nn.Conv2d(16, 4, 3))
    message = r"1 of 2 layers \(the first is 2\)"
    with pytest.warns(UserWarning, match=message):
        calibrate(model, images(143))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(model, images(144))


def test_statistics_are_found_by_name() -> None:
    statistics = calibrate(small(), images())
    assert isinstance(statistics["3"], LayerStatistics)
    with pytest.raises(KeyError, match="nowhere"):
        statistics["nowhere"]


class Unreadable(Dataset[Tensor]):
    """One of its images cannot be read."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> Tensor:
        if index == 20:
            raise OSError("image 20 is truncated")
        return images(32)[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_that_raises_names_the_batch_and_the_cause(workers: int) -> None:
    loader = DataLoader(Unreadable(), batch_size=8, num_workers=workers)
    with raises("batch 2 of the calibration images cannot be read: OSError: image 20 is truncated"):
        calibrate(small(), loader)
