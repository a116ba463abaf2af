"""Networks that are written in ways of their own are converted all the same, and left as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from threading import Lock

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.conversion import Budget
from torch_separable.errors import SeparableError
from torch_separable.nn import DepthwiseSeparableConv2d


class Written(nn.Module):
    """Two convolutions, and a head over what ``flat`` makes of their maps."""

    def __init__(self, forward: Callable[[Written, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.written = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.written(self, x)


def pooled(y: Tensor) -> Tensor:
    return y.relu().mean((2, 3))


def viewed(net: Written, x: Tensor) -> Tensor:
    y = net.second(net.first(x).relu())
    return net.head(y.view(len(x), 8, -1).mean(2))


def changing_its_input(net: Written, x: Tensor) -> Tensor:
    return net.head(pooled(net.second(net.first(x.mul_(2).sub_(1)).relu())) + x.mean())


def reading_a_list(net: Written, x: Tensor) -> Tensor:
    y = net.first(x).relu()
    order = y.mean((2, 3)).mean(0).argsort().tolist()
    return net.head(pooled(net.second(y[:, order])))


def one_number(net: Written, x: Tensor) -> Tensor:
    return net.head(pooled(net.second(net.first(x).relu())))[:, :1].squeeze(1)


def taking_gradients(net: Written, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = net.first(x).relu().detach().requires_grad_()
        (slope,) = torch.autograd.grad(y.square().sum(), y)
    return net.head(pooled(net.second(slope)))


def asking_for_the_bias(net: Written, x: Tensor) -> Tensor:
    assert net.second.bias is not None
    return net.head(pooled(net.second(net.first(x).relu())) + net.second.bias.mean() * 0)


def masked(net: Written, x: Tensor) -> Tensor:
    y = net.head(pooled(net.second(net.first(x).relu())))
    return y.masked_fill(torch.tensor([False, True, False, False, False]), -torch.inf)


@pytest.mark.parametrize(
    "forward",
    [viewed, changing_its_input, reading_a_list, one_number, taking_gradients, asking_for_the_bias, masked],
)
def test_network_converted_at_full_rank_is_unchanged(forward: Callable[[Written, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, images = Written(forward).eval(), torch.randn(72, 3, 8, 8)
    before = images.clone()
    statistics = ts.calibrate(model, images)
    plan = ts.plan(model, statistics, rank=9, order="depthwise_first")
    converted = ts.apply(model, plan, statistics)
    assert len(plan.converted) == 2
    assert torch.equal(images, before)
    fresh = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(converted(fresh.clone()), model(fresh.clone()), rtol=1e-3, atol=1e-3)
    conversion = ts.convert(model, images, budget=Budget(macs=0.7))
    assert 0 <= conversion.report.output_error < 1
    assert torch.equal(images, before)


def test_convolutions_in_a_plain_list_are_replaced() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = {"all": []}
            for i in range(2):
                conv = nn.Conv2d(4, 4, 3, padding=1)
                self.add_module(f"conv{i}", conv)
                self.stages["all"].append((conv, nn.ReLU()))

        def forward(self, x: Tensor) -> Tensor:
            for conv, relu in self.stages["all"]:
                x = relu(conv(x))
            return x

    model, images = Listed().eval(), torch.randn(16, 4, 8, 8)
    conversion = ts.convert(model, images, rank=1)
    assert (
        ts.analyze(conversion.model, images[:1]).macs == conversion.report.macs.converted < conversion.report.macs.dense
    )
    assert isinstance(model.stages["all"][0][0], nn.Conv2d)


@pytest.mark.parametrize("order", ["depthwise_first", "pointwise_first"])
def test_converted_network_can_be_converted_again(order: str) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    images = torch.randn(16, 4, 8, 8)
    statistics = ts.calibrate(model, images)
    plan = ts.plan(model, statistics, rank=2, order=order)  # type: ignore[arg-type]
    once = ts.apply(model, plan, statistics)
    once.append(nn.Conv2d(8, 4, 3))
    twice = ts.convert(once, images, rank=1)
    assert twice.report.converted == ("3",)
    assert isinstance(twice.model[0], DepthwiseSeparableConv2d)


def test_buffer_may_be_infinite_but_not_nan(tmp_path: object) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    assert ts.convert(model, torch.randn(8, 3, 8, 8), rank=1).report.agreement >= 0
    model.mask.fill_(torch.nan)
    with pytest.raises(SeparableError, match="mask"):
        ts.calibrate(model, torch.randn(8, 3, 8, 8))


def test_networks_own_train_method_is_not_called() -> None:
    class Merging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.merged = nn.Conv2d(3, 4, 3), False

        def train(self, mode: bool = True) -> Merging:
            self.merged = not mode
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.conv(x)
            return result

    model = Merging()
    ts.calibrate(model, torch.randn(8, 3, 8, 8))
    assert model.training
    assert not model.merged


def test_attributes_of_a_convolution_are_preserved() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    model[0].place = [1, 2]  # type: ignore[assignment]
    converted = ts.convert(model, torch.randn(8, 3, 8, 8), rank=1).model
    assert converted[0].place == [1, 2]


def test_weight_computed_by_a_custom_hook_is_skipped() -> None:
    def scaled(module: nn.Module, args: object) -> None:
        module.weight = module.weight_orig * 2  # type: ignore[operator]

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    weight = model[0].weight
    del model[0]._parameters["weight"]
    model[0].weight_orig = nn.Parameter(weight.detach())
    model[0].weight = weight.detach() * 2
    model[0].register_forward_pre_hook(scaled)
    conversion = ts.convert(model, torch.randn(8, 3, 8, 8), rank=1)
    assert conversion.report.converted == ("1",)
    assert "computed" in conversion.report.kept["0"]


@pytest.mark.parametrize("changed", [{"bias": None}, {"weight": None, "bias": None}])
def test_batch_norms_without_weight_or_bias(changed: dict[str, None]) -> None:
    norm = nn.BatchNorm2d(8)
    for name in changed:
        setattr(norm, name, None)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU()).eval()
    images = torch.randn(16, 3, 8, 8)
    statistics = ts.calibrate(copy.deepcopy(model), images)
    converted = ts.apply(model, ts.plan(model, statistics, rank=9, order="pointwise_first"), statistics)
    torch.testing.assert_close(converted(images), model(images), rtol=1e-3, atol=1e-3)


def test_kernel_shared_by_two_layers_is_skipped() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    model[1].weight = model[0].weight
    conversion = ts.convert(model, torch.randn(16, 4, 12, 12), rank=1)
    assert conversion.report.converted == ("2",)
    assert conversion.report.kept["0"] == "shares its kernel with another layer"
    assert conversion.model[1].weight is conversion.model[0].weight


class Stacking(nn.Module):
    """A small U-Net that keeps its skips on itself, and takes the last or the first of them."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.up = nn.ModuleList(nn.Conv2d(8, 4, 3, padding=1) for _ in range(2))
        self.skips: list[Tensor] = []
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.down:
            x = conv(x).relu()
            self.skips.append(x)
        for conv in self.up:
            x = conv(torch.cat([x, self.skips.pop(self.place)], 1))
        return x


