from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any
from weakref import finalize

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torch_separable.conversion import LayerStatistics, apply, calibrate, plan
from torch_separable.conversion.calibration.moments import layer_moments
from torch_separable.conversion.convolutions import patches_of
from torch_separable.cost import analyze
from torch_separable.errors import SeparableError, SeparableValueError


def images(count: int = 16, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(7))


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, bias=False),
        nn.Flatten(),
        nn.Linear(54, 5),
    )


def inputs_of(model: nn.Module, name: str, given: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    with torch.no_grad():
        model.eval()(given)
    handle.remove()
    return torch.cat(seen)


def test_moments_equal_those_of_all_patches_when_none_are_left_out() -> None:
    model, given = small(), images()
    for layer in calibrate(model, given).layers:
        conv = model.get_submodule(layer.name)
        assert isinstance(conv, nn.Conv2d)
        x = patches_of(conv, inputs_of(model, layer.name, given)).flatten(3).flatten(0, 2).double()
        t = conv(inputs_of(model, layer.name, given)).movedim(1, -1).flatten(0, 2).double()
        assert layer.moments is not None
        (moments,) = layer.moments
        xc, tc = x - x.mean(0), t - t.mean(0)
        assert moments.count == len(x)
        for ours, exact in (
            (moments.patches, xc.T @ xc / len(x)),
            (moments.cross, tc.T @ xc / len(x)),
            (moments.patch_mean, x.mean(0)),
            (moments.target_mean, t.mean(0)),
            (moments.target_variance, tc.square().mean(0)),
        ):
            torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)


def test_each_group_has_its_own_moments() -> None:
    model, given = nn.Sequential(nn.Conv2d(6, 4, 3, groups=2)), images(channels=6)
    (layer,) = calibrate(model, given).layers
    assert layer.moments is not None
    for g, moments in enumerate(layer.moments):
        alone = nn.Sequential(nn.Conv2d(3, 2, 3))
        with torch.no_grad():
            alone[0].weight.copy_(model[0].weight[2 * g : 2 * g + 2])
            alone[0].bias.copy_(model[0].bias[2 * g : 2 * g + 2])
        (expected,) = calibrate(alone, given[:, 3 * g : 3 * g + 3])["0"].moments or ()
        torch.testing.assert_close(moments.patches, expected.patches)
        torch.testing.assert_close(moments.cross, expected.cross)
        torch.testing.assert_close(moments.target_mean, expected.target_mean)


def test_pixels_are_sampled_uniformly_up_to_a_limit() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))
    given = torch.randn(16, 2, 80, 80)
    (layer,) = calibrate(model, given).layers
    assert layer.moments is not None
    assert layer.moments[0].count == layer.pixels == 65536 < 16 * 80 * 80
    (exact,) = calibrate(model, given[:, :, :60, :60])["0"].moments or ()  # 57,600 pixels: all of them
    torch.testing.assert_close(layer.moments[0].patches, exact.patches, rtol=0.1, atol=0.1)


def test_layers_are_in_execution_order() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Conv2d(4, 2, 3), nn.Conv2d(3, 4, 3)
            self.unused, self.mixer = nn.Conv2d(3, 3, 3), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.mixer(self.last(self.first(x)))

    for memory in (2**31, 1):
        statistics = calibrate(Backwards(), images(), memory=memory)
        assert [layer.name for layer in statistics.layers] == ["first", "last"]
        assert statistics.skipped == {
            "mixer": "1x1: no spatial kernel to factorise",
            "unused": "never ran on the calibration images",
        }


