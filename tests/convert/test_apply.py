from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from torch_separable.convert import LayerPlan, Plan, apply, calibrate, plan
from torch_separable.convert.factorize import Order
from torch_separable.convert.layers import survey
from torch_separable.cost import analyze
from torch_separable.errors import SeparableError
from torch_separable.files import load_weights, save_weights
from torch_separable.models import resnet20
from torch_separable.nn import DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d

ORDERS: tuple[Order, ...] = get_args(Order)
of_each_order = pytest.mark.parametrize("order", ORDERS)
SEPARABLE = (DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d)


def converted(model: nn.Module, images: Any, order: Order | None = None, rank: int = 99, **options: Any) -> Any:
    statistics = calibrate(model, images)
    return apply(model, plan(model, statistics, rank=rank, order=order), statistics, **options)


def separable_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, SEPARABLE)]


def assert_same_function(one: nn.Module, other: nn.Module, fresh: Tensor, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        expected = other.eval()(fresh)
        torch.testing.assert_close(
            one.eval()(fresh), expected, rtol=0, atol=tolerance * max(1.0, float(expected.abs().max()))
        )


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "3x3": (nn.Conv2d(4, 6, 3, padding=1), (9, 10)),
    "no bias": (nn.Conv2d(4, 6, 3, padding=1, bias=False), (9, 10)),
    "1xk": (nn.Conv2d(4, 6, (1, 5), padding=(0, 2)), (9, 10)),
    "kx1": (nn.Conv2d(4, 6, (4, 1)), (9, 10)),
    "5x5": (nn.Conv2d(3, 4, 5, stride=2, padding=2), (11, 10)),
    "7x7": (nn.Conv2d(3, 2, 7, stride=2, padding=3), (14, 15)),
    "2x2": (nn.Conv2d(3, 4, 2, stride=2), (8, 8)),
    "strides": (nn.Conv2d(4, 6, 3, stride=(3, 2)), (11, 10)),
    "dilation": (nn.Conv2d(4, 6, 3, padding=2, dilation=(2, 3)), (11, 12)),
    "same": (nn.Conv2d(4, 6, (3, 4), padding="same"), (9, 10)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), (9, 10)),
    "reflect": (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (9, 10)),
    "replicate": (nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="replicate"), (9, 10)),
    "circular": (nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (9, 10)),
    "groups": (nn.Conv2d(6, 9, 3, padding=1, groups=3), (9, 10)),
    "many outputs": (nn.Conv2d(1, 12, 3), (9, 10)),
    "one output": (nn.Conv2d(6, 1, 3), (9, 10)),
    "sequence": (nn.Conv1d(4, 6, 5, stride=2, padding=2, groups=2), (21,)),
    "volume": (nn.Conv3d(2, 4, (2, 3, 3), stride=(1, 2, 1), padding=(0, 1, 1)), (5, 7, 6)),
    "volume, replicate": (nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate"), (5, 5, 6)),
}


@of_each_order
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_full_rank_computes_what_the_dense_layer_does(name: str, order: Order) -> None:
    layer, size = copy.deepcopy(LAYERS[name])
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    images = torch.randn(24, layer.in_channels, *size)
    model = nn.Sequential(layer, nn.ReLU())
    result = converted(model, images[:16], order)
    assert isinstance(result[0], SEPARABLE)
    assert (result[0].order, result[0].depth_multiplier) == (order, layer.weight[0, 0].numel())
    assert_same_function(result, model, images[16:])
    as_svd = Plan("svd", (LayerPlan("0", tuple(layer.weight.shape), order, layer.weight[0, 0].numel()),))
    assert_same_function(apply(model, as_svd), model, images[16:])