@pytest.mark.parametrize("place", [-1, 0])
def test_activations_pushed_onto_the_network_are_removed(place: int) -> None:
    model, images = Stacking(place).eval(), torch.randn(16, 4, 8, 8)
    conversion = ts.convert(model, images, budget=Budget(macs=0.6))
    assert model.skips == []
    assert conversion.model.skips == []
    assert conversion.report.output_error < 1


class Routed(nn.Module):
    """Experts, each of which sees the images that the values before it send there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.experts = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        chosen = (y.mean((1, 2, 3)) * 997).long() % 3
        mixed = torch.zeros_like(y)
        for i, expert in enumerate(self.experts):
            if (chosen == i).any():
                mixed[chosen == i] = expert(y[chosen == i])
        return pooled(self.last(mixed.relu()))


def test_experts_that_receive_other_images_are_named_and_can_be_excluded() -> None:
    torch.manual_seed(0)
    net, images = Routed().eval(), torch.randn(64, 3, 12, 12)
    assert ts.convert(net, images, rank=9).report.output_error < 1e-6
    with pytest.raises(SeparableError, match=r"layer experts\.\d .*exclude=\['experts"):
        ts.convert(net, images, rank=2)
    report = ts.convert(net, images, rank=2, exclude=["experts"]).report
    assert report.converted == ("first", "last")
    assert report.kept == {f"experts.{i}": "excluded" for i in range(3)}


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (
            lambda conv: lambda x: conv(x.abs()),
            r"layer second is not called in the converted copy of Hidden",
        ),
        (partial, r"Hidden never calls the separable layer that replaced second"),
    ],
    ids=["function", "object"],
)
def test_layer_called_through_an_opaque_object_raises(
    hidden: Callable[[nn.Module], Callable[[Tensor], Tensor]], message: str
) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.call = hidden(self.second)

        def forward(self, x: Tensor) -> Tensor:
            return pooled(self.call(self.first(x).relu()))

    net, images = Hidden().eval(), torch.randn(64, 3, 12, 12)
    with pytest.raises(SeparableError, match=rf"{message}.*exclude=\['second'\]"):
        ts.convert(net, images, rank=2)
    assert ts.convert(net, images, rank=2, exclude=["second"]).report.converted == ("first",)


@pytest.mark.parametrize("reassigned", [False, True], ids=["in place", "another tensor"])
def test_buffers_written_in_evaluation_are_restored(reassigned: bool) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if reassigned:
                self.seen = self.seen + len(x)
            else:
                self.seen += len(x)
            return self.second(self.first(x).relu()).mean((2, 3))

    net = Counting().eval()
    net(torch.randn(3, 3, 12, 12))
    buffer = net.seen
    converted = ts.convert(net, torch.randn(64, 3, 12, 12), budget=Budget(macs=0.6)).model
    assert net.seen is buffer
    assert net.seen == converted.seen == 3
    converted(torch.randn(2, 3, 12, 12))
    assert (net.seen, converted.seen) == (3, 5)


def test_attribute_that_cannot_be_copied_is_named() -> None:
    net, images = Written(one_number).eval(), torch.randn(64, 3, 12, 12)
    statistics = ts.calibrate(net, images)
    plan = ts.plan(net, statistics, rank=2)
    vars(net.first)["remembered"] = [net.first(images)]  # as a pass of training may leave
    with pytest.raises(SeparableError, match=r"Written .*first\.remembered"):
        ts.apply(net, plan, statistics)
    vars(net.first)["remembered"] = None
    vars(net)["lock"] = Lock()
    with pytest.raises(SeparableError, match=r"cannot be copied: lock, of type lock \(cannot pickle"):
        ts.compile(net, images[:1])
    del net.lock
    ts.apply(net, plan, statistics)


def test_statistics_of_another_network_raise() -> None:
    images = torch.randn(64, 3, 12, 12)
    net, other = nn.Sequential(nn.Conv2d(3, 8, 3)), nn.Sequential(nn.Conv2d(3, 8, 5))
    statistics = ts.calibrate(net, images)
    with pytest.raises(SeparableError, match=r"statistics are of another network: Sequential .* 0 "):
        ts.plan(other, statistics, rank=1)
    with pytest.raises(SeparableError, match="statistics are of another network"):
        ts.apply(other, ts.plan(other, ts.calibrate(other, images), rank=1), statistics)


class Masks(nn.Module):
    """A class for each pixel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.mark.parametrize("classes", [1, 3])
