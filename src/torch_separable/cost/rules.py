"""Counting rules: the multiply-accumulates of one call of an operator.

`RULES` maps an operator (an ``OpOverloadPacket`` such as ``torch.ops.aten.mm``) to a function of its arguments and its
result that returns the multiply-accumulates. Callers may add their own: ``RULES[torch.ops.mine.op] = rule``. An
operator without a rule is either free by convention (`is_free`) or listed in the summary as not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator

from torch_separable.cost.formulas import ConvSpec, attention_macs, matmul_macs

aten = torch.ops.aten
Rule = Callable[[tuple[Any, ...], dict[str, Any], Any], int]


def conv_of(args: tuple[Any, ...]) -> ConvSpec:
    """Return the shape of the convolution that ``aten.convolution`` was called with."""
    _, weight, bias, stride, padding, dilation, transposed, output_padding, groups = args[:9]
    kernel = tuple(weight.shape[2:])

    def each(values: list[int]) -> tuple[int, ...]:
        return tuple(values) if len(values) == len(kernel) else tuple(values) * len(kernel)

    channels = (weight.shape[0], weight.shape[1] * groups)
    in_channels, out_channels = channels if transposed else (weight.shape[1] * groups, weight.shape[0])
    return ConvSpec(
        in_channels,
        out_channels,
        kernel,
        stride=each(stride),
        padding=each(padding),
        dilation=each(dilation),
        groups=groups,
        bias=bias is not None,
        transposed=transposed,
        output_padding=each(output_padding) if transposed else (),
    )


def _convolution(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    inputs, weight, transposed = args[0], args[1], args[6]
    pixels = inputs if transposed else out
    return int(weight.numel() * math.prod(pixels.shape[2:]) * pixels.shape[0])


def _mm(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    a, b = args[0], args[1]
    return matmul_macs(a.shape[0], a.shape[1], b.shape[1])


def _addmm(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    return _mm(args[1:], kwargs, out)


def _bmm(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    a, b = args[0], args[1]
    return matmul_macs(a.shape[1], a.shape[2], b.shape[2], batch=a.shape[0])


def _baddbmm(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    return _bmm(args[1:], kwargs, out)


def _mv(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    return int(args[0].numel())


def _addmv(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    return int(args[1].numel())


def _linear(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    return int(out.numel() * args[1].shape[1])


def _matmul(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    return int(out.numel() * args[0].shape[-1])


def _bilinear(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    return int(out.numel() * (args[1].shape[-1] + args[0].shape[-1] * args[1].shape[-1]))


def _recurrent(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    # One layer in one direction over a sequence (steps, batch, features): each step applies both weights once.
    return int(math.prod(args[0].shape[:2]) * (args[1].numel() + args[2].numel()))


def _quantized_convolution(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    weight, _ = args[1].unpack()
    return int(weight.numel() * math.prod(out.shape[2:]) * out.shape[0])


def _quantized_linear(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> int:
    weight, _ = args[1].unpack()
    return int(out.numel() * weight.shape[1])


def _attention(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    return attention_macs(args[0].shape, args[1].shape, args[2].shape)


RULES: dict[Any, Rule] = {
    aten.convolution: _convolution,
    aten._convolution: _convolution,
    aten.mm: _mm,
    aten.addmm: _addmm,
    aten.addmm_: _addmm,
    aten._addmm_activation: _addmm,
    aten.bmm: _bmm,
    aten.baddbmm: _baddbmm,
    aten.baddbmm_: _baddbmm,
    aten.addbmm: _baddbmm,
    aten.addbmm_: _baddbmm,
    aten.mv: _mv,
    aten.addmv: _addmv,
    aten.addmv_: _addmv,
    aten.dot: _mv,
    aten.vdot: _mv,
    aten.linear: _linear,
    aten.matmul: _matmul,
    aten._trilinear: _bilinear,
    aten.mkldnn_rnn_layer: _recurrent,
    aten.scaled_dot_product_attention: _attention,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
    aten._scaled_dot_product_fused_attention_overrideable: _attention,
    aten._scaled_dot_product_attention_math_for_mps: _attention,
    torch.ops.higher_order.flex_attention: _attention,
}

# Operators of torch.ao's eager quantization; a PyTorch without a quantized engine may lack some.
for _name, _rule in {
    **dict.fromkeys(
        ("conv1d", "conv1d_relu", "conv2d", "conv2d_relu", "conv3d", "conv3d_relu"), _quantized_convolution
    ),
    **dict.fromkeys(("linear", "linear_relu", "linear_dynamic", "linear_relu_dynamic"), _quantized_linear),
}.items():
    if hasattr(torch.ops.quantized, _name):
        RULES[getattr(torch.ops.quantized, _name)] = _rule

# Free by convention, as in other FLOP counters: they add, compare, move, pool or normalize, and are bound by memory
# bandwidth. Elementwise operators and views are recognized by PyTorch's own tags instead.
_FREE = set(
    """
    adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d
    affine_grid_generator all allclose amax amin aminmax any arange argmax argmin as_strided_ _assert_async
    _assert_tensor_metadata avg_pool2d avg_pool3d batch_norm_elemt bernoulli bernoulli_ bincount block_diag bucketize
    cat channel_shuffle clone col2im constant_pad_nd copy copy_ count_nonzero cudnn_batch_norm cummax cummin cumprod
    cumsum dequantize detach diag_embed diagonal_copy embedding _embedding_bag _embedding_bag_forward_only empty
    empty_like empty_permuted empty_strided equal exponential_ eye fake_quantize_per_channel_affine_cachemask
    fake_quantize_per_tensor_affine_cachemask _fake_quantize_per_tensor_affine_cachemask_tensor_qparams fill fill_ flip
    fractional_max_pool2d fractional_max_pool3d full full_like _fused_rms_norm gather glu grid_sampler_2d
    grid_sampler_3d group_norm hardswish hardswish_ histc im2col index index_add index_add_ index_copy index_copy_
    index_fill index_fill_ index_put index_put_ index_reduce index_select _is_all_true is_pinned is_same_size isin
    kthvalue lift_fresh lift_fresh_copy linalg_cross linalg_vector_norm linspace _local_scalar_dense log_sigmoid_forward
    _log_softmax log_softmax logcumsumexp logspace logsumexp masked_fill masked_fill_ masked_scatter masked_scatter_
    masked_select max max_pool2d_with_indices max_pool3d_with_indices max_unpool2d max_unpool3d mean median min mode
    multinomial nanmedian nansum native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    native_channel_shuffle native_dropout native_group_norm native_layer_norm new_empty new_empty_strided new_full
    new_ones new_zeros nll_loss2d_forward nll_loss_forward nonzero norm normal_ ones ones_like _pack_padded_sequence
    _pad_packed_sequence pixel_shuffle pixel_unshuffle polar _prelu_kernel prod quantize_per_channel quantize_per_tensor
    quantize_per_tensor_dynamic rand rand_like randint randn randn_like random_ randperm reflection_pad1d
    reflection_pad2d reflection_pad3d renorm repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d _reshape_alias resize_ resize_as_ rms_norm roll rot90 rrelu_with_noise _safe_softmax scalar_tensor
    scatter scatter_ scatter_add scatter_add_ scatter_reduce searchsorted select_backward select_scatter set_
    slice_scatter _softmax softmax sort split_with_sizes_copy squeeze_ stack std std_mean sum t_ take _to_copy topk
    trace transpose_ tril tril_ tril_indices triu triu_ triu_indices unfold_copy uniform_ _unique2 unique_consecutive
    _unsafe_index unsafe_split unsafe_split_with_sizes _unsafe_view unsqueeze_ upsample_bicubic2d _upsample_bicubic2d_aa
    upsample_bilinear2d _upsample_bilinear2d_aa upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    upsample_trilinear3d var var_mean view_copy _weight_norm_interface zero_ zeros zeros_like
    """.split()
)


def is_free(func: Any) -> bool:
    """Whether an operator counts as zero multiply-accumulates by convention."""
    if isinstance(func, HigherOrderOperator):
        return False
    if func.namespace != "aten":
        return func.namespace in ("prim", "profiler")
    pointwise = torch.Tag.pointwise in func.tags
    return pointwise or func.is_view or func.overloadpacket.__name__ in _FREE