@of_each_order
def test_full_rank_computes_what_a_whole_network_does(order: Order) -> None:
    model = resnet20().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.running_mean.normal_(0, 0.3)
    images = torch.randn(12, 3, 16, 16)
    names = ("layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer3.2.conv2")
    chosen = Plan("least_squares", tuple(LayerPlan(n, shape_of(model, n), order, 9) for n in names))
    result = apply(model, chosen, images[:8])
    assert separable_names(result) == list(names)
    assert_same_function(result, model, images[8:])


def shape_of(model: nn.Module, name: str) -> tuple[int, ...]:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape)


def test_dense_network_is_not_touched() -> None:
    model, images = resnet20(), torch.randn(8, 3, 16, 16)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    chosen = Plan("svd", (LayerPlan("layer1.0.conv1", (16, 16, 3, 3), "depthwise_first", 1),))
    for result in (apply(model, chosen), apply(model, Plan("least_squares", chosen.layers), images)):
        assert separable_names(result) == ["layer1.0.conv1"]
        assert not separable_names(model)
        mine, theirs = ({p.data_ptr() for p in of.parameters()} for of in (model, result))
        assert not mine & theirs
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"a": nn.ModuleList([nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())])})
        self.tail = nn.Sequential(nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))))
        self.keys = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.keys(self.tail(self.blocks["a"][0](x)))


def test_layers_in_nested_containers_are_replaced_in_their_places() -> None:
    model, images = Nested(), torch.randn(16, 3, 8, 8)
    result = converted(model, images)
    assert separable_names(result) == ["blocks.a.0.0", "tail.0.0.0", "keys"]
    assert [type(m) for m in result.blocks["a"][0].children()] == [DepthwiseSeparableConv2d, nn.ReLU]
    assert_same_function(result, model, images)


def test_shared_layer_is_replaced_at_all_its_places_and_counted_there() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ModuleDict({"x": shared})["x"], nn.ReLU(), shared)
    images = torch.randn(16, 3, 8, 8)
    statistics = calibrate(model, images)
    chosen = plan(model, statistics, rank=2)
    result: Any = apply(model, chosen, statistics)
    assert result[1] is result[3]
    assert isinstance(result[1], DepthwiseSeparableConv2d)
    assert analyze(result, images[:1]).macs == chosen.macs[1]
    assert sum(p.numel() for p in result.parameters()) == chosen.parameters[1]
    assert_same_function(converted(model, images), model, images)


def test_frozen_layers_stay_frozen() -> None:
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, bias=bias) for bias in (True, True, True, False)))
    model[0].requires_grad_(False)
    model[1].weight.requires_grad_(False)
    model[3].requires_grad_(False)
    with torch.no_grad():
        result = converted(model, torch.randn(16, 3, 12, 12), rank=1)
    trained = [{name.rpartition(".")[2]: p.requires_grad for name, p in layer.named_parameters()} for layer in result]
    assert trained == [
        {"weight": False, "bias": False},
        {"weight": False, "bias": True},
        {"weight": True, "bias": True},
        {"weight": False, "bias": False},
    ]


def test_modes_are_kept_module_by_module() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3)).train()
    model[0].eval()
    result = converted(model, torch.randn(16, 3, 12, 12), rank=1)
    assert [module.training for module in (result, *result)] == [True, False, True, True]
    assert [module.training for module in result[0].children()] == [False, False]


def test_hooks_are_carried_over() -> None:
    calls: list[str] = []
    model, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), torch.randn(16, 3, 8, 8)
    model[0].register_forward_hook(lambda module, args, output: calls.append("after"))
    model[0].register_forward_hook(lambda m, args, kwargs, output: output + 1, with_kwargs=True)
    model[0].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    model[0].register_forward_pre_hook(lambda m, args, kwargs: calls.append("before"), with_kwargs=True)
    model[1].register_full_backward_hook(lambda module, gradients, given: calls.append("backward"))
    result = converted(model, images)
    assert_same_function(result, model, images)
    calls.clear()
    result(images).sum().backward()
    assert calls == ["before", "after", "backward"]


