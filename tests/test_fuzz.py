"""Files that are not what they should be, of every format: a message and no crash, nothing run, memory bounded.

Weights and folders of networks have tests like these beside them, in test_files.py and test_saving.py.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import resource
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from torch_separable import convert
from torch_separable._network.weights_file import load_weights
from torch_separable.conversion import Plan
from torch_separable.conversion.apply_plan import build_skeleton
from torch_separable.data import load_data
from torch_separable.data.readers import _decode
from torch_separable.distillation.checkpoint import Checkpoint
from torch_separable.distillation.training_log import keep_records, read_records
from torch_separable.errors import SeparableError
from torch_separable.models import CifarResNet
from torch_separable.report import build_page, read_run

MARKUP = "<i>markup</i>"
VALUES = st.sampled_from(
    [
        None, True, 0, -1, 2**70, 10**400, 1e308, float("nan"), float("inf"), "", "x" * 300, "ü\u202e\0", MARKUP, [],
        {}, [[]], [1, "a"], {"a": {}}, "1,2",
    ]
)  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@st.composite
def spoilt_bytes(draw: st.DrawFn, wholes: list[bytes]) -> bytes:
    """A whole file with a few bytes changed, taken out or put in, and perhaps its end cut off."""
    content = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, len(content)))
        content[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from places(value, (*path, key))


@st.composite
def spoilt_document(draw: st.DrawFn, whole: Any) -> Any:
    """A document with some values replaced by others or left out."""
    document = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([path for path in places(document) if path]))
        parent = document
        for key in way:
            parent = parent[key]
        if draw(st.booleans()):
            parent[last] = copy.deepcopy(draw(VALUES))
        else:
            del parent[last]
        if not document:
            break
    return document


def converted() -> tuple[nn.Module, Plan, dict[str, Any]]:
    torch.manual_seed(0)
    dense = CifarResNet(1, in_channels=1)
    result = convert(dense, torch.rand(32, 1, 16, 16), rank=2, method="svd", progress=False)
    return dense, result.plan, result.report.to_dict()


with warnings.catch_warnings(action="ignore"):
    DENSE, PLAN, REPORT = converted()


@settings(max_examples=150)
@given(document=spoilt_document(PLAN.to_dict()))
def test_plan_is_read_shown_and_applied_or_refused(document: Any) -> None:
    with contextlib.suppress(SeparableError):
        plan = Plan.from_dict(document)
        assert str(plan)
        json.dumps(plan.to_dict())
        build_skeleton(DENSE, plan)


def step(name: str) -> dict[str, Any]:
    return {"name": name, "accuracy": 0.9, "correct": 405, "count": 450, "loss": 0.1, "macs": 1000, "parameters": 10}


RESULTS = {
    "kind": "convert",
    "title": "A network",
    "conversion": REPORT,
    "data": {"calibration": 32, "test": 450, "split": "test"},
    "steps": [step("dense"), step("converted")],
    "milliseconds": {"dense": 2.0, "separable": 1.0, "images": 8, "runs": 20, "threads": 1},
    "layers": [{"name": "layer1.0.conv1", "macs": [100, 50], "parameters": [100, 50], "milliseconds": [1.0, 0.5]}],
}


@settings(max_examples=25)
@given(results=spoilt_document(RESULTS), log=st.lists(VALUES | st.just({"kind": "epoch", "step": 1}), max_size=4))
def test_results_give_a_page_that_lists_missing_sections(folder: Path, results: Any, log: list[Any]) -> None:
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "plan.json").write_text(json.dumps(PLAN.to_dict()))
    (folder / "config.json").write_text("{}")
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    with contextlib.suppress(SeparableError):
        assert MARKUP not in build_page(read_run(folder)).html


LOG = b'{"kind": "step", "step": 1, "loss": 0.5}\n{"kind": "epoch", "step": 2}\n{"kind": "step", "st'


@given(content=spoilt_bytes([LOG]))
def test_log_is_read_to_its_incomplete_line_or_the_damaged_line_is_named(folder: Path, content: bytes) -> None:
    path = folder / "run.jsonl"
    path.write_bytes(content)
    try:
        records = read_records(path)
    except SeparableError as error:
        assert f"of {path} is damaged: remove the line" in str(error)  # noqa: PT017 - the other way is fine, too
    else:
        keep_records(path, 1)
        assert read_records(path) == [record for record in records if record["step"] <= 1]


def checkpoint(folder: Path) -> bytes:
    path = folder / "whole.safetensors"
    Checkpoint({"a": 1}, {"step": 7}, {"student": {"w": torch.ones(3)}}).save(path)
    return path.read_bytes()


@given(data=st.data())
def test_checkpoint_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    path = folder / "checkpoint.safetensors"
    path.write_bytes(data.draw(spoilt_bytes([checkpoint(folder)])))
    with contextlib.suppress(SeparableError):
        Checkpoint.load(path).check({"a": 1}, path)


def archives() -> list[bytes]:
    random = np.random.default_rng(0)
    contents: list[dict[str, Any]] = [
        {"images": random.integers(0, 255, (5, 6, 6, 3), dtype=np.uint8), "labels": np.arange(5) % 2},
        {
            "images": random.random((5, 6, 7), dtype=np.float32),
            "labels": np.arange(5),
            "classes": np.array(list("abcde")),
        },
    ]
    wholes = []
    for write in (np.savez, np.savez_compressed):
        for arrays in contents:
            buffer = io.BytesIO()
            write(buffer, **arrays)
            wholes.append(buffer.getvalue())
    return wholes


@settings(max_examples=200)
@given(content=spoilt_bytes(archives()))
def test_archive_is_read_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "images.npz"
    path.write_bytes(content)
    with contextlib.suppress(SeparableError):
        load_data(f"npz:{path}", "train")


@contextlib.contextmanager
def memory_of_at_most(size: int) -> Iterator[None]:
    """More than is in use already; what asks for more gets a MemoryError."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc on this system")
