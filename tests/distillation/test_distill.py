from __future__ import annotations

import copy
import json
import os
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable._network.weights_file import load_weights, read_weights
from torch_separable.data import ImageData, load_data
from torch_separable.distillation import DistillConfig, EpochRecord, distill, evaluate
from torch_separable.distillation.training_log import read_records
from torch_separable.errors import SeparableError

_worker = runpy.run_path(str(Path(__file__).with_name("distillation_worker.py")))
network: Callable[..., nn.Module] = _worker["network"]
images: Callable[..., ImageData] = _worker["images"]
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 32, "progress": False}


def agreement(student: nn.Module, teacher: nn.Module, data: ImageData) -> float:
    with torch.no_grad():
        pixels = data.take(slice(None))[0]
        return float((student(pixels).argmax(1) == teacher.eval()(pixels).argmax(1)).float().mean())


def losses(settings: dict[str, Any], student: nn.Module | None = None, data: ImageData | None = None) -> list[float]:
    records: list[EpochRecord] = []
    distill(
        student or network(0), network(1, width=9), data or images(), on_epoch=records.append, **{**QUICK, **settings}
    )
    return [record.loss for record in records if record.loss is not None]


def equal(one: nn.Module, other: nn.Module) -> bool:
    others = other.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in one.state_dict().items())


def test_student_learns_the_teachers_classes_without_labels() -> None:
    student, teacher = network(0, width=12, batch_norm=False), network(1, batch_norm=False)
    data = replace(images(count=512), labels=None, classes=())
    before = agreement(student, teacher, data)
    records: list[EpochRecord] = []
    distilled = distill(
        student, teacher, data, epochs=25, batch_size=32, learning_rate=0.01, augment=(), on_epoch=records.append
    )
    assert before < 0.1
    assert agreement(distilled, teacher, data) > 0.7
    assert records[-1].agreement == pytest.approx(agreement(distilled, teacher, data), abs=0.05)


def test_networks_and_data_are_not_changed() -> None:
    student, teacher = network(0), network(1)
    teacher[2].eval()
    state, modes = copy.deepcopy(student), [module.training for module in teacher.modules()]
    taught = copy.deepcopy(teacher)
    random = torch.get_rng_state()
    distilled = distill(student, teacher, images(), feature_weight=1.0, features=("0", "3"), **QUICK)
    assert torch.equal(torch.get_rng_state(), random)
    assert equal(student, state)
    assert equal(teacher, taught)
    assert [module.training for module in teacher.modules()] == modes
    assert student.training
    assert not any(module.training for module in distilled.modules())
    assert not equal(distilled, student)
    for model in (student, teacher, distilled):
        assert not any(module._forward_hooks for module in model.modules())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert distilled[0].weight.is_contiguous()


def test_seed_determines_the_result() -> None:
    assert losses({"seed": 1}) == losses({"seed": 1})
    assert losses({"seed": 1}) != losses({"seed": 2})


def test_gradient_accumulation_gives_the_same_losses() -> None:
    student = network(0, batch_norm=False)
    settings = {
        "augment": ("crop", "mixup"),
        "label_weight": 0.3,
        "feature_weight": 0.2,
        "features": ("2",),
        "batch_size": 25,
    }
    teacher = network(1, batch_norm=False)
    losses = []
    for parts in (1, 3):
        records: list[EpochRecord] = []
        distill(
            student, teacher, images(), gradient_accumulation=parts, on_epoch=records.append, **{**QUICK, **settings}
        )
        losses.append([record.loss for record in records])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd"},
        {"label_weight": 1.0, "augment": ("crop", "flip", "color", "erase", "mixup")},
        {"logits_weight": 0.0, "feature_weight": 1.0, "features": ("2",)},
        {"mixed_precision": "bf16"},
        {"ema_decay": 0.9},
    ],
    ids=["sgd", "labels", "features", "bf16", "ema"],
)
def test_every_loss_term_decreases(settings: dict[str, Any]) -> None:
    teacher, data = network(1), images()
    with torch.no_grad():
        data = replace(data, labels=teacher.eval()(data.take(slice(None))[0]).argmax(1))
    epochs: list[EpochRecord] = []
    distill(network(0), teacher, data, on_epoch=epochs.append, **{**QUICK, "epochs": 12, "augment": (), **settings})
    assert epochs[-1].loss is not None
    assert epochs[0].loss is not None
    assert epochs[-1].loss < 0.9 * epochs[0].loss


def test_labels_alone_need_no_teacher() -> None:
    data, records = images(), list[EpochRecord]()
    settings = {**QUICK, "logits_weight": 0, "label_weight": 1, "epochs": 30, "augment": (), "learning_rate": 0.02}
    trained = distill(network(0, 16), None, data, on_epoch=records.append, **settings)
    assert records[-1].agreement is not None
    assert records[-1].agreement > 0.6
    assert evaluate(trained, data).accuracy > 0.6
    with pytest.raises(SeparableError, match="teacher is None"):
        distill(network(0), None, data)