def test_subclass_that_overrides_nothing_is_converted() -> None:
    class SamePadding(nn.Conv2d):
        def __init__(self, *channels: int) -> None:
            super().__init__(*channels, 3, padding=1)

    model, images = nn.Sequential(SamePadding(3, 4)), torch.randn(16, 3, 8, 8)
    result = converted(model, images)
    assert separable_names(result) == ["0"]
    assert_same_function(result, model, images)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def doubled(conv: nn.Conv2d) -> nn.Module:
    parametrize.register_parametrization(conv, "weight", Doubled())
    return conv


def pruned(conv: nn.Conv2d) -> nn.Module:
    prune.l1_unstructured(conv, "weight", 0.4)
    return conv


COMPUTED: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "a parametrisation": doubled,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight_norm, the old": weight_norm,
    "spectral_norm, the old": spectral_norm,
    "pruning": pruned,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_layer_whose_weight_is_computed_is_converted_to_what_it_computes(name: str) -> None:
    images = torch.randn(16, 3, 8, 8)
    model = nn.Sequential(COMPUTED[name](nn.Conv2d(3, 6, 3)), nn.ReLU(), COMPUTED[name](nn.Conv2d(6, 4, 3, bias=False)))
    model.train()(images)
    model(images).sum().backward()
    model.eval()
    chosen = plan(model, calibrate(model, images), rank=9)
    assert chosen.parameters[0] == sum(p.numel() for p in model.parameters())
    for result in (apply(model, chosen, images), apply(model, Plan("svd", chosen.layers))):
        assert separable_names(result) == ["0", "2"]
        assert not any("parametrizations" in key or "_orig" in key for key in result.state_dict())
        assert all(p.requires_grad for p in result.parameters())
        assert_same_function(result, model, images)
    result = apply(model, chosen, images)
    assert chosen.parameters[1] == sum(p.numel() for p in result.parameters())
    result.train()(images).sum().backward()
    assert all(p.grad is not None for p in result.parameters())


@of_each_order
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2), (torch.float64, 1e-6)])
def test_dtype_is_kept(dtype: torch.dtype, tolerance: float, order: Order) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)).to(dtype)
    images = torch.randn(16, 3, 8, 8)
    result = converted(model, images, order)
    assert {p.dtype for p in result.parameters()} == {dtype}
    assert separable_names(result) == ["0", "3"]
    assert_same_function(result, model, images.to(dtype), tolerance)


def test_outputs_may_be_mappings_and_inputs_named() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, *, pixels: Tensor, shift: Tensor) -> dict[str, Tensor]:
            maps = self.conv(input=pixels)
            return {"maps": maps, "logits": maps.mean((2, 3)) + shift[:, None]}

    model = Named()
    batches = [{"pixels": torch.randn(8, 3, 8, 8), "shift": torch.randn(8)} for _ in range(3)]
    result = converted(model, batches)
    for name, tensor in model(**batches[0]).items():
        torch.testing.assert_close(result(**batches[0])[name], tensor, rtol=1e-4, atol=1e-5)


def test_layers_that_ask_for_the_kernels_dtype_still_find_it() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.projection = nn.Conv2d(3, 8, 4, stride=4)

        def forward(self, x: Tensor) -> Tensor:
            return self.projection(x.to(self.projection.weight.dtype)).flatten(1)

    model, images = Patches(), torch.randn(16, 3, 8, 8)
    result = converted(model, images)
    assert_same_function(result, model, images)
    torch.testing.assert_close(result.projection.weight, model.projection.weight, rtol=1e-4, atol=1e-5)


