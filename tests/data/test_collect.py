"""Images as people have them are read into an ImageData."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_separable import convert, distill, evaluate
from torch_separable.data import collect_images
from torch_separable.errors import SeparableError

NORMALISED, LABELS = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
PIXELS = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)


def to_tensor(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.asarray(picture.resize((8, 8))).copy()).permute(2, 0, 1)
    return (pixels / 255 - 0.5) / 0.25


def test_loader_of_images_and_labels_gives_the_network_the_same_values() -> None:
    data = collect_images(DataLoader(TensorDataset(NORMALISED, LABELS), batch_size=5))
    images, labels = data.take(slice(0, 12))
    assert torch.allclose(images, NORMALISED, atol=1e-6)
    assert torch.equal(labels, LABELS)
    assert data.classes == ("0", "1", "2")


def test_pil_images_with_and_without_a_transform() -> None:
    pictures = [Image.fromarray(pixels) for pixels in PIXELS]
    plain = collect_images(pictures)
    assert torch.equal(plain.images, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert not plain.labelled
    sizes = [picture.resize((8 + i, 9)) for i, picture in enumerate(pictures)]
    with pytest.raises(SeparableError, match=r"image 1 .*\(3, 9, 9\).*transform"):
        collect_images(sizes)
    prepared = collect_images([(picture, i % 2) for i, picture in enumerate(sizes)], transform=to_tensor)
    assert torch.allclose(prepared.take(slice(0, 1))[0][0], to_tensor(sizes[0]), atol=1e-6)
    assert prepared.labelled


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no image"),
        ("folder", "is a str"),
        (3, "is a int"),
        ([torch.rand(8, 8)], r"image 0 of images is a float32 tensor of shape \(8, 8\)"),
        ([object()], "image 0 of images is a object"),
    ],
)
def test_other_sources_are_refused(source: object, message: str) -> None:
    with pytest.raises(SeparableError, match=message):
        collect_images(source)


def test_convert_takes_a_loader_of_images_and_labels() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3)).eval()
    made = [
        convert(network, images, rank=1).plan
        for images in (DataLoader(TensorDataset(NORMALISED, LABELS), batch_size=6), NORMALISED.split(6))
    ]
    assert made[0].to_dict() == made[1].to_dict()


def test_evaluate_and_distill_take_a_loader() -> None:
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(NORMALISED, LABELS), batch_size=4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with torch.no_grad():
        expected = int((network(NORMALISED).argmax(1) == LABELS).sum())
    assert evaluate(network, loader, progress=False).correct == expected
    student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    trained = distill(student, network, loader, epochs=1, batch_size=4, augment=(), progress=False)
    assert trained(NORMALISED).shape == (12, 3)


def test_source_that_raises_names_the_element_and_the_cause() -> None:
    class Broken:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Tensor:
            if index:
                raise OSError("image 1 is truncated")
            return NORMALISED[index]

    with pytest.raises(SeparableError, match=r"image 1 of holidays .*OSError: image 1 is truncated"):
        collect_images(Broken(), name="holidays")
    with pytest.raises(SeparableError, match=r"batch 0 of images .*OSError: image 1 is truncated"):
        collect_images(DataLoader(Broken(), batch_size=3))  # type: ignore[arg-type]
