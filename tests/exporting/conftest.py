"""A network trained on real images, converted; and ways of running a file elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from torch_separable import Conversion, convert
from torch_separable.data import load_data
from torch_separable.distillation import distill
from torch_separable.models import CifarResNet


@dataclass(frozen=True)
class Digits:
    """A network for handwritten digits, made depthwise separable, and 64 images that neither training nor fit saw."""

    conversion: Conversion
    images: Tensor

    @property
    def model(self) -> nn.Module:
        return self.conversion.model


@pytest.fixture(scope="session")
def digits() -> Digits:
    pytest.importorskip("sklearn", reason="the images of digits come with scikit-learn")
    torch.manual_seed(0)
    train = load_data("digits")
    dense = distill(
        CifarResNet(1, num_classes=10, in_channels=1), None, train, epochs=1, logits_weight=0, label_weight=1,
        batch_size=64, learning_rate=4e-3, progress=False,
    )  # fmt: skip
    return Digits(convert(dense, train.sample(32), rank=1, method="svd"), load_data("digits", "test").sample(64))
