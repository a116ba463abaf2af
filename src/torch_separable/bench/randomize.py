"""Batch norm statistics and scales for untrained networks, so that outputs of engines can be compared."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from torch_separable._network.copying import copied


def randomize_batch_norms(model: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """Return a copy whose batch norms have the statistics of ``images`` (N, C, H, W) and random scales near 1.

    With the usual initialization, activations of a deep network shrink from layer to layer until its outputs are the
    last bias for every image.

    Example:
        >>> from torch_separable.models import mobilenet_v1
        >>> images = torch.randn(16, 3, 64, 64)
        >>> outputs = randomize_batch_norms(mobilenet_v1(0.25), images)(images)
        >>> bool(outputs.std(0).mean() > 0.1)
        True
    """
    made = copied(model)
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.8, 1.2, generator=generator)
            norm.bias.normal_(std=0.1, generator=generator)
        if norms:
            update_bn([images], made)
        for layer in made.modules():  # the default initialization of classifiers gives outputs near 0
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(std=layer.in_features**-0.5, generator=generator)
    return made.eval()
