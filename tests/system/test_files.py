"""Files are replaced whole or not at all, and nothing that is read is executed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_separable._network.weights_file import load_weights, read_weights, save_weights
from torch_separable._system.files import read_json, remove_leftovers, replacing, write_json, write_text
from torch_separable.errors import SeparableError

# Writes the file again and again, `a` and `b` in turn; or stops in the middle of it.
WRITER = """
import sys, time
from torch_separable._system.files import replacing
path, how = sys.argv[1:]
for letter in "ab" * 100_000:
    with replacing(path) as aside:
        with aside.open("w") as file:
            file.write(letter * 500_000)
            file.flush()
            print("writing", flush=True)
            if how == "halfway":
                time.sleep(60)
            file.write(letter * 500_000)
"""


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_when_the_block_ends_with_the_permissions_that_it_would_have(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with replacing(path) as aside:
        aside.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    plain = tmp_path / "plain.txt"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_symbolic_link_and_permissions_are_kept(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "a.txt", tmp_path / "a.txt"
    real.parent.mkdir()
    real.write_text("before")
    real.chmod(0o640)
    link.symlink_to(real)
    with replacing(link) as aside:
        aside.write_text("after")
    assert link.is_symlink()
    assert real.read_text() == "after"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert names_in(tmp_path) == ["a.txt", "real"]


@pytest.mark.parametrize("name", ["a.onnx", "a[1].onnx", "*"])
def test_leftovers_of_one_file_are_removed_and_no_others(tmp_path: Path, name: str) -> None:
    for owner in (name, "b.onnx"):
        (tmp_path / f".{owner}.abcd1234.part").touch()
    remove_leftovers(tmp_path, name)
    assert names_in(tmp_path) == [".b.onnx.abcd1234.part"]
    remove_leftovers(tmp_path)
    assert names_in(tmp_path) == []


def test_a_state_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    class Noting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

    with pytest.raises(SeparableError, match=r"0\._extra_state .* is a dict"):
        save_weights(nn.Sequential(Noting(2, 2)), tmp_path / "w.safetensors")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_interrupted_block_leaves_only_the_existing_file(tmp_path: Path, exception: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def interrupted() -> None:
        with replacing(path) as aside:
            aside.write_text("half")
            raise exception

    with pytest.raises(exception):
        interrupted()
    assert path.read_text() == "before"
    assert names_in(tmp_path) == ["a.txt"]


def writer(path: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), how], stdout=subprocess.PIPE, text=True)


def killed(process: subprocess.Popen[str]) -> int:
    process.kill()
    process.communicate()
    return process.returncode


def test_killed_writer_leaves_the_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    process = writer(path, "halfway")
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert killed(process) == -signal.SIGKILL
    assert path.read_text() == "before"


def test_reader_sees_whole_files_while_one_is_written_and_after_the_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    process = writer(path, "on and on")
    seen: set[str] = set()
    deadline = time.monotonic() + 60
    while len(seen) < 2 and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            seen.add(path.read_text())
    assert killed(process) == -signal.SIGKILL
    assert seen == {"a" * 1_000_000, "b" * 1_000_000}
    assert path.read_text() in seen


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes: what a full disk does, for one process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 1_000_000),
        lambda path: save_weights({"a": torch.zeros(1_000_000)}, path),
    ],
    ids=["text", "weights"],
)
def test_full_disk_leaves_existing_weights(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("before")
    with files_of_at_most(100_000), pytest.raises(SeparableError, match=r"cannot write .*a\.safetensors: .*File too"):
        write(path)
    assert path.read_text() == "before"
    assert names_in(tmp_path) == ["a.safetensors"]


def test_unwritable_paths_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for place in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt", tmp_path / "folder"):
        with pytest.raises(SeparableError, match=f"cannot write {place}: .*choose another folder"):
            write_text(place, "text")
    assert (tmp_path / "file").read_text() == "before"
    assert names_in(tmp_path) == ["file", "folder"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates are how Python shows a file's name that is not UTF-8.
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(document=JSON_VALUES)
def test_json_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, document: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "document.json"
    write_json(path, document)
    assert read_json(path, "a document") == document


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_invalid_json_is_not_written(tmp_path: Path, number: float) -> None:
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", [number])
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, None])
def test_error_of_invalid_json_names_its_purpose(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SeparableError, match=r"plan\.json") as refused:
        read_json(path, "a plan")
    assert "a plan" in str(refused.value)
    with pytest.raises(SeparableError, match="directory"):
        read_json(tmp_path, "a plan")


def saved(model: Any, name: str, folder: Path) -> Path:
    """Save in the form that the suffix names: safetensors, today's zip (.pth) or the pickle of old (.th)."""
    path = folder / name
    if path.suffix == ".safetensors":
        save_weights(model, path)
    else:
        state = model.state_dict() if isinstance(model, nn.Module) else model
        torch.save(state, path, _use_new_zipfile_serialization=path.suffix != ".th")
    return path