def test_best_weights_by_validation_are_returned() -> None:
    student, teacher = network(0), network(1)
    validation = images("valid")
    with torch.no_grad():
        own = student.eval()(validation.take(slice(None))[0]).argmax(1)
        teacher[-1].bias[(own.mode().values + 1) % 4] += 100  # away from what the student says
    validation = replace(validation, labels=own)  # on which the untrained student is always right
    records: list[EpochRecord] = []
    distilled = distill(
        student, teacher, images(), validation=validation, learning_rate=0.5, on_epoch=records.append, **QUICK
    )
    assert [record.epoch for record in records] == [0, 1, 2]
    assert records[0].loss is None
    assert records[0].validation is not None
    assert records[0].validation.accuracy == 1
    assert equal(distilled, student)


def test_moving_average_is_returned_if_ema_decay_is_given() -> None:
    last, mean = (distill(network(0), network(1), images(), ema_decay=decay, **QUICK) for decay in (0.0, 0.99))
    assert not equal(last, mean)


def test_steps_are_counted_and_limited() -> None:
    records: list[EpochRecord] = []
    distill(network(0), network(1), images(), max_steps=4, on_epoch=records.append, **QUICK)
    assert [(record.epoch, record.step) for record in records] == [(1, 3), (2, 4)]
    assert records[-1].learning_rate == pytest.approx(0, abs=1e-9)


def test_fewer_images_than_a_batch_are_one_batch() -> None:
    records: list[EpochRecord] = []
    distill(network(0), network(1), images(count=5), on_epoch=records.append, **QUICK)
    assert [record.step for record in records] == [1, 2]


def test_output_dir_holds_settings_log_and_weights(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "run"
    distilled = distill(network(0), network(1), images(), output_dir=folder, validation=images("valid"), **QUICK)
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "checkpoint.safetensors",
        "log.jsonl",
        "settings.json",
    ]
    loaded = network(5)
    load_weights(loaded, folder / "best.safetensors")
    assert equal(loaded, distilled)
    config = json.loads((folder / "settings.json").read_text())
    assert DistillConfig.from_dict(config["settings"]) == DistillConfig(epochs=2, batch_size=32)
    assert config["data"] == images().describe()
    assert config["validation"]["split"] == "valid"
    records = read_records(folder / "log.jsonl")
    assert [(record["kind"], record["step"]) for record in records] == [
        ("epoch", 0),
        *(("step", step) for step in (1, 2, 3)),
        ("epoch", 3),
        *(("step", step) for step in (4, 5, 6)),
        ("epoch", 6),
    ]
    steps = [record["loss"] for record in records[1:4]]
    assert records[4]["loss"] == pytest.approx(sum(steps) / 3)
    assert 0 <= records[-1]["validation"]["accuracy"] <= 1


