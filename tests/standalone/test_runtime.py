"""``separable_runtime`` and the C interface: the bits of ts.compile without PyTorch, bad input, threads, forks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from torch_separable.runtime import compile
from torch_separable.runtime.saving.container import MAGIC, fletcher64

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "native"


@pytest.fixture(scope="module")
def runtime(environment: dict[str, str]) -> Any:
    """The package ``separable_runtime``."""
    sys.path.insert(0, environment["PYTHONPATH"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEPARABLE_LIBRARY", environment["SEPARABLE_LIBRARY"])
        import separable_runtime

        separable_runtime.library.load()
        yield separable_runtime
    sys.path.remove(environment["PYTHONPATH"])


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((11, 3, 32, 32), np.float32)


@pytest.fixture(scope="module")
def expected(network: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ts.compile returns for the images, in the batch sizes of the file."""
    compiled = compile(network, torch.zeros(4, 3, 32, 32), threads=1)
    batches = torch.from_numpy(images).split((4, 4, 1, 1, 1))
    return torch.cat([compiled(batch) for batch in batches]).numpy()


@pytest.fixture(scope="module")
def numpy_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with NumPy and nothing else."""
    folder = tmp_path_factory.mktemp("numpy_only")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    installed = Path(np.__file__).parent
    (packages / "numpy").symlink_to(installed)
    if (installed.parent / "numpy.libs").exists():
        (packages / "numpy.libs").symlink_to(installed.parent / "numpy.libs")
    return folder / "bin" / "python"


def test_without_pytorch_the_bits_are_those_of_compile(
    numpy_only: Path, environment: dict[str, str], saved: Path, tmp_path: Path,
    images: NDArray[np.float32], expected: NDArray[np.float32],
) -> None:  # fmt: skip
    np.save(tmp_path / "images.npy", images)
    program = f"""
import importlib.util, numpy as np
assert importlib.util.find_spec("torch") is None
from separable_runtime import Network
images = np.load({str(tmp_path / "images.npy")!r})
np.save({str(tmp_path / "got.npy")!r}, Network({str(saved)!r}, threads=2)(images))
"""
    subprocess.run([numpy_only, "-c", program], env=environment, check=True)
    assert np.array_equal(np.load(tmp_path / "got.npy"), expected)


def test_arrays_of_any_layout_and_strides_give_the_same(
    runtime: Any, saved: Path, images: NDArray[np.float32], expected: NDArray[np.float32]
) -> None:
    network = runtime.Network(saved, threads=1)
    nhwc = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    assert np.array_equal(network(nhwc, layout="NHWC"), expected)
    assert np.array_equal(network(images[::-1])[-1], network(images[:1])[0])
    assert np.array_equal(network(np.flip(np.flip(images, 3).copy(), 3)), expected)
    assert np.array_equal(network(torch.from_numpy(images)), expected)  # DLPack
    assert np.array_equal(network(memoryview(images)), expected)  # the buffer protocol
    packed = np.zeros(11, np.dtype([("flag", "u1"), ("image", "<f4", (3, 32, 32))]))  # misaligned by one byte
    packed["image"] = images
    assert np.array_equal(network(packed["image"]), expected)
    out = np.zeros((11, 20), np.float32)
    assert network(images, out=out[:, ::2]) is not None
    assert np.array_equal(out[:, ::2], expected)
    assert not out[:, 1::2].any()
    assert network(images[:0]).shape == (0, 10)


def test_what_the_file_says_can_be_read(runtime: Any, saved: Path) -> None:
    network = runtime.Network(saved)
    assert network.input.shape == (3, 32, 32)
    assert [(o.name, o.layout, o.shape) for o in network.outputs] == [("output", "NC", (10,))]
    assert network.classes[:2] == ("class 0", "class 1")
    assert {(plan.batch, plan.threads) for plan in network.plans} == {(1, 1), (1, 2), (4, 1), (4, 2)}
    photograph = np.full((32, 32, 3), 255, np.uint8)
    assert np.allclose(network.prepare(photograph)[0, :, 0, 0], [0.5 / 0.2, 0.6 / 0.3, 0.7 / 0.4])


def test_many_threads_share_a_network(
    runtime: Any, saved: Path, images: NDArray[np.float32], expected: NDArray[np.float32]
) -> None:
    network = runtime.Network(saved, threads=3)
    wrong: list[int] = []

    def work(number: int) -> None:
        wrong.extend(number for _ in range(20) if not np.array_equal(network(images), expected))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_child_of_a_fork_starts_threads_of_its_own(
    numpy_only: Path, environment: dict[str, str], saved: Path
) -> None:
    program = f"""
