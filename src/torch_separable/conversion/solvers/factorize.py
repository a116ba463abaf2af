"""Closed-form factorisations of one dense convolution into a depthwise and a pointwise one: pure linear algebra.

A convolution with kernel ``W`` of shape (M, C, K), where ``K`` is the number of kernel taps, maps a patch ``x`` of
``C·K`` values to ``M`` outputs. Two factorisations replace ``W`` by a product:

* depthwise first, depth multiplier ``D``:  ``W[m, c, :] ≈ Σ_d P[m, c, d] · B[c, d, :]``
* pointwise first, rank ``D`` ("blueprint", BSConv, CVPR 2020):  ``W[m, c, :] ≈ Σ_d P[m, c, d] · B[m, d, :]``

With ``D = K`` both are exact. `decouple` minimises the error of the *weights* by one SVD for each channel ("network
decoupling", arXiv 1808.05517) and sees no data. `decouple_weighted` does the same in the metric of the data.
`torch_separable.conversion.solvers.alternating` starts from it and minimises the error of the layer's *output*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Order = Literal["depthwise_first", "pointwise_first"]

# Added to the diagonal of the second moments, as a share of their mean. It is far below the noise of a few hundred
# images, and enough where the moments are singular (dead channels, fewer patches than entries).
RIDGE = 1e-6


@dataclass(frozen=True)
class Moments:
    """What the fit of one layer (or one group of it) knows about its data, in float64.

    Attributes:
        patches: ``E[(x − μ)(x − μ)ᵀ]``, shape (C·K, C·K).
        cross: ``E[(t − τ)(x − μ)ᵀ]``, shape (M, C·K).
        patch_mean: ``μ``, shape (C·K,).
        target_mean: ``τ``, shape (M,).
        target_variance: ``E[(t − τ)²]`` of each output channel, shape (M,).
        count: number of sampled patches.
    """

    patches: Tensor
    cross: Tensor
    patch_mean: Tensor
    target_mean: Tensor
    target_variance: Tensor
    count: int


@dataclass(frozen=True)
class Factors:
    """The two kernels of a factorised convolution.

    Attributes:
        order: which of the two runs first.
        depthwise: ``B``, shape (C, D, K) depthwise first, (M, D, K) pointwise first.
        pointwise: ``P``, shape (M, C, D).
    """

    order: Order
    depthwise: Tensor
    pointwise: Tensor

    @property
    def rank(self) -> int:
        """The depth multiplier or rank ``D``."""
        return self.depthwise.shape[1]

    def truncated(self, rank: int) -> Factors:
        """Return the first ``rank`` terms: what `decouple` and `decouple_weighted` return for a lower rank."""
        return Factors(self.order, self.depthwise[:, :rank], self.pointwise[..., :rank])

    def kernel(self) -> Tensor:
        """Return the dense kernel that the product equals, shape (M, C, K)."""
        equation = "mcd,cdk->mck" if self.order == "depthwise_first" else "mcd,mdk->mck"
        return torch.einsum(equation, self.pointwise, self.depthwise)


def dense_moments(weight: Tensor, bias: Tensor | None, patches: Tensor, patch_mean: Tensor, count: int) -> Moments:
    """Return the moments of a layer whose target is its own dense output, ``t = W x + bias``.

    Args:
        weight: dense kernel, shape (M, C, K).
        bias: shape (M,) or ``None``.
        patches: centred second moments of the input patches, shape (C·K, C·K).
        patch_mean: shape (C·K,).
        count: number of patches.
    """
    flat = weight.double().flatten(1)
    cross = flat @ patches
    mean = flat @ patch_mean
    return Moments(
        patches=patches,
        cross=cross,
        patch_mean=patch_mean,
        target_mean=mean if bias is None else mean + bias.double(),
        target_variance=(cross * flat).sum(1),
        count=count,
    )


def decouple(weight: Tensor, order: Order, rank: int) -> Factors:
    """Factorise by the SVD of each channel's slice of the weights ("network decoupling", arXiv 1808.05517, eq. 4-6).

    Args:
        weight: dense kernel, shape (M, C, K).
        order: ``"depthwise_first"`` slices by input channel, ``"pointwise_first"`` by output channel.
        rank: ``D``, from 1 to K.

    Example:
        >>> weight = torch.randn(8, 4, 9, dtype=torch.float64)
        >>> torch.allclose(decouple(weight, "depthwise_first", 9).kernel(), weight)
        True
    """
    slices = _slices(weight.double(), order)
    left, values, right = torch.linalg.svd(slices, full_matrices=False)
    return _factors(order, left[..., :rank] * values[..., None, :rank], right[:, :rank], rank)


def decouple_weighted(weight: Tensor, patches: Tensor, order: Order, rank: int) -> Factors:
    """Factorise by SVD in the metric of the data, as far as a closed form exists.

    Depthwise first, the metric of a channel's slice is that channel's own block of the second moments. Pointwise first,
    the moments are approximated by the Kronecker product of their mean over taps and their mean over channels.

    Args:
        weight: dense kernel, shape (M, C, K).
        patches: second moments, shape (C·K, C·K).
        order: which factor runs first.
        rank: ``D``, from 1 to K.
    """
    _, channels, taps = weight.shape
    S = add_ridge(patches).view(channels, taps, channels, taps)
    slices = _slices(weight.double(), order)
    if order == "depthwise_first":
        over_taps = torch.linalg.cholesky(torch.einsum("cicj->cij", S))
        whitened = slices @ over_taps
    else:
        over_taps = torch.linalg.cholesky(torch.einsum("cicj->ij", S) / channels)
        over_channels = torch.linalg.cholesky(torch.einsum("ciei->ce", S) / taps)
        whitened = over_channels.T @ slices @ over_taps
    left, values, right = torch.linalg.svd(whitened, full_matrices=False)
    pointwise = left[..., :rank] * values[..., None, :rank]
    if order == "pointwise_first":
        outputs = len(pointwise)
        flat = pointwise.transpose(0, 1).reshape(channels, -1)  # one triangular system for all outputs together
        solved = torch.linalg.solve_triangular(over_channels.T, flat, upper=True)
        pointwise = solved.view(channels, outputs, -1).transpose(0, 1)
    depthwise = torch.linalg.solve_triangular(over_taps, right[:, :rank], upper=False, left=False)
    return _factors(order, pointwise, depthwise, rank)


def _slices(weight: Tensor, order: Order) -> Tensor:
    """Return the matrices whose low rank makes the factorisation: (C, M, K) depthwise first, else (M, C, K)."""
    return weight.transpose(0, 1) if order == "depthwise_first" else weight


def _factors(order: Order, pointwise: Tensor, depthwise: Tensor, rank: int) -> Factors:
    """Pad to ``rank``, as a slice has no more singular values than rows, and bring ``P`` into shape (M, C, D)."""
    missing = rank - depthwise.shape[1]
    if missing > 0:
        pointwise = torch.nn.functional.pad(pointwise, (0, missing))
        depthwise = torch.nn.functional.pad(depthwise, (0, 0, 0, missing))
    if order == "depthwise_first":
        pointwise = pointwise.transpose(0, 1)
    return Factors(order, depthwise.contiguous(), pointwise.contiguous())


def add_ridge(patches: Tensor) -> Tensor:
    """Return second moments with `RIDGE` added to the diagonal, which makes them positive definite."""
    ridged = patches.double().clone()
    ridged.diagonal().add_(ridge_of(patches))
    return ridged


def ridge_of(patches: Tensor) -> float:
    """Return what `add_ridge` adds to each diagonal entry."""
    return RIDGE * (float(patches.diagonal().mean()) or 1.0)


def output_error(kernel: Tensor, moments: Moments, weights: Tensor | None = None) -> float:
    """Return the share of the target's variance that ``kernel`` (M, C, K), with its best bias, leaves unexplained."""
    flat = kernel.flatten(1)
    squared = moments.target_variance - 2 * (flat * moments.cross).sum(1) + ((flat @ moments.patches) * flat).sum(1)
    variance = moments.target_variance
    if weights is not None:
        squared, variance = squared * weights, variance * weights
    return float((squared.sum() / variance.sum().clamp_min(1e-300)).clamp_min(0))


def best_bias(kernel: Tensor, moments: Moments) -> Tensor:
    """Return the bias (M,) with which ``kernel`` (M, C, K) matches the mean of the target."""
    return moments.target_mean - kernel.flatten(1) @ moments.patch_mean
