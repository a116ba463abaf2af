"""`calibrate` measures moments and costs of each layer within its memory limit, and changes nothing."""

from __future__ import annotations

import copy
from typing import Any
from weakref import finalize

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from calibration_cases import assert_same, images, small
from torch_separable.conversion import apply, calibrate, plan
from torch_separable.conversion.calibration.moments import layer_moments
from torch_separable.conversion.convolutions import patches_of
from torch_separable.cost import analyze


def inputs_of(model: nn.Module, name: str, given: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    with torch.no_grad():
        model.eval()(given)
    handle.remove()
    return torch.cat(seen)


def test_moments_equal_those_of_all_patches_if_none_are_left_out() -> None:
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


def test_shared_layer_is_one_layer() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(shared, nn.ReLU()), shared)
    layers = calibrate(model, images()).layers
    assert [(layer.name, layer.calls) for layer in layers] == [("0", 1), ("1.0", 2)]


def test_costs_are_per_image_if_an_image_is_split() -> None:
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
    unlimited, limited = calibrate(model, given), calibrate(model, given, memory=2**18)
    assert all(layer.moments is not None for layer in unlimited.layers)
    assert [layer.moments is None for layer in limited.layers] == [True] * 4
    for layer in unlimited.layers:
        conv: Any = model.get_submodule(layer.name)
        pairs = (layer_moments(model, conv, statistics, layer.name) for statistics in (unlimited, limited))
        for one, other in zip(*pairs, strict=True):
            for name in ("patches", "cross", "patch_mean", "target_mean", "target_variance"):
                torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)
    chosen = plan(model, unlimited, rank=2)
    assert plan(model, limited, rank=2) == chosen
    assert_same(apply(model, chosen, unlimited), apply(model, chosen, limited))


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