import os, numpy as np
from separable_runtime import Network
network = Network({str(saved)!r}, threads=2)
x = np.ones((1, 3, 32, 32), np.float32)
before = network(x)
child = os.fork()
if not child:
    os._exit(0 if np.array_equal(network(x), before) else 1)
assert os.waitpid(child, 0)[1] == 0
network.close()
try:
    network(x)
except Exception as error:
    assert "is closed" in str(error), error
"""
    subprocess.run([numpy_only, "-c", program], env=environment, check=True, timeout=60)


def damaged(path: Path, to: Path, change: Callable[[bytearray], object], *, mend: bool = False) -> Path:
    """Write a file with a change, and optionally with a header whose checksum is right again."""
    content = bytearray(path.read_bytes())
    change(content)
    if mend:
        content[40:48] = fletcher64(bytes(content[:40])).to_bytes(8, "little")
    to.write_bytes(content)
    return to


def flip(at: int) -> Callable[[bytearray], object]:
    return lambda content: content.__setitem__(at, content[at] ^ 1)


@pytest.mark.parametrize(
    ("change", "mend", "status", "message"),
    [
        (lambda c: c.__delitem__(slice(40, None)), False, 2, "too short"),
        (lambda c: c.__delitem__(slice(-64, None)), False, 2, "truncated"),
        (lambda c: c.extend(b"more"), False, 2, "appended"),
        (flip(0), False, 2, "not a compiled network"),
        (lambda c: c.__setitem__(slice(8, 12), c[11:7:-1]), True, 2, "not little-endian"),
        (lambda c: c.__setitem__(12, 2), True, 3, "format 2.0 and this library reads up to 1.0: update"),
        (lambda c: c.__setitem__(14, 9), True, 3, "format 1.9 and this library reads up to 1.0: update"),
        (flip(41), False, 2, "checksum of the header"),
        (flip(70), False, 2, "checksum of the section table"),
        (flip(-1), False, 2, 'checksum of the section "weights"'),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else None,
)
def test_a_damaged_file_is_refused_in_words(
    runtime: Any,
    saved: Path,
    tmp_path: Path,
    change: Callable[[bytearray], object],
    mend: bool,
    status: int,
    message: str,
) -> None:
    path = damaged(saved, tmp_path / "damaged.tsn", change, mend=mend)
    with pytest.raises(runtime.NetworkError, match=message) as caught:
        runtime.Network(path)
    assert caught.value.status == status


def test_what_does_not_fit_is_refused_in_words(runtime: Any, saved: Path, tmp_path: Path) -> None:
    network, error = runtime.Network(saved, threads=1), runtime.NetworkError
    with pytest.raises(error, match=r"shape \(1, 3, 8, 8\): expected \(N, 3, 32, 32\)"):
        network(np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(error, match="float64: convert"):
        network(np.zeros((1, 3, 32, 32)))
    with pytest.raises(error, match="layout='CHW'"):
        network(np.zeros((1, 3, 32, 32), np.float32), layout="CHW")
    with pytest.raises(error, match="out: output must be a writeable float32"):
        network(np.zeros((1, 3, 32, 32), np.float32), out=np.zeros((1, 9), np.float32))
    with pytest.raises(error, match="must be one of"):
        runtime.Network(saved, instruction_set="neon")
    with pytest.raises(error, match="must be 1 to 4096"):
        runtime.Network(saved, threads=0)
    with pytest.raises(error, match="cannot be opened") as missing:
        runtime.Network(tmp_path / "none.tsn")
    assert missing.value.status == 1
    with pytest.raises(error, match="not a regular file"):
        runtime.Network(tmp_path)
    assert np.isnan(network(np.full((1, 3, 32, 32), np.nan, np.float32))).all()


def compiled_program(source: Path, environment: dict[str, str], folder: Path) -> Path:
    """Compile an example against the library."""
    name, standard = ("cc", "c11") if source.suffix == ".c" else ("c++", "c++17")
    compiler = shutil.which(name)
    if compiler is None:
        pytest.skip(f"{name} is not installed")
    library, program = environment["SEPARABLE_LIBRARY"], folder / source.stem
    flags = ["-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-std={standard}", "-pthread"]
    header = ROOT / "native" / "standalone"
    subprocess.run([compiler, *flags, f"-I{header}", source, library, "-lm", "-o", program], check=True)
    return program


def test_the_examples_in_c_and_python_name_the_same_classes(
    runtime: Any, environment: dict[str, str], numpy_only: Path, saved: Path, tmp_path: Path
) -> None:
    photograph = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    (tmp_path / "photograph.ppm").write_bytes(b"P6\n32 32\n255\n" + photograph.tobytes())
    np.save(tmp_path / "photograph.npy", photograph)
    program = compiled_program(EXAMPLES / "classify.c", environment, tmp_path)
    in_c = subprocess.check_output([program, saved, tmp_path / "photograph.ppm"], text=True)
    command = [numpy_only, EXAMPLES / "classify.py", saved, tmp_path / "photograph.npy"]
    in_python = subprocess.check_output(command, text=True, env=environment)
    assert in_c.splitlines() == in_python.splitlines()
    assert len(in_c.splitlines()) == 5
    scores = runtime.Network(saved)(runtime.Network(saved).prepare(photograph))[0]
    assert in_c.splitlines()[0].endswith(f"class {scores.argmax()}")
    refused = subprocess.run([program, tmp_path / "photograph.ppm", "x"], capture_output=True, text=True, check=False)
    assert (refused.returncode, "not a compiled network" in refused.stderr) == (1, True)


def test_the_example_in_cpp_gives_every_thread_the_same_sum(
    runtime: Any, environment: dict[str, str], saved: Path, tmp_path: Path
) -> None:
    program = compiled_program(EXAMPLES / "shared.cpp", environment, tmp_path)
    sums = subprocess.check_output([program, saved, "4"], text=True).split()
    scores = runtime.Network(saved)(np.full((1, 3, 32, 32), 0.5, np.float32))
    assert len(sums) == 4
    assert [float(each) for each in sums] == pytest.approx([float(scores.sum(dtype=np.float64))] * 4, rel=1e-6)


def test_the_service_answers_and_refuses(
    runtime: Any, environment: dict[str, str], numpy_only: Path, saved: Path
) -> None:
    import urllib.error
    import urllib.request

    command = [numpy_only, EXAMPLES / "service.py", saved, "--port", "0", "--workers", "2"]
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as service:
        try:
            assert service.stdout is not None
            url = service.stdout.readline().split(",")[0]
            photograph = np.random.default_rng(2).integers(0, 256, (32, 32, 3), np.uint8)
            network = runtime.Network(saved)
            best = int(network(network.prepare(photograph))[0].argmax())
            for _ in range(4):
                with urllib.request.urlopen(url, photograph.tobytes(), timeout=20) as response:
                    assert json.load(response)["name"] == f"class {best}"
            with pytest.raises(urllib.error.HTTPError, match="400") as refused:
                urllib.request.urlopen(url, b"short", timeout=20)
            assert "expected 3072 bytes" in refused.value.read().decode()
            load = [sys.executable, EXAMPLES / "load.py", url, "--shape", "32,32,3", "--seconds", "1"]
            assert "requests a second" in subprocess.check_output(load, text=True)
        finally:
            service.terminate()


def test_damaged_values_never_end_the_process(environment: dict[str, str], saved: Path, tmp_path: Path) -> None:
    """The harness repairs checksums, so damage reaches the checks of operations; see native/standalone/fuzz."""
    program = compiled_program(ROOT / "native" / "standalone" / "fuzz" / "fuzz.cpp", environment, tmp_path)
    seed = str(os.getpid())
    done = subprocess.run(
        [program, "6", seed, saved], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    files, ran = (int(part.split()[0]) for part in done.stdout.split(",")[:2])
    assert files > 500
    assert 0 < ran < files


def test_the_signature_is_the_readers(saved: Path) -> None:
    assert saved.read_bytes().startswith(MAGIC)
