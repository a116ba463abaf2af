"""Operators called in ways that few networks call them: the result is PyTorch's, or they are refused in words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_separable.errors import SeparableError
from torch_separable.runtime import CompiledModel, compile


def assert_same(compiled: CompiledModel, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = model(x.clone())
    for _ in range(2):
        got = compiled(x)
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) <= 1e-5 * float(expected.abs().max().clamp_min(1e-3))


class Functional(nn.Module):
    """A network that is a function of an image and two convolutions."""

    def __init__(self, function: Callable[[Tensor, nn.Module, nn.Module], Tensor]) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.first, self.second)


def _residual_of_what_is_changed(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x)
    return second(nn.functional.relu(y, inplace=True)) + y


def _sum_in_place(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x)
    y += second(y)
    return second(y)


def _view_that_outlives_its_memory(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    view = first(x).transpose(2, 3)
    for _ in range(4):
        x = second(x)
    return view.softmax(1).transpose(2, 3) + x


def _piece_changed(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    upper, lower = first(x).chunk(2, 2)
    return second(upper.relu_()) + lower


def _pad_kept_from_what_is_changed(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x)
    padded = nn.functional.pad(y, (1, 0, 1, 0))
    skip = second(nn.functional.relu(y, inplace=True))
    return second(padded)[:, :, 1:, 1:] + skip


def _numbers_in_place(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x)
    y += 1
    y *= 0.5
    return second(nn.functional.elu(y, inplace=True))


def _normalised_within(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    return second(first((x - mean) / 0.5))


def _dropped_in_place(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = nn.functional.dropout(first(x), training=False, inplace=True)
    return second(nn.functional.dropout2d(y, training=False, inplace=True))


def _width_attention(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x[:1, :, :, :3])  # as wide as it has channels
    return second(y * torch.sigmoid(y.mean((1, 2))))


def _vectors_and_images_of_one_pixel(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = second(first(x))
    return y.mean((2, 3)) + nn.functional.adaptive_avg_pool2d(y, 1)


def _two_heads_of_copies(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x)
    heads = [nn.functional.dropout(y, training=False) for _ in range(2)]
    scaled = [nn.functional.interpolate(head, scale_factor=n + 2.0) for n, head in enumerate(heads)]
    return second(scaled[0]).mean((2, 3)) + scaled[1].mean((2, 3))


def _copy_of_the_input(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    return second(first(nn.functional.interpolate(x.clone(), scale_factor=2.0)))


def _autocast_within(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x)
    with torch.autocast("cpu", enabled=False):
        z = torch.sin(y) * 2
    return second(z)


def _padded_batch(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    return second(nn.functional.pad(first(x), (0, 0, 0, 0, 0, 0, 1, 0)))


@pytest.mark.parametrize(
    "function",
    [
        _residual_of_what_is_changed, _sum_in_place, _view_that_outlives_its_memory, _piece_changed, _padded_batch,
        _pad_kept_from_what_is_changed, _numbers_in_place, _normalised_within, _dropped_in_place, _width_attention,
        _vectors_and_images_of_one_pixel, _two_heads_of_copies, _copy_of_the_input, _autocast_within,
    ],
)  # fmt: skip
def test_a_function_of_convolutions_is_what_it_is_in_pytorch(function: Callable[..., Tensor]) -> None:
    model, x = Functional(function).eval(), torch.randn(2, 3, 8, 16)
    assert_same(compile(model, x), model, x)


def _part_changed(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x)
    y[:, :, ::2].relu_()
    return second(y)


def _view_of_what_is_changed(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x)
    view = y.flatten(1)
    return second(y.relu_()).flatten(1) + view


@pytest.mark.parametrize("function", [_part_changed, _view_of_what_is_changed])
def test_reading_a_view_after_an_in_place_change_is_refused(function: Callable[..., Tensor]) -> None:
    with pytest.raises(SeparableError, match=r"in place by aten.relu_.default, and then reads .*Leave inplace=True"):
        compile(Functional(function).eval(), torch.randn(2, 3, 8, 9))


def _written_out(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = torch.zeros_like(x)
    torch.add(first(x), x, out=y)
    return second(y)


def _changed_within_a_block(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x)
    with torch.autocast("cpu", enabled=False):
        y.add_(1)
    return second(y)


def test_in_place_change_of_an_outer_tensor_within_a_block_is_refused() -> None:
    with pytest.raises(SeparableError, match="changes a tensor in place within a block"):
        compile(Functional(_changed_within_a_block).eval(), torch.randn(2, 3, 8, 9))


def _changed_after_a_block(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x)
    with torch.autocast("cpu", enabled=False):
        same, twice = y.view_as(y), 2 * y
    same.add_(1)
    return second(y + twice)


def test_in_place_change_of_a_passed_through_tensor_is_refused() -> None:
    with pytest.raises(SeparableError, match=r"in place by aten.add_.Tensor, which a block .* has taken and returned"):
        compile(Functional(_changed_after_a_block).eval(), torch.randn(2, 3, 8, 9))


def _list_in_place(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    y = first(x)
    torch._foreach_add_([y], 1.0)
    return second(y)


@pytest.mark.parametrize(
    ("function", "operator"), [(_written_out, "add.out"), (_list_in_place, "_foreach_add_.Scalar")]
)
def test_writing_into_other_tensors_is_refused(function: Callable[..., Tensor], operator: str) -> None:
    with pytest.raises(SeparableError, match=f"writes into a tensor by aten.{operator}, which cannot be compiled"):
        compile(Functional(function).eval(), torch.randn(2, 3, 8, 9))


class Halves(nn.Module):
    """A separable layer of a multiplier, and what stands between its halves."""

    def __init__(self, between: nn.Module | None, channels: int, pointwise_first: bool, computed_bias: bool) -> None:
        super().__init__()
        many = 3 * channels
        halves = [nn.Conv2d(channels, many, 3, padding=1, groups=channels), nn.Conv2d(many, 5, 1)]
        if pointwise_first:
            halves = [nn.Conv2d(5, many, 1), nn.Conv2d(many, channels, 3, padding=1, groups=channels)]
        self.first, self.second = halves
        self.between, self.computed_bias = between, computed_bias

    def forward(self, x: Tensor) -> Tensor:
        bias = 2 * self.first.bias if self.computed_bias else self.first.bias  # type: ignore[operator]
        y = self.first._conv_forward(x, self.first.weight, bias)  # type: ignore[operator, arg-type]
        result: Tensor = self.second(y if self.between is None else self.between(y))
        return result


class Dropping(nn.Module):
    """Dropout of nothing, which PyTorch has to run all the same."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.0, training=True)


@pytest.mark.parametrize("pointwise_first", [False, True])
@pytest.mark.parametrize("channels", [8, 10])
@pytest.mark.parametrize("between", ["batch norm", "dropout", "computed bias"])
def test_separable_layers_with_fallbacks_inside(between: str, channels: int, pointwise_first: bool) -> None:
    norm = nn.BatchNorm2d(3 * channels, track_running_stats=False)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    layer = {"batch norm": norm, "dropout": Dropping()}.get(between)
    model = Halves(layer, channels, pointwise_first, between == "computed bias").eval()
    x = torch.randn(2, 5 if pointwise_first else channels, 7, 8)
    assert_same(compile(model, x), model, x)
