"""Saves two networks in turn over each other for ever; the tests of `save` kill it. Arguments: the folder."""

from __future__ import annotations

import sys

import torch

from torch_separable import load, save
from torch_separable.models import CifarResNet


def network(bias: float) -> CifarResNet:
    """A network all of whose logits are ``bias``."""
    model = CifarResNet(1, num_classes=3)
    with torch.no_grad():
        model.linear.weight.zero_()
        model.linear.bias.fill_(bias)
    return model


if __name__ == "__main__":
    folder = sys.argv[1]
    networks = {bias: network(bias) for bias in (1.0, 2.0)}
    while True:
        for bias, model in networks.items():
            save(model, folder, results={"bias": bias})
            print(bias, flush=True)
            assert float(load(folder).linear.bias[0].detach()) == bias  # type: ignore[union-attr, operator, index]