def assert_same(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(given) == list(expected) or sorted(given) == sorted(expected)
    for name, tensor in expected.items():
        assert given[name].dtype == tensor.dtype
        assert torch.equal(given[name], tensor), name


FORMATS = ["a.safetensors", "a.pth", "a.th"]


@pytest.mark.parametrize("name", FORMATS)
def test_weights_come_back_as_they_were_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    model = small_network()
    path = saved(model, name, tmp_path)
    assert_same(read_weights(path), model.state_dict())
    assert_same(read_weights(path.rename(tmp_path / "weights.bin")), model.state_dict())
    other = small_network()
    load_weights(other, tmp_path / "weights.bin")
    assert_same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.bool])
def test_every_type_of_number_can_be_stored_and_loaded(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Module()
    model.register_buffer("a", torch.tensor([0, 1, 1]).to(dtype))
    save_weights(model, tmp_path / "a.safetensors")
    load_weights(model, tmp_path / "a.safetensors")
    assert read_weights(tmp_path / "a.safetensors")["a"].tolist() == torch.tensor([0, 1, 1]).to(dtype).tolist()


def test_tied_and_transposed_weights_are_stored_by_every_name(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).view(2, 3)
    save_weights({"a": tensor, "b": tensor, "t": tensor.T, "row": tensor[1]}, tmp_path / "a.safetensors")
    assert_same(
        read_weights(tmp_path / "a.safetensors"),
        {"a": tensor, "b": tensor, "t": tensor.T.contiguous(), "row": tensor[1]},
    )


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_checkpoints_of_training_scripts_are_unwrapped(tmp_path: Path, wrapper: str) -> None:
    state = {f"module.{name}": tensor for name, tensor in small_network().state_dict().items()}
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, wrapper: state, "best": 91.7}, tmp_path / "a.pth")
    load_weights(small_network(), tmp_path / "a.pth")
    assert_same(read_weights(tmp_path / "a.pth"), state)  # `load_weights` finds the prefix


def test_prefix_stays_where_only_some_names_have_it(tmp_path: Path) -> None:
    save_weights({"module.a": torch.ones(1), "head": torch.ones(1)}, tmp_path / "a.safetensors")
    assert sorted(read_weights(tmp_path / "a.safetensors")) == ["head", "module.a"]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["pickle", "torch.save", "torch.save of old", "wrapped", "named safetensors"])
def test_pickled_code_is_not_executed(tmp_path: Path, form: str) -> None:
    ran = tmp_path / "ran"
    payload: Any = {"a": torch.zeros(2), "b": Payload(ran)}
    path = tmp_path / ("a.safetensors" if form == "named safetensors" else "a.pth")
    if form == "pickle":
        path.write_bytes(pickle.dumps(Payload(ran), protocol=2))
    else:
        state = {"state_dict": payload} if form == "wrapped" else payload
        torch.save(state, path, _use_new_zipfile_serialization=form != "torch.save of old")
    with pytest.raises(SeparableError, match=r"a pickle that could run code .* is refused\. Save `model\.state_dict"):
        read_weights(path)
    assert not ran.exists()
    with contextlib.suppress(Exception):  # a bare pickle runs, and is then found to be no checkpoint
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert ran.exists(), "the code in the file works where it is allowed to run"


