"""`calibrate` finds the batch norm, residual sum and ReLU that read a convolution's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration_cases import images, small
from torch_separable.conversion import apply, calibrate, plan


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


class ConvWithConsumers(nn.Module):
    """A convolution whose output ``then`` takes on."""

    def __init__(self, then: Callable[[nn.Module, Tensor, Tensor], Any], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 3, 3, padding=1), norm, nn.Conv2d(3, 3, 1)
        self.bn2, self.after = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        self.then = then

    def forward(self, x: Tensor) -> Any:
        return self.then(self, self.conv(x), x)


def consumer_of(then: Callable[[Any, Tensor, Tensor], Any], norm: nn.Module | None = None) -> tuple[bool, bool, bool]:
    found = calibrate(ConvWithConsumers(then, norm), images())["conv"].consumer
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
    assert consumer_of(lambda m, y, x: after(m, relu(y))) == (False, False, True)
    assert consumer_of(lambda m, y, x: after(m, add(y, x))) == (False, True, False)
    assert consumer_of(lambda m, y, x: after(m, relu(m.norm(y))), norm) == (True, False, True)
    assert consumer_of(lambda m, y, x: after(m, relu(add(m.norm(y), x))), norm) == (True, True, True)
    assert consumer_of(lambda m, y, x: after(m, add(relu(y), x))) == (False, False, True)


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
    assert consumer_of(then, norm) == expected


def test_relu_after_a_sum_is_found_for_both_operands() -> None:
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