class Wrapped(nn.Module):
    """A network that returns what models of `transformers` do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.inner(pixel_values))


def test_outputs_with_a_logits_attribute_are_supported() -> None:
    wrapped = distill(Wrapped(network(0)), Wrapped(network(1)), images(), validation=images("valid"), **QUICK)
    plain = distill(network(0), network(1), images(), validation=images("valid"), **QUICK)
    assert equal(wrapped.inner, plain)


class Failing(nn.Module):
    """A network whose logits are no longer finite after some training passes."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.inner, self.left = network(0), good

    def forward(self, pixels: Tensor) -> Tensor:
        self.left -= self.training
        return self.inner(pixels) * (1.0 if self.left >= 0 else float("nan"))


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    settings = {**QUICK, "checkpoint_every": 2, "output_dir": tmp_path}
    with pytest.raises(SeparableError, match=r"the loss became nan at step 6 of 6.*learning_rate=0.001.* step 4"):
        distill(Failing(good=5), network(1), images(), **settings)
    kept = read_weights(tmp_path / "checkpoint.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    with pytest.raises(SeparableError, match=r"became NaN or infinite|the loss became"):
        distill(network(0), network(1), images(), output_dir=tmp_path, optimizer="sgd", learning_rate=1e38, **QUICK)
    assert not (tmp_path / "checkpoint.safetensors").exists()


class Partly(nn.Module):
    """A network that does not call all of its modules."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner, self.unused = network(seed), nn.ReLU()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.inner(pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(192, 5))},
            r"student returns .*\(2, 4\), the teacher \(2, 5\)",
        ),
        ({"teacher": nn.Conv2d(1, 4, 3)}, r"the teacher .*\(2, 3, 8, 8\) .* of noise"),
        ({"student": Failing(good=-1)}, "the student returns NaN"),
        ({"data": ImageData("bare", "train", torch.rand(40, 3, 8, 8)), "label_weight": 1.0}, "bare .* has no labels"),
        ({"validation": ImageData("bare", "test", torch.rand(4, 3, 8, 8))}, "bare .* no labels: validation needs"),
        ({"validation": replace(images("valid"), images=torch.rand(96, 3, 9, 8))}, r"\(3, 9, 8\).*\(3, 8, 8\)"),
        ({"data": replace(images(), classes=tuple("abcdef")), "label_weight": 1.0}, "noise has 6 classes"),
        ({"gradient_accumulation": 30, "data": images(count=20)}, "batch of 20 images .* gradient_accumulation=30"),
        ({"config": DistillConfig(), "epochs": 3}, "epochs and config are both given"),
        ({"lr": 0.1}, "'lr' is not a setting"),
        ({"feature_weight": 1.0}, r"features=\(...\)"),
        (
            {"feature_weight": 1.0, "features": ("2",), "teacher": network(1, width=9)},
            r"module '2' .*\(2, 6, 8, 8\) in the student and \(2, 9, 8, 8\) in the teacher",
        ),
        (
            {"feature_weight": 1.0, "features": ("unused",), "student": Partly(0), "teacher": Partly(1)},
            "module 'unused' is not called in the student",
        ),
    ],
)
def test_networks_and_data_are_checked_before_training(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    full = {"student": network(0), "teacher": network(1), "data": images(), **arguments}
    with pytest.raises(SeparableError, match=message):
        distill(**full, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_relative_output_dir_is_resolved_at_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    distill(
        network(0), network(1), images(), output_dir="run", on_epoch=lambda _: os.chdir(tmp_path / "elsewhere"), **QUICK
    )
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_output_dir_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SeparableError, match=r"cannot write into .*file: File exists"):
        distill(network(0), network(1), images(), output_dir=tmp_path / "file", **QUICK)


def digits_network(separable: bool) -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        if separable and inputs > 1:
            depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
            return nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1, bias=False))
        return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)

    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [block(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.slow
def test_separable_network_learns_handwritten_digits_from_a_dense_one() -> None:
    train, test = load_data("digits", image_size=16), load_data("digits", "test", image_size=16)
    settings = {"batch_size": 64, "augment": ("crop",), "learning_rate": 0.01, "progress": False}
    dense = distill(digits_network(False), None, train, logits_weight=0, label_weight=1, epochs=10, **settings)
    unlabelled = replace(train, labels=None, classes=())
    separable = distill(digits_network(True), dense, unlabelled, epochs=15, **settings)
    assert evaluate(dense, test).accuracy > 0.97
    assert evaluate(separable, test).accuracy > 0.95
    with torch.no_grad():
        pixels = test.take(slice(None))[0]
        divergence = F.kl_div(
            separable(pixels).log_softmax(1), dense(pixels).log_softmax(1), log_target=True, reduction="batchmean"
        )
    assert float(divergence) < 0.2


def test_keep_last_returns_the_last_weights_even_if_others_were_better() -> None:
    pixels = torch.rand(64, 1, 8, 8)
    student = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    with torch.no_grad():
        labels = student(pixels).argmax(1)
    watched = ImageData("noise", "test", pixels, labels, classes=("0", "1"))
    data = ImageData("noise", "train", pixels, 1 - labels, classes=("0", "1"))  # each step makes it worse
    settings: dict[str, Any] = {**QUICK, "logits_weight": 0, "label_weight": 1, "batch_size": 16}
    best = distill(student, None, data, validation=watched, keep="best", **settings)
    last = distill(student, None, data, validation=watched, keep="last", **settings)
    assert equal(best, student)
    assert equal(last, distill(student, None, data, **settings))
    assert not equal(last, student)


def test_batch_norms_keep_their_statistics_in_distillation_and_not_in_training_on_labels() -> None:
    pixels, labels = torch.rand(32, 1, 8, 8), torch.arange(32) % 2
    data = ImageData("noise", "train", pixels, labels, classes=("0", "1"))
    student = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    student.train()(pixels)
    teacher = copy.deepcopy(student)
    nn.init.normal_(teacher[4].weight)
    distilled = distill(student, teacher, data, **QUICK)
    trained = distill(student, None, data, logits_weight=0, label_weight=1, **QUICK)
    assert torch.equal(distilled[1].running_mean, student[1].running_mean)
    assert not torch.equal(distilled[1].weight, student[1].weight)
    assert not torch.equal(trained[1].running_mean, student[1].running_mean)


def test_networks_that_flatten_by_view_are_trained() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.conv(x).relu().view(len(x), -1))
            return result

    data = ImageData("noise", "train", torch.rand(16, 3, 8, 8))
    student, teacher = Viewing(), Viewing()
    distilled = distill(student, teacher, data, epochs=1, batch_size=8, progress=False)
    assert not torch.equal(distilled.head.weight, student.head.weight)