def test_pickled_modules_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(SeparableError, match="a pickle that could run code"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_weights_are_refused(tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    path = saved(small_network(), name, tmp_path)
    whole = path.read_bytes()
    for length in {0, 1, 8, 9, 20, len(whole) // 3, len(whole) // 2, len(whole) - 100, len(whole) - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(SeparableError, match=rf"{path}.*(whole|damaged)"):
            read_weights(path)
    assert not recwarn.list


def png() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + bytes(100)


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("notes.txt", "no weights here")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"import torch\n", png(), archive(), b"{}", b"\x80\x02", bytes(1000)])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_other_files_are_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SeparableError, match=rf"{tmp_path / name} is (not a whole|damaged, or is no)"):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {"a": torch.ones(1), "b": "text"}, torch.ones(3)])
def test_torch_files_without_weights_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(SeparableError, match=r"holds no weights: expected tensors by name"):
        read_weights(tmp_path / "a.pth")


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SeparableError, match=r"no weights at .*gone\.pth: no such file"):
        read_weights(tmp_path / "gone.pth")
    with pytest.raises(SeparableError, match="it is a folder"):
        read_weights(tmp_path)


@given(data=st.data())
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    heads = [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x10" + bytes(7) + b"{"]
    path = folder / "bytes.pth"
    path.write_bytes(data.draw(st.sampled_from(heads)) + data.draw(st.binary(max_size=200)))
    with contextlib.suppress(SeparableError):
        read_weights(path)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_weights_with_wrong_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    path = saved({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, name, tmp_path_factory.getbasetemp())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(min_size=1, max_size=3))
    path.write_bytes(content)
    with contextlib.suppress(SeparableError):
        assert all(isinstance(tensor, Tensor) for tensor in read_weights(path).values())


def refused(model: nn.Module, path: Path) -> str:
    """Load, expecting a refusal that leaves the model as it was; return the message."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SeparableError) as error:
        load_weights(model, path)
    assert_same(model.state_dict(), before)
    return str(error.value)


def test_weights_of_another_network_are_refused_with_names_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 2)), path)
    message = refused(small_network(), path)
    assert "are not the weights of this network (Sequential): 1 of another shape" in message
    assert "2.weight is (2, 5), should be (2, 4)" in message

    state = small_network().state_dict()
    del state["0.bias"]
    save_weights({**state, "head.weight": torch.ones(1)}, path)
    assert "1 missing (0.bias), 1 unknown (head.weight)" in refused(small_network(), path)

    save_weights({f"layer{i}": torch.ones(1) for i in range(50)}, path)
    message = refused(small_network(), path)
    assert "8 missing (0.weight, 0.bias, 1.weight, …), 50 unknown (layer0, layer1, layer10, …)" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, value: float) -> None:
    state = small_network().state_dict()
    state[name].view(-1)[0] = value
    save_weights(state, tmp_path / "a.safetensors")
    assert f"holds NaN or infinite weights ({name})" in refused(small_network(), tmp_path / "a.safetensors")


def test_counters_of_batch_norms_may_be_absent_as_in_old_checkpoints(tmp_path: Path) -> None:
    model, other = small_network(), small_network()
    other[1].num_batches_tracked.fill_(7)  # type: ignore[index]
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_weights(state, tmp_path / "a.safetensors")
    load_weights(other, tmp_path / "a.safetensors")
    assert torch.equal(other.state_dict()["0.weight"], model.state_dict()["0.weight"])
    assert other.state_dict()["1.num_batches_tracked"] == 7
