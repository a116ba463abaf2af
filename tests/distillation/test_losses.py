from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_separable.distillation.losses import feature_distance, logits_divergence, matched_features, watching
from torch_separable.errors import SeparableError


@given(st.floats(0.5, 20))
def test_divergence_is_the_sum_of_the_definition(temperature: float) -> None:
    student, teacher = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum(1)
    torch.testing.assert_close(
        logits_divergence(student, teacher, temperature).double(), expected, rtol=1e-3, atol=1e-5
    )


def test_divergence_of_maps_is_averaged_over_positions() -> None:
    student, teacher = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    pixels = [logits_divergence(student[..., y, x], teacher[..., y, x], 1.0) for y in range(3) for x in range(4)]
    torch.testing.assert_close(logits_divergence(student, teacher, 1.0), torch.stack(pixels).mean(0))


def test_divergence_is_zero_only_for_equal_classes_and_its_gradient_leads_there() -> None:
    teacher = torch.randn(4, 6)
    student = torch.randn(4, 6, requires_grad=True)
    assert float(logits_divergence(teacher + 3, teacher, 2.0).abs().max()) < 1e-5
    for _ in range(200):
        loss = logits_divergence(student, teacher, 2.0).sum()
        (gradient,) = torch.autograd.grad(loss, student)
        with torch.no_grad():
            student -= gradient
    torch.testing.assert_close(student.detach().softmax(1), teacher.softmax(1), atol=1e-3, rtol=0)


def test_feature_distance_is_relative_to_the_teacher() -> None:
    teacher = [torch.randn(3, 4, 5, 5), 100 * torch.randn(3, 8)]
    assert feature_distance(teacher, teacher).tolist() == [0, 0, 0]
    torch.testing.assert_close(feature_distance([torch.zeros_like(t) for t in teacher], teacher), torch.ones(3))
    torch.testing.assert_close(
        feature_distance([1.1 * t for t in teacher], teacher), torch.full((3,), 0.01), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_the_feature_distance_is_that_of_its_definition(layout: torch.memory_format) -> None:
    teacher = torch.randn(3, 4, 5, 6).contiguous(memory_format=layout)
    weight = torch.rand(3)
    ours = torch.randn(3, 4, 5, 6).contiguous(memory_format=layout).requires_grad_()
    plain = ours.detach().clone().requires_grad_()
    (feature_distance([ours, ours[:, 0]], [teacher, teacher[:, 0]]) * weight).sum().backward()
    parts = [
        (plain - teacher).square().sum((1, 2, 3)) / teacher.square().sum((1, 2, 3)),
        (plain - teacher)[:, 0].square().sum((1, 2)) / teacher[:, 0].square().sum((1, 2)),
    ]
    (torch.stack(parts).mean(0) * weight).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_equal_features_have_no_gradient() -> None:
    teacher = torch.randn(2, 3, 4, 4)
    ours = teacher.clone().requires_grad_()
    feature_distance([ours], [teacher]).sum().backward()
    assert ours.grad is not None
    assert ours.grad.eq(0).all()


def dense() -> nn.Module:
    inner = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 4, 3), inner, nn.Flatten(), nn.Linear(64, 2))


def converted() -> nn.Module:
    model = dense()
    model[1][0] = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1))
    return model


def test_converted_modules_are_found_by_name_and_type() -> None:
    assert matched_features(converted(), dense(), None) == ("1.0",)
    assert matched_features(converted(), dense(), ("3", "0")) == ("3", "0")
    with pytest.raises(SeparableError, match=r"'1\.0\.1'.* teacher"):
        matched_features(converted(), dense(), ("1.0.1",))
    with pytest.raises(SeparableError, match="feature_weight"):
        matched_features(dense(), dense(), None)


def test_only_the_outermost_of_nested_conversions_is_compared() -> None:
    class Block(nn.Sequential):
        pass

    student = converted()
    student[1] = Block(*student[1])
    assert matched_features(student, dense(), None) == ("1",)


def test_watching_gives_the_outputs_and_leaves_no_hook() -> None:
    model, images = dense(), torch.randn(2, 3, 8, 8)
    with watching(model, ("0", "1.0")) as seen:
        model(images)
        assert torch.equal(seen["1.0"], model[1][0](model[0](images)))
    assert not any(module._forward_hooks for module in model.modules())


def test_modules_without_a_tensor_cannot_be_watched() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    model = nn.Sequential(Pair())
    with watching(model, ("0",)), pytest.raises(SeparableError, match="module '0' returns tuple, not a tensor"):
        model(torch.zeros(1))
