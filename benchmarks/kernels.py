"""Time the kernels by shape, against the peak that the same thread reaches in the same seconds.

Run as ``make bench-kernels``, or ``python benchmarks/kernels.py --dtype bfloat16``. Each line is one operation on one
thread: its median time, the multiply-adds a second that it reaches, and their share of the peak, which is measured
right before the shape. A dense kernel skips rows of padding, so a small image can pass 100 %.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import torch_separable as ts
from torch_separable.runtime.native.instruction_sets import chosen_set


def gemm(c_in: int, c_out: int, pixels: int) -> tuple[str, nn.Module, torch.Tensor, int]:
    """A pointwise convolution: pixels x c_in times c_in x c_out."""
    side = max(1, round(pixels**0.5))
    macs = side * side * c_in * c_out
    return (
        f"gemm {side * side}x{c_in}x{c_out}",
        _wrapped(nn.Conv2d(c_in, c_out, 1)),
        torch.randn(1, c_in, side, side),
        macs,
    )


def dense(channels: int, side: int, kernel: int) -> tuple[str, nn.Module, torch.Tensor, int]:
    """A dense convolution, whose input is read as rows."""
    layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
    macs = side * side * channels * channels * kernel * kernel
    return (
        f"dense {kernel}x{kernel} {channels} at {side}x{side}",
        _wrapped(layer),
        torch.randn(1, channels, side, side),
        macs,
    )


def depthwise(channels: int, side: int, kernel: int, stride: int = 1) -> tuple[str, nn.Module, torch.Tensor, int]:
    """A depthwise convolution by itself."""
    layer = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels)
    macs = (side // stride) ** 2 * channels * kernel * kernel
    name = f"depthwise {kernel}x{kernel}/{stride} {channels} at {side}x{side}"
    return name, _wrapped(layer), torch.randn(1, channels, side, side), macs


def separable(c_in: int, c_out: int, side: int, kernel: int = 3) -> tuple[str, nn.Module, torch.Tensor, int]:
    """A depthwise and a pointwise convolution, fused into tiles."""
    depth = nn.Conv2d(c_in, c_in, kernel, padding=kernel // 2, groups=c_in)
    layer = nn.Sequential(depth, nn.ReLU(), nn.Conv2d(c_in, c_out, 1))
    macs = side * side * c_in * (kernel * kernel + c_out)
    return f"fused {kernel}x{kernel} {c_in}>{c_out} at {side}x{side}", layer, torch.randn(1, c_in, side, side), macs


def _wrapped(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.ReLU())


# The pairs around K = 64 straddle kSmallDepth; 24 and 40 outputs have a paired tail; 512 and 1,024 inputs need a
# conflict-free stride; the depthwise shapes need one chunk of channels, or several.
SHAPES = (
    lambda: gemm(32, 64, 112 * 112), lambda: gemm(64, 64, 56 * 56), lambda: gemm(96, 64, 56 * 56),
    lambda: gemm(96, 24, 56 * 56), lambda: gemm(144, 40, 28 * 28), lambda: gemm(512, 512, 14 * 14),
    lambda: gemm(1024, 1024, 7 * 7), lambda: dense(64, 56, 3), lambda: dense(256, 14, 3),
    lambda: depthwise(32, 112, 3), lambda: depthwise(128, 56, 3), lambda: depthwise(128, 56, 3, 2),
    lambda: depthwise(512, 14, 3), lambda: depthwise(240, 28, 5), lambda: depthwise(960, 7, 5),
    lambda: separable(32, 64, 112), lambda: separable(128, 128, 56), lambda: separable(512, 512, 14),
)  # fmt: skip


def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only", default="", metavar="TEXT", help="shapes whose line contains TEXT")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    kernels = chosen_set(dtype)
    torch.manual_seed(0)
    print(f"{kernels.name} {arguments.dtype}, one thread")
    print(f"{'operation':<34}{'ms':>9}{'GMAC/s':>9}{'of peak':>9}")
    for make in SHAPES:
        name, layer, image, macs = make()
        if arguments.only not in name:
            continue
        compiled = ts.compile(layer.eval(), image, threads=1, dtype=dtype)
        breakdown = compiled.explain()
        milliseconds = sum(node.milliseconds for node in breakdown.nodes if node.flops)
        gflops = 2 * macs / milliseconds / 1e6
        share = gflops / breakdown.peak.gflops
        print(f"{name:<34}{milliseconds:>9.3f}{gflops / 2:>9.1f}{share:>9.0%}", flush=True)


if __name__ == "__main__":
    main()
