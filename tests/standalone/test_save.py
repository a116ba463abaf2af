"""Compiled files: what they hold, that they compute the same bits, and what is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable import export, quantize
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.exporting import NativeOptions
from torch_separable.nn import DepthwiseSeparableConv2d
from torch_separable.runtime import Details, compile, instruction_sets
from torch_separable.runtime.saving.container import fletcher64
from torch_separable.runtime.saving.reader import run_file


def section(path: Path, name: str) -> bytes:
    """Read a section as docs/native-format.md describes it."""
    content = path.read_bytes()
    (count,) = struct.unpack_from("<I", content, 24)
    for i in range(count):
        found, offset, size, checksum = struct.unpack_from("<8sQQQ", content, 64 + 32 * i)
        if found.rstrip(b"\0").decode() == name:
            assert offset % 64 == 0
            assert fletcher64(content[offset : offset + size]) == checksum
            return content[offset : offset + size]
    raise AssertionError(f"{path} has no section {name}")


def test_checksums_are_those_of_the_definition() -> None:
    content = torch.randint(0, 256, (5_000_003,), dtype=torch.uint8).numpy().tobytes()
    low = high = 0
    for (word,) in struct.iter_unpack("<I", content[:40_000]):
        low = (low + word) % (2**32 - 1)
        high = (high + low) % (2**32 - 1)
    assert fletcher64(content[:40_000]) == high << 32 | low
    flipped = bytearray(content)
    flipped[4_900_000] ^= 1
    assert fletcher64(bytes(flipped)) != fletcher64(content)
    assert fletcher64(b"abcde") == fletcher64(b"abcde\0\0\0")


def test_the_header_is_as_documented(saved: Path) -> None:
    header = saved.read_bytes()[:64]
    assert header[:8] == b"\x89TSN\r\n\x1a\n"
    assert struct.unpack_from("<IHHQ", header, 8) == (0x01020304, 1, 0, saved.stat().st_size)
    assert struct.unpack_from("<Q", header, 40) == (fletcher64(header[:40]),)


def test_the_metadata_say_what_the_network_is(saved: Path) -> None:
    about = json.loads(section(saved, "metadata"))
    assert (about["name"], about["license"], about["precision"]) == ("small", "MIT", "float32")
    assert about["input"] == {"name": "images", "layout": "NCHW", "type": "float32", "shape": [1, 3, 32, 32]}
    assert about["outputs"] == [{"name": "output", "layout": "NC", "type": "float32", "shape": [1, 10]}]
    assert about["preparation"] == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    assert about["classes"][9] == "class 9"
    assert [(plan["batch"], plan["threads"]) for plan in about["plans"]] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert about["parity"]["difference"] < 1e-4 * max(1, about["parity"]["largest"])
    assert about["parity"]["largest"] > 1e-3
    assert about["written_by"]["torch"] == torch.__version__


def test_schedules_share_their_weights(saved: Path, network: nn.Module, tmp_path: Path) -> None:
    one = compile(network, torch.zeros(1, 3, 32, 32), threads=1).save(tmp_path / "one.tsn", threads=1)
    assert len(section(saved, "weights")) < 1.5 * len(section(one.path, "weights"))


class ManyOperators(nn.Module):
    """Attention, groups, concatenation, resampling, norms, softmax, broadcasts, pooling, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, 2, 1)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=4)
        self.norm, self.layer_norm = nn.GroupNorm(3, 24), nn.LayerNorm(24)
        self.up = nn.ConvTranspose2d(48, 16, 2, 2)
        self.scale = nn.Parameter(torch.rand(1, 16, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.gelu(self.first(x))
        y = self.norm(F.max_pool2d(self.grouped(x), 3, 1, 1))
        z = self.layer_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        both = torch.cat([y, F.avg_pool2d(z, 3, 1, 1)], 1)
        image = torch.tanh(self.up(both) * self.scale)
        small = F.interpolate(image, scale_factor=0.5, mode="bilinear")
        tokens = z.flatten(2).transpose(1, 2)
        weights = torch.softmax(tokens @ tokens.transpose(1, 2) * 0.2, -1)
        return {
            "attention": weights @ tokens,
            "image": image,
            "shares": torch.softmax(small.flatten(2).transpose(1, 2), -1),
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_operators_keep_their_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    compiled = compile(ManyOperators().eval(), torch.zeros(2, 3, 20, 28), threads=1, dtype=dtype)
    file = compiled.save(tmp_path / "net.tsn", targets=list(instruction_sets()))
    x = torch.randn(2, 3, 20, 28)
    for name in instruction_sets(dtype):
        attention, image, shares = run_file(file.path, x, name, 1)
        assert image.shape == (2, 16, 20, 28)
        assert shares.shape == (2, 140, 16)
        if name == compiled.kernels.name:
            expected = compiled(x)
            assert torch.equal(attention, expected["attention"])
            assert torch.equal(image, expected["image"])
            assert torch.equal(shares, expected["shares"])
    names = [output["name"] for output in json.loads(section(file.path, "metadata"))["outputs"]]
    assert names == ["attention", "image", "shares"]
    assert file.parity.difference < (1e-4 if dtype == torch.float32 else 0.1)


def test_int8_networks_keep_their_bits(network: nn.Module, tmp_path: Path) -> None:
    model = quantize(nn.Sequential(*network.children()), torch.randn(16, 3, 32, 32)).model
    compiled = compile(model, torch.zeros(1, 3, 32, 32), threads=1)
    path = compiled.save(tmp_path / "net.tsn").path
    assert b"int8_convolution\0" in section(path, "texts")
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(run_file(path, x, compiled.kernels.name, 1)[0], compiled(x))


def test_batches_that_run_depth_first_keep_their_bits(tmp_path: Path) -> None:
    layers = nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), DepthwiseSeparableConv2d(64, 64, 3, padding=1)
    compiled = compile(nn.Sequential(*layers).eval(), torch.zeros(2, 3, 160, 160), threads=2)
    assert compiled._prepared(torch.zeros(2, 3, 160, 160)).plan.steps[0].task_lists is not None
    path = compiled.save(tmp_path / "net.tsn", threads=2).path
    x = torch.randn(2, 3, 160, 160)
    for threads in (1, 2):
        assert torch.equal(run_file(path, x, compiled.kernels.name, threads)[0], compiled(x))


def test_a_network_that_needs_pytorch_is_refused_by_name(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return torch.cdist(tokens, tokens)

    compiled = compile(nn.Sequential(nn.Conv2d(3, 8, 3), Attention()).eval(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(SeparableError, match=r"needs PyTorch for .*cdist"):
        compiled.save(tmp_path / "net.tsn")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved_is_said_in_words(network: nn.Module, tmp_path: Path) -> None:
    compiled = compile(network, torch.zeros(1, 3, 32, 32), threads=1)
    with pytest.raises(SeparableValueError, match=r"targets: sse is none of .*avx2"):
        compiled.save(tmp_path / "net.tsn", targets=["sse"])
    with pytest.raises(SeparableError, match="can run none of them"):
        compiled.save(tmp_path / "net.tsn", targets=["neon"])
    with pytest.raises(SeparableValueError, match="batch=0"):
        compiled.save(tmp_path / "net.tsn", batch=0)
    with pytest.raises(SeparableValueError, match="mean has 2 values"):
        compiled.save(tmp_path / "net.tsn", details=Details(mean=(0.1, 0.2)))
    with pytest.raises(SeparableError, match="is a folder"):
        compiled.save(tmp_path)


def test_export_writes_a_native_file(network: nn.Module, tmp_path: Path) -> None:
    options = NativeOptions(threads=1, details=Details("exported"))
    exported = export(network, tmp_path / "net.tsn", input_shape=(3, 32, 32), batch=(1, 2), native=options)
    assert (exported.format, exported.batch, exported.operators["Convolution"]) == ("native", (1, 2), 4)
    assert "(1|2)x3x32x32" in str(exported)
    assert json.loads(section(exported.path, "metadata"))["name"] == "exported"
    with pytest.raises(SeparableValueError, match="native files are compiled for one size"):
        export(network, tmp_path / "net.tsn", input_shape=(3, 32, 32), dynamic_size=True)
    with pytest.raises(SeparableValueError, match="native="):
        export(network, tmp_path / "net.pt2", input_shape=(3, 32, 32), native=options)
