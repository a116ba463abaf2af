from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable.data import ImageData
from torch_separable.distillation import Evaluation, evaluate
from torch_separable.errors import SeparableError


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 5))


def images(count: int = 23) -> ImageData:
    return ImageData("noise", "test", torch.rand(count, 3, 8, 8), torch.arange(count) % 5, tuple("abcde"))


class Fixed(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[: len(images)]


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_result_follows_the_definition_for_every_batch_size(batch_size: int) -> None:
    model, data = network().eval(), images()
    result = evaluate(model, data, batch_size)
    with torch.no_grad():
        logits, labels = model(data.images), data.labels
        assert labels is not None
        assert result.correct == int((logits.argmax(1) == labels).sum())
        assert result.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert (result.count, result.accuracy) == (23, result.correct / 23)


def test_modes_of_modules_are_restored_even_after_an_error() -> None:
    model = network()
    model[1].eval()
    statistics = model[1].running_mean.clone()
    evaluate(model, images())
    with pytest.raises(SeparableError):
        evaluate(model, ImageData("n", "test", torch.rand(2, 3, 8, 8), torch.tensor([0, 6]), tuple("abcdefg")))
    assert [module.training for module in model] == [True, False, True, True, True]
    assert torch.equal(model[1].running_mean, statistics)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(23, 3), r"shape \(23, 3\) for 23 images of noise: must be \(23, 5\)"),
        (torch.zeros(22, 5), r"shape \(22, 5\)"),
        (torch.zeros(23, 5, 2, 2), r"shape \(23, 5, 2, 2\)"),
        (torch.full((23, 5), float("nan")), "NaN or infinite"),
    ],
)
def test_wrong_logits_are_described(logits: Tensor, message: str) -> None:
    with pytest.raises(SeparableError, match=message):
        evaluate(Fixed(logits), images())


def test_missing_labels_and_invalid_batch_size_are_refused() -> None:
    with pytest.raises(SeparableError, match=r"noise .* has no labels: evaluation needs them"):
        evaluate(network(), ImageData("noise", "test", torch.rand(2, 3, 8, 8)))
    with pytest.raises(SeparableError, match="batch_size=0"):
        evaluate(network(), images(), batch_size=0)


def test_result_has_text_and_json_forms() -> None:
    result = Evaluation(correct=3, count=4, loss=0.5)
    assert str(result) == "75.00 % of 4, loss 0.5000"
    assert result.to_dict() == {"correct": 3, "count": 4, "accuracy": 0.75, "loss": 0.5}