def test_agreement_counts_positions(classes: int) -> None:
    torch.manual_seed(0)
    net, images = Masks(classes).eval(), torch.randn(64, 3, 12, 12)
    conversion = ts.convert(net, images, rank=1)
    with torch.no_grad():
        ours, theirs = conversion.model(images[48:]), net(images[48:])
    same = (ours > 0) == (theirs > 0) if classes == 1 else ours.argmax(1) == theirs.argmax(1)
    assert conversion.report.agreement == pytest.approx(float(same.float().mean()), abs=1e-4)
    assert 0.5 < conversion.report.agreement < 1


def test_edited_plan_is_applied_and_recounted() -> None:
    torch.manual_seed(0)
    net, images = Masks(5).eval(), torch.randn(64, 3, 12, 12)
    made = ts.convert(net, images, rank=1)
    layers = {layer["name"]: layer for layer in made.plan.to_dict()["layers"]}
    layers["first"] |= {"order": None, "rank": 0}
    layers["second"] |= {"rank": 3}
    edited = ts.Plan.from_dict({**made.plan.to_dict(), "layers": list(layers.values())})
    conversion = ts.convert(net, images, plan=edited)
    assert isinstance(conversion.model.first, nn.Conv2d)
    assert conversion.model.second.depth_multiplier == 3
    assert conversion.plan.macs == (ts.analyze(net, images[:1]).macs, ts.analyze(conversion.model, images[:1]).macs)
    assert conversion.plan.parameters.converted == sum(p.numel() for p in conversion.model.parameters())
    assert conversion.plan.layers[0].macs.converted == conversion.plan.layers[0].macs.dense
    assert {(layer.reason, layer.error) for layer in conversion.plan.layers} == {("edited", 0.0)}
    same = ts.convert(net, images, plan=made.plan).plan
    assert [layer.reason for layer in same.layers] == [layer.reason for layer in made.plan.layers]
    assert conversion.report.output_error < made.report.output_error
    with pytest.raises(SeparableError, match="plan and exclude"):
        ts.convert(net, images, plan=edited, exclude=["first"])
    with pytest.raises(SeparableError, match=r"method='svd'.*'least_squares'"):
        ts.convert(net, images, plan=edited, method="svd")
    with pytest.raises(SeparableError, match=r"budget=0\.5: give a Budget"):
        ts.convert(net, images, budget=0.5)  # type: ignore[arg-type]
