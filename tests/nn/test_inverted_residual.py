"""The inverted residual against plain layers in a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torch_separable as ts
from torch_separable.nn import InvertedResidual


@settings(max_examples=100)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from((1, 3, 5, (3, 1), [1, 5])),
    st.sampled_from((1, 1, 2, (1, 2), 3)),
    st.sampled_from((1, 2, 6)),
    st.sampled_from((1, 2, (2, 1))),
    st.sampled_from((nn.BatchNorm2d, None, lambda channels: nn.GroupNorm(1, channels))),
    st.sampled_from((nn.ReLU6, nn.SiLU, None)),
    st.booleans(),
)
def test_block_is_a_composition_of_plain_layers(
    c: int, m: int, kernel: Any, stride: Any, ratio: int, dilation: Any, norm: Any, act: Any, training: bool
) -> None:
    block = InvertedResidual(c, m, kernel, stride, ratio, dilation, norm, act, dtype=torch.float64).train(training)

    def pair(value: Any) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else (value[0], value[1])

    inner, bias = c * ratio, norm is None
    padding = tuple(d * (k // 2) for k, d in zip(pair(kernel), pair(dilation), strict=True))

    def stage(conv: nn.Module, channels: int, last: bool = False) -> list[nn.Module]:
        return [conv, *([norm(channels)] if norm else []), *([act()] if act and not last else [])]

    layers = [
        *(stage(nn.Conv2d(c, inner, 1, bias=bias), inner) if ratio > 1 else []),
        *stage(
            nn.Conv2d(inner, inner, pair(kernel), stride, padding, dilation, groups=inner, bias=bias),  # type: ignore[arg-type]
            inner,
        ),
        *stage(nn.Conv2d(inner, m, 1, bias=bias), m, last=True),
    ]
    plain = nn.Sequential(*layers).double().train(training)
    plain.load_state_dict(dict(zip(plain.state_dict(), block.state_dict().values(), strict=True)))
    x = torch.randn(2, c, 7, 6, dtype=torch.float64)
    added = c == m and pair(stride) == (1, 1)
    assert block.has_residual == added
    torch.testing.assert_close(block(x), plain(x) + x if added else plain(x))


def test_children_carry_the_names_of_timm() -> None:
    assert [name for name, _ in InvertedResidual(8, 8).named_children()] == [
        *("conv_pw", "bn1", "act1"),
        *("conv_dw", "bn2", "act2"),
        *("conv_pwl", "bn3"),
    ]
    assert [name for name, _ in InvertedResidual(8, 8, expand_ratio=1).named_children()] == [
        *("conv_dw", "bn2", "act2"),
        *("conv_pwl", "bn3"),
    ]


def test_one_layer_may_have_two_names() -> None:
    act = nn.Sigmoid()
    block = InvertedResidual(4, 6, norm_layer=None, act_layer=lambda: act)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), block.conv_pwl(act(block.conv_dw(act(block.conv_pw(x))))))


@pytest.mark.parametrize(("h", "w", "c", "t", "m", "k"), [(14, 10, 24, 6, 32, 3), (7, 7, 16, 4, 16, 5)])
def test_block_costs_what_the_paper_says(h: int, w: int, c: int, t: int, m: int, k: int) -> None:
    # Section 3.3 of arXiv 1801.04381: h·w·d'·t(d' + k² + d'').
    block = InvertedResidual(c, m, k, expand_ratio=t, device="meta")
    assert ts.analyze(block, torch.zeros(1, c, h, w, device="meta")).macs == h * w * c * t * (c + k * k + m)
