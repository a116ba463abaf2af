"""Write small network files for the fuzzer to damage: every kind of operation on floats, and int8.

python native/standalone/fuzz/seeds.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_separable as ts


class Operators(nn.Module):
    """Convolutions of all forms, norms, attention, resampling, pooling, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, 2, 1)
        self.separable = ts.nn.DepthwiseSeparableConv2d(24, 24, 3, padding=1)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=4)
        self.filtered = nn.Conv2d(24, 24, 5, padding=2, groups=24)
        self.norm, self.layer_norm = nn.GroupNorm(3, 24), nn.LayerNorm(24)
        self.up = nn.ConvTranspose2d(48, 16, 2, 2)
        self.excite = nn.Conv2d(24, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to images."""
        x = F.gelu(self.first(x))
        x = self.filtered(self.separable(x)) + x
        x = x * torch.sigmoid(self.excite(x.mean((2, 3), keepdim=True)))
        y = self.norm(F.max_pool2d(self.grouped(x), 3, 1, 1))
        z = self.layer_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        tokens = z.flatten(2).transpose(1, 2)
        tokens = torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens
        z = z + tokens.transpose(1, 2).reshape(z.shape)
        both = torch.cat([y, F.avg_pool2d(z, 3, 1, 1)], 1)
        return F.interpolate(torch.tanh(self.up(both)), scale_factor=0.5, mode="bilinear")


def main(folder: Path) -> None:
    """Write the files, for each of the instruction sets that the library has here."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 12, 12)
    for dtype in (torch.float32, torch.bfloat16):
        compiled = ts.compile(Operators().eval(), image, threads=1, dtype=dtype)
        compiled.save(folder / f"operators-{compiled.kernels.precision}.tsn", threads=1)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), ts.nn.DepthwiseSeparableConv2d(16, 24, 3, padding=1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10)).eval()
    quantized = ts.quantize(model, torch.randn(8, 3, 12, 12)).model
    ts.compile(quantized, image, threads=1).save(folder / "int8.tsn", threads=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