@pytest.mark.parametrize("shape", [(10**6, 10**6, 3), (2**40, 2, 2, 3), (10**5, 10**3, 10**3, 3), (2**62, 2**62, 3)])
def test_archive_that_declares_huge_arrays_allocates_no_memory(tmp_path: Path, shape: tuple[int, ...]) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(100))
    with (
        memory_of_at_most(2**30),
        pytest.raises(SeparableError, match=r"a\.npz (declares arrays larger|holds an array)"),
    ):
        load_data(f"npz:{tmp_path / 'a.npz'}", "train")


def pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 10, 3), dtype=np.uint8)
    wholes = []
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA", "DDS", "ICO"):
        for mode in ("RGB", "L"):
            buffer = io.BytesIO()
            with contextlib.suppress(OSError):  # a format that lacks the mode
                Image.fromarray(pixels).convert(mode).save(buffer, form)
                wholes.append(buffer.getvalue())
    return wholes


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300)
@given(content=spoilt_bytes(pictures()), skip=st.booleans())
def test_image_is_decoded_skipped_or_refused(content: bytes, skip: bool) -> None:
    whole = io.BytesIO()
    Image.new("RGB", (4, 4)).save(whole, "PNG")
    encoded = [{"bytes": content, "path": "first.png"}, {"bytes": whole.getvalue(), "path": "second.png"}]
    try:
        decoded, kept = _decode(encoded, "here", None, skip_broken=skip)
    except SeparableError as error:
        assert not skip
        assert str(error).startswith("first.png in here cannot be decoded: ")  # noqa: PT017
    else:
        assert kept in ([0, 1], [1])
        assert kept == [0, 1] or skip
        assert decoded[-1].shape == (4, 4, 3)


SPECIAL: dict[str, Callable[[], Tensor]] = {
    "sparse": lambda: torch.ones(3, 4).to_sparse(),
    "compressed": lambda: torch.ones(3, 4).to_sparse_csr(),
    "without values": lambda: torch.empty(3, 4, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(4)] * 3),
    "complex": lambda: torch.ones(3, 4, dtype=torch.complex64),
    "beyond float32": lambda: torch.full((3, 4), 1e300, dtype=torch.float64),
    "far larger than the file": lambda: torch.ones(1).expand(10**9, 10**6),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SPECIAL)
def test_tensors_that_are_not_weights_are_refused(tmp_path: Path, kind: str) -> None:
    torch.save({"weight": SPECIAL[kind](), "bias": torch.ones(3)}, tmp_path / "a.pth")
    network = nn.Linear(4, 3)
    before = network.weight.detach().clone()
    with pytest.raises(SeparableError, match=r"a\.pth (holds (sparse|NaN|complex)|are not the weights)"):
        load_weights(network, tmp_path / "a.pth")
    assert torch.equal(network.weight, before)