@of_each_order
def test_plan_from_its_file_gives_the_network_to_load_weights_into(order: Order, tmp_path: Path) -> None:
    model, images = (
        nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3)),
        torch.randn(16, 3, 9, 9),
    )
    statistics = calibrate(model, images)
    for method in ("least_squares", "svd"):
        chosen = plan(model, statistics, rank=2, order=order, method=method)  # type: ignore[arg-type]
        fitted = apply(model, chosen, statistics)
        chosen.save(tmp_path / "plan.json")
        save_weights(fitted, tmp_path / "weights.safetensors")
        for p in model.parameters():
            nn.init.zeros_(p)  # the dense weights need not be at hand
        rebuilt = apply(model, Plan.load(tmp_path / "plan.json"))
        load_weights(rebuilt, tmp_path / "weights.safetensors")
        assert torch.equal(rebuilt(images), fitted(images))
        for p in model.parameters():
            nn.init.normal_(p)


def test_converted_network_is_one_to_train() -> None:
    model, images = (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten()),
        torch.randn(16, 3, 9, 9),
    )
    statistics = calibrate(model, images)
    result = apply(model, plan(model, statistics, rank=1, method="svd"), statistics)
    optimizer = torch.optim.Adam(result.parameters(), 0.01)
    losses = []
    for _ in range(30):
        loss = (result(images) - model(images).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([("0", (8, 3, 3, 3)), ("5", (8, 8, 3, 3))],
         r"its layer 5 has a kernel of shape \(8, 8, 3, 3\), and Sequential has no such layer\. Give the network that"),
        ([("0", (16, 3, 3, 3)), ("5", (1, 1, 1, 1))],
         r"its layer 0 has a kernel of shape \(16, 3, 3, 3\), and Sequential has \(8, 3, 3, 3\) there"),
        ([("1", (8, 8, 3, 3))], "its layer 1 has a kernel .*, and Sequential has ReLU there"),
        ([("2.deeper", (8, 8, 3, 3))], r"its layer 2\.deeper has a kernel .*, and Sequential has no such layer"),
    ],
)  # fmt: skip
def test_plan_for_another_network_is_refused_with_the_first_difference(layers: Any, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    foreign = Plan("svd", tuple(LayerPlan(name, shape, "depthwise_first", 1) for name, shape in layers))
    with pytest.raises(SeparableError, match="the plan is for another network: " + message):
        apply(model, foreign)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LayerPlan("0", (8, 3, 3, 3), "depthwise_first", 10), "rank=10: its kernel has 9 entries, so at most 9"),
        (
            LayerPlan("1", (8, 8, 1, 1), "depthwise_first", 1),
            "layer 1 of the plan cannot be converted: 1x1: there is no",
        ),
        (
            LayerPlan("2", (8, 1, 3, 3), "depthwise_first", 1),
            "layer 2 of the plan cannot be converted: depthwise already",
        ),
        (LayerPlan("3", (4, 8), "depthwise_first", 1), "layer 3 of the plan cannot be converted: it is no convolution"),
    ],
)
def test_plan_of_what_cannot_be_is_refused_with_the_reason(layer: LayerPlan, message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 4))
    with pytest.raises(SeparableError, match=message):
        apply(model, Plan("svd", (layer,)))


def test_planned_layer_that_the_images_do_not_reach_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    model.add_module("unused", nn.Identity())
    model.unused.conv = nn.Conv2d(4, 4, 3)
    chosen = Plan("least_squares", (LayerPlan("unused.conv", (4, 4, 3, 3), "depthwise_first", 1),))
    with pytest.raises(
        SeparableError, match=r"layer unused\.conv of the plan never ran on the calibration images: keep"
    ):
        apply(model, chosen, torch.randn(8, 3, 8, 8))


def test_every_convolution_is_either_replaced_or_kept_with_a_reason() -> None:
    model, images = Nested(), torch.randn(16, 3, 8, 8)
    model.tail.append(nn.Conv2d(4, 4, 1))
    chosen = plan(model, calibrate(model, images), rank=1)
    found = survey(model)
    assert {layer.name for layer in chosen.layers} == {*found.convertible, *found.kept}
    assert all(layer.reason for layer in chosen.layers if layer.order is None)
