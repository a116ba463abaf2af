"""Models of ``transformers``, built from their configurations with random weights: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_separable._network.outputs import logits_of
from torch_separable.conversion import Budget, apply, calibrate, convert, plan
from torch_separable.conversion.layers import find_convertible
from torch_separable.cost import analyze

pytestmark = pytest.mark.filterwarnings("ignore:.* layers .* have fewer output pixels", "ignore:.*KernelPreference.*")

SMALL = {"num_channels": 3, "embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
STAGES = ["stage1", "stage2", "stage3", "stage4"]

# Class of model, configuration, shape of the logits for two images of 64 pixels, number of convolutions to convert,
# reasons to keep others.
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], int, set[str]]] = {
    "ResNet": ("ForImageClassification", {**SMALL, "layer_type": "basic"}, (2, 4), 9, {"1x1"}),
    "ConvNext": (
        "ForImageClassification",
        {"num_channels": 3, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
        (2, 4),
        4,
        {"already depthwise"},
    ),
    "RegNet": (
        "ForImageClassification",
        {**SMALL, "hidden_sizes": [8, 16, 24, 32], "groups_width": 8},
        (2, 4),
        5,
        {"1x1"},
    ),
    "Segformer": (
        "ForSemanticSegmentation",
        {
            "hidden_sizes": [8, 16, 24, 32],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 2, 4],
            "decoder_hidden_size": 16,
        },
        (2, 4, 16, 16),
        7,
        {"1x1", "already depthwise"},
    ),
    "UperNet": (
        "ForSemanticSegmentation",
        {
            "backbone_config": ("ResNet", {**SMALL, "layer_type": "basic", "out_features": STAGES}),
            "hidden_size": 16,
            "pool_scales": [1, 2],
            "auxiliary_in_channels": 16,
            "auxiliary_channels": 8,
        },
        (2, 4, 64, 64),
        15,
        {"1x1"},
    ),
    "Detr": (
        "ForObjectDetection",
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_config": ("ResNet", {**SMALL, "layer_type": "basic", "out_features": ["stage4"]}),
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "num_queries": 5,
        },
        (2, 5, 5),
        9,
        {"1x1"},
    ),
    "Yolos": (
        "ForObjectDetection",
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": [64, 64],
            "patch_size": 8,
            "num_detection_tokens": 5,
        },
        (2, 5, 5),
        1,
        set(),
    ),
}
of_each_network = pytest.mark.parametrize("name", NETWORKS)


def network(name: str) -> nn.Module:
    """The network with weights and statistics of about the size that training gives, so that its outputs vary."""
    import transformers  # takes seconds, which only these tests should cost

    kind, settings, *_ = NETWORKS[name]
    settings = dict(settings)
    if "backbone_config" in settings:
        backbone, options = settings["backbone_config"]
        settings["backbone_config"] = getattr(transformers, f"{backbone}Config")(**options)
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, name + kind)(
        getattr(transformers, f"{name}Config")(num_labels=4, **settings)
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.2)
    return model.eval()


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, given: Tensor) -> Tensor:
    with torch.no_grad():
        return logits_of(model(given))


def lost(model: nn.Module, converted: nn.Module, given: Tensor) -> float:
    dense = logits(model, given)
    return float((logits(converted, given) - dense).square().mean() / dense.var(0).mean())


@of_each_network
def test_network_converts_and_skips_with_reasons(name: str) -> None:
    *_, shape, count, reasons = NETWORKS[name]
    model = network(name)
    statistics = calibrate(model, images())
    chosen = plan(model, statistics, rank=1)
    converted = apply(model, chosen, statistics)

    assert len(chosen.converted) == count
    kept = {layer.name: layer.reason for layer in chosen.layers if layer.order is None}
    assert kept == find_convertible(model).skipped
    assert {reason.partition(":")[0] for reason in kept.values()} == reasons
    assert type(converted) is type(model)
    outputs = logits(converted, images(2))
    assert outputs.shape == shape
    assert torch.isfinite(outputs).all()
    counted = analyze(converted, images(1))
    assert counted.macs == chosen.macs.converted < chosen.macs.dense
    assert counted.parameters == chosen.parameters.converted < chosen.parameters.dense


@of_each_network
def test_full_rank_computes_the_same(name: str) -> None:
    model, fresh = network(name), images(20)[16:]
    statistics = calibrate(model, images())
    chosen = plan(model, statistics, rank=99)
    assert lost(model, apply(model, chosen, statistics), fresh) < 1e-6
    assert all(layer.error < 1e-9 for layer in chosen.converted)


@pytest.mark.parametrize("name", ["ResNet", "ConvNext", "RegNet"])
def test_higher_rank_loses_less(name: str) -> None:
    # As many images as are asked for: the last stages have four pixels an image, and 16 images leave fits undecided.
    given, fresh = images(256 + 32).split([256, 32])
    model = network(name)
    statistics = calibrate(model, given)
    chosen = [plan(model, statistics, rank=rank, order="depthwise_first") for rank in (1, 4)]
    less, more = (lost(model, apply(model, of, statistics), fresh) for of in chosen)
    assert more < 0.7 * less


@pytest.mark.parametrize("name", ["ResNet", "RegNet", "UperNet", "Detr"])
def test_budget_holds_for_the_whole_network(name: str) -> None:
    model = network(name)
    dense = analyze(model, images(1)).macs
    conversion = convert(model, images(), budget=Budget(macs=0.75))
    assert conversion.report.macs.dense == dense
    assert analyze(conversion.model, images(1)).macs == conversion.report.macs.converted <= 0.75 * dense
    assert set(conversion.report.converted) | set(conversion.report.kept) == {
        layer.name for layer in conversion.plan.layers
    }
    assert logits(conversion.model, images(2)).shape == NETWORKS[name][2]


def test_keyword_inputs_are_accepted() -> None:
    model = network("Detr")
    batches = [
        {"pixel_values": part, "pixel_mask": torch.ones(len(part), 64, 64, dtype=torch.long)}
        for part in images().split(8)
    ]
    conversion = convert(model, batches, rank=9)
    with torch.no_grad():
        ours, theirs = conversion.model(**batches[0]), model(**batches[0])
    torch.testing.assert_close(ours.pred_boxes, theirs.pred_boxes, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-3, atol=1e-4)


def test_converted_model_saves_and_loads_weights() -> None:
    model = network("ResNet")
    statistics = calibrate(model, images())
    chosen = plan(model, statistics, rank=2)
    fitted = apply(model, chosen, statistics)
    rebuilt = apply(network("ResNet"), chosen)
    rebuilt.load_state_dict(fitted.state_dict())
    assert torch.equal(logits(rebuilt, images(2)), logits(fitted, images(2)))
