"""The authors' blueprint separable convolutions (package bsconv) and ours with the same weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from torch_separable.nn import DepthwiseSeparableConv2d, PointwiseConv2d

bsconv = pytest.importorskip(
    "bsconv.pytorch", reason="bsconv does not import beside this PyTorch", exc_type=ImportError
)

windows = st.fixed_dictionaries(
    {
        "kernel_size": st.sampled_from((1, 3, 5, (3, 1))),
        "stride": st.integers(1, 3),
        "padding": st.sampled_from((0, 1, (2, 0))),
        "dilation": st.integers(1, 2),
        "bias": st.booleans(),
        "padding_mode": st.sampled_from(("zeros", "reflect", "circular")),
    }
)


def blueprint(c: int, m: int, with_bn: bool, window: dict[str, Any], eps: float = 1e-5) -> DepthwiseSeparableConv2d:
    """What BSConv-U is in our words."""
    norm = partial(nn.BatchNorm2d, eps=eps) if with_bn else None
    return DepthwiseSeparableConv2d(
        c, m, **window, order="pointwise_first", bias_between=False, norm_layer=norm, norm_after=False
    )


def copied(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> nn.Module:
    """Weights copied by name: theirs, ours."""
    state = {}
    for key, tensor in theirs.state_dict().items():
        module, _, leaf = key.rpartition(".")
        state[f"{names[module]}.{leaf}"] = tensor
    ours.load_state_dict(state)
    return ours.eval()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(window=windows, c=st.integers(1, 5), m=st.integers(1, 5), with_bn=st.booleans())
def test_bsconv_u_is_the_pointwise_first_block(
    window: dict[str, Any], c: int, m: int, with_bn: bool, trained: Any
) -> None:
    theirs = trained(bsconv.BSConvU(c, m, **window, with_bn=with_bn, bn_kwargs={"eps": 1e-3}))
    ours = copied(blueprint(c, m, with_bn, window, 1e-3), theirs, {"pw": "conv_pw", "bn": "bn1", "dw": "conv_dw"})
    x = torch.randn(2, c, 11, 12)
    torch.testing.assert_close(ours(x), theirs(x))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    window=windows,
    c=st.integers(1, 12),
    m=st.integers(1, 6),
    p=st.sampled_from((0.1, 0.25, 0.5)),
    with_bn=st.booleans(),
)
def test_bsconv_s_is_a_pointwise_convolution_before_it(
    window: dict[str, Any], c: int, m: int, p: float, with_bn: bool, trained: Any
) -> None:
    theirs = trained(bsconv.BSConvS(c, m, **window, p=p, with_bn=with_bn))
    inner = theirs.pw1.out_channels
    reduction: list[nn.Module] = [PointwiseConv2d(c, inner, bias=False)]
    if with_bn:
        reduction.append(nn.BatchNorm2d(inner))
    ours = nn.Sequential(*reduction, blueprint(inner, m, with_bn, window))
    last = len(reduction)
    names = {
        "pw1": "0", "bn1": "1", "pw2": f"{last}.conv_pw", "bn2": f"{last}.bn1", "dw": f"{last}.conv_dw",
    }  # fmt: skip
    copied(ours, theirs, names)
    x = torch.randn(2, c, 11, 12)
    torch.testing.assert_close(ours(x), theirs(x))