class Pyramid(nn.Module):
    """One head on maps of three sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return torch.cat([self.head(F.avg_pool2d(x, n)).relu().flatten(1) for n in (1, 2, 4)], 1)


def test_layer_called_several_times_is_counted_and_sampled_at_each_call() -> None:
    model, given = Pyramid(), images()
    head = calibrate(model, given)["head"]
    assert (head.inputs, head.input_pixels) == (((1, 8, 8), (1, 4, 4), (1, 2, 2)), 64 + 16 + 4)
    assert head.macs == 4 * 4 * 9 * (64 + 16 + 4)
    assert head.moments is not None
    assert head.moments[0].count == 16 * (64 + 16 + 4)
    assert head.pixels * head.calls <= 65536 + head.calls
    assert calibrate(model, given).macs == analyze(model, given[:1]).macs


def test_layer_used_at_two_places_is_one_layer() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(shared, nn.ReLU()), shared)
    layers = calibrate(model, images()).layers
    assert [(layer.name, layer.calls) for layer in layers] == [("0", 1), ("1.0", 2)]


def test_costs_are_per_image_when_one_image_makes_several_inputs() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            halves = self.conv(torch.cat(x.chunk(2, dim=3)))  # (2N, C, H, W/2)
            return torch.cat(halves.chunk(2), dim=1).mean((2, 3))

    statistics = calibrate(Halves(), images())
    assert statistics["conv"].macs == statistics.macs == 2 * 6 * 2 * 4 * 3 * 9
    assert statistics["conv"].input_pixels == 64
    assert statistics["conv"].inputs == ((2, 8, 4),)


def test_each_image_contributes_equally_whatever_its_batch() -> None:
    model, given = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 3)), torch.zeros(64, 1, 32, 32)
    given[60:] = 1.0  # in a batch of 4, beside one of 60
    nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
    (moments,) = calibrate(model, [given[:60], given[60:]])["1"].moments or ()
    torch.testing.assert_close(moments.patch_mean, torch.full((18,), 4 / 64, dtype=torch.float64), rtol=0, atol=1e-3)


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors made in the block hold at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most, self.known = 0, 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.known and storage._cdata not in given:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return result

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_memory_limit_is_respected() -> None:
    model = nn.Sequential(*(nn.Conv2d(24, 24, 3, padding=1) for _ in range(5)))
    given = images(12, 24, 24)
    with torch.no_grad(), LiveBytes() as running:
        model(given.contiguous(memory_format=torch.channels_last))
    memory = 6 * 2**20
    for bound in (memory, 8 * memory):
        with LiveBytes() as live:
            statistics = calibrate(model, given, memory=bound)
            apply(model, plan(model, statistics, rank=2, order="depthwise_first"), statistics)
        if bound == memory:
            assert live.most - running.most - given.nbytes <= memory  # the images, laid out anew, come besides
        else:
            assert live.most - running.most > 1.5 * memory, "more would be taken where more may be"


def test_results_do_not_depend_on_the_memory_limit() -> None:
    model, given = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))), images(12, 16, 6)
    roomy, tight = calibrate(model, given), calibrate(model, given, memory=2**18)
    assert all(layer.moments is not None for layer in roomy.layers)
    assert [layer.moments is None for layer in tight.layers] == [True] * 4
    for layer in roomy.layers:
        conv: Any = model.get_submodule(layer.name)
        pairs = (layer_moments(model, conv, statistics, layer.name) for statistics in (roomy, tight))
        for one, other in zip(*pairs, strict=True):
            for name in ("patches", "cross", "patch_mean", "target_mean", "target_variance"):
                torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)
    chosen = plan(model, roomy, rank=2)
    assert plan(model, tight, rank=2) == chosen
    assert_same(apply(model, chosen, roomy), apply(model, chosen, tight))


def assert_same(one: nn.Module, other: nn.Module) -> None:
    others = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, others[name]), name


def test_network_and_random_state_are_unchanged() -> None:
    model = small()
    model[1].train()
    model[0].eval()
    before, modes, random = copy.deepcopy(model), [m.training for m in model.modules()], torch.get_rng_state()
    statistics = calibrate(model, images())
    apply(model, plan(model, statistics, rank=1), statistics)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(model, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_scale_and_shift_are_those_of_the_following_batch_norm() -> None:
    model = small().eval()
    with torch.no_grad():
        for tensor in (model[1].weight, model[1].bias, model[1].running_mean):
            tensor.normal_()
        model[1].running_var.uniform_(0.5, 2)
    first, last = calibrate(model, images()).layers
    assert (first.consumer.norm, last.consumer.norm) == ("1", None)
    y = torch.randn(5, 4, 2, 2)
    with torch.no_grad():
        expected = model[1](y)
    ours = first.scale.view(-1, 1, 1) * y + first.shift.view(-1, 1, 1)
    torch.testing.assert_close(ours.float(), expected)
    assert torch.equal(last.scale, torch.ones(6).double())
    assert torch.equal(last.shift, torch.zeros(6).double())


class Flowing(nn.Module):
    """A convolution whose output ``then`` takes on."""

    def __init__(self, then: Callable[[nn.Module, Tensor, Tensor], Any], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 3, 3, padding=1), norm, nn.Conv2d(3, 3, 1)
        self.bn2, self.after = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.then = then

    def forward(self, x: Tensor) -> Any:
        return self.then(self, self.conv(x), x)


def flow(then: Callable[[Any, Tensor, Tensor], Any], norm: nn.Module | None = None) -> tuple[bool, bool, bool]:
    found = calibrate(Flowing(then, norm), images())["conv"].consumer
    return found.norm == "norm", found.residual, found.rectified


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "functional": F.relu,
    "functional in place": F.relu_,
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "method": Tensor.relu,
    "method in place": Tensor.relu_,
}
SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "first": lambda y, x: y + x,
    "second": lambda y, x: x + y,
    "functional": torch.add,
    "in place": Tensor.add_,
    "in place of the other": lambda y, x: x.clone().add_(y),
}


@pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
@pytest.mark.parametrize("add", SUMS.values(), ids=SUMS)
def test_residual_sums_and_relus_are_found_in_every_form(
    relu: Callable[[Tensor], Tensor], add: Callable[[Tensor, Tensor], Tensor]
) -> None:
    after: Callable[[Any, Tensor], Tensor] = lambda m, y: m.after(y).mean((2, 3))  # noqa: E731
    norm = nn.BatchNorm2d(3)
    assert flow(lambda m, y, x: after(m, relu(y))) == (False, False, True)
    assert flow(lambda m, y, x: after(m, add(y, x))) == (False, True, False)
    assert flow(lambda m, y, x: after(m, relu(m.norm(y))), norm) == (True, False, True)
    assert flow(lambda m, y, x: after(m, relu(add(m.norm(y), x))), norm) == (True, True, True)
    assert flow(lambda m, y, x: after(m, add(relu(y), x))) == (False, False, True)


@pytest.mark.parametrize(
    ("then", "norm", "expected"),
    [
        (lambda m, y, x: m.after(y).mean((2, 3)), None, (False, False, False)),
        (lambda m, y, x: F.gelu(m.norm(y)).mean((2, 3)), nn.BatchNorm2d(3), (True, False, False)),
        (lambda m, y, x: F.leaky_relu(y).mean((2, 3)), None, (False, False, False)),
        (lambda m, y, x: torch.cat([y.relu(), y], 1).mean((2, 3)), None, (False, False, False)),
        (lambda m, y, x: {"logits": y.relu().mean((2, 3)), "maps": y}, None, (False, False, False)),
        (lambda m, y, x: (y * x).relu().mean((2, 3)), None, (False, False, False)),
        (lambda m, y, x: torch.add(y, x, alpha=2).relu().mean((2, 3)), None, (False, False, False)),
        (lambda m, y, x: (y + x.mean()).relu().mean((2, 3)), None, (False, False, False)),
        (lambda m, y, x: (y + m.after(y)).relu().mean((2, 3)), None, (False, False, False)),
        (lambda m, y, x: (y + y).relu().mean((2, 3)), None, (False, False, False)),
        (lambda m, y, x: ((y + x).relu() + (y + m.other(x)).relu()).mean((2, 3)), None, (False, False, False)),
        (lambda m, y, x: (m.norm(y).relu() + m.bn2(y)).mean((2, 3)), nn.BatchNorm2d(3), (False, False, False)),
        (lambda m, y, x: m.norm(y).relu().mean((2, 3)), nn.BatchNorm2d(3, track_running_stats=False), (False,) * 3),
        (lambda m, y, x: m.norm(y).relu().mean((2, 3)), nn.GroupNorm(1, 3), (False, False, False)),
        (lambda m, y, x: (m.after(z := y + x) + z.relu()).mean((2, 3)), None, (False, True, False)),
        (lambda m, y, x: m.norm(y + x).relu().mean((2, 3)), nn.BatchNorm2d(3), (False, True, False)),
        (lambda m, y, x: m.bn2(m.norm(y)).relu().mean((2, 3)), nn.BatchNorm2d(3), (True, False, False)),
        (lambda m, y, x: m.norm(input=y).relu().mean((2, 3)), nn.BatchNorm2d(3), (True, False, True)),
    ],
)  # fmt: skip
def test_other_uses_of_an_output_are_not_taken_for_a_relu(
    then: Callable[[Any, Tensor, Tensor], Any], norm: nn.Module | None, expected: tuple[bool, bool, bool]
) -> None:
    assert flow(then, norm) == expected


def test_both_operands_of_a_sum_see_the_relu() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.side, self.bn_side = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.main(x))
            y += self.bn_side(self.side(x))
            return y.relu_().mean((2, 3))

    layers = calibrate(Block(), images()).layers
    assert [(x.consumer.norm, x.consumer.residual, x.consumer.rectified) for x in layers] == [
        ("bn", True, True),
        ("bn_side", True, True),
    ]


def test_outputs_are_recorded_before_the_networks_own_hooks() -> None:
    model, given = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), images()
    plain = calibrate(model, given)["0"]
    model[0].register_forward_hook(lambda module, args, output: 3 * output)
    hooked = calibrate(model, given)["0"]
    assert plain.consumer.rectified
    assert not hooked.consumer.rectified
    converted = apply(model, plan(model, calibrate(model, given), rank=9), given)
    torch.testing.assert_close(converted(given), model(given), rtol=1e-4, atol=1e-5)


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


def raises(message: str, kind: type[Exception] = SeparableError) -> Any:
    return pytest.raises(kind, match=message)


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
