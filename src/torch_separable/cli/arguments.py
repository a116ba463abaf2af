"""Options that several commands share, and the parsing of their values."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeAlias

import typer

from torch_separable.errors import SeparableValueError

if TYPE_CHECKING:
    from torch_separable.conversion import Budget
    from torch_separable.data import ImageData

Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        help="package.module:function that returns the network, timm:NAME, torchvision:NAME, or a built-in name: "
        "resnet20, mobilenet_v1, ..."
    ),
]
ModelArgs: TypeAlias = Annotated[
    list[str] | None, typer.Option("--model-arg", metavar="K=V", help="Argument of the function; repeatable.")
]
DenseModel: TypeAlias = Annotated[
    str | None, typer.Option("--model", help="The dense network, if the folder names one that is not built in.")
]
InputSize: TypeAlias = Annotated[
    str | None, typer.Option("--input", help="Shape of one image, as 3,224,224; by default that of the folder.")
]
Weights: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Weights: .safetensors, or .pth with tensors only (no code is unpickled). Built-in networks also accept "
        "the names of timm, torchvision, transformers and EfficientNet-Lite."
    ),
]
Ema: TypeAlias = Annotated[
    bool, typer.Option("--ema", help="Load the averaged (EMA) weights of a checkpoint that holds both.")
]
Data: TypeAlias = Annotated[str, typer.Option(help="Images: digits, npz:PATH, folder:PATH or hf:NAME.")]
Mean: TypeAlias = Annotated[
    str | None, typer.Option(help="Subtracted from each channel, as .485,.456,.406; or imagenet.")
]
Std: TypeAlias = Annotated[
    str | None, typer.Option(help="Each channel is divided by it, as .229,.224,.225; or imagenet.")
]
ImageSize: TypeAlias = Annotated[int | None, typer.Option(help="Size in pixels to resize and crop images to.")]
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]

_answers: ContextVar[TextIO] = ContextVar("_answers")


def _keep_for_programs(wanted: bool) -> bool:
    """Redirect standard output to standard error, except for `print_json` and `print_text`.

    The code of a network may print, too, and would break the document.
    """
    if wanted:
        _answers.set(sys.stdout)
        sys.stdout = sys.stderr  # cli.main restores it when the command ends
    return wanted


Csv: TypeAlias = Annotated[
    bool, typer.Option("--csv", callback=_keep_for_programs, help="Print the rows as comma-separated values.")
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", callback=_keep_for_programs, help="Print one JSON document and nothing else.")
]


def output_path(text: str | Path) -> Path:
    """Parse the path of an output, which must not be empty; typer also passes the default."""
    if not str(text).strip():
        raise typer.BadParameter("the path is empty")
    return Path(text)


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """Parse ``3,224,224`` or ``3x224x224``; each number is at least 1."""
    parts = text.replace("x", ",").split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise SeparableValueError(
            f"{name} {text or 'is empty'}: must be integers of at least 1, separated by commas, as 3,224,224"
        )
    return tuple(int(part) for part in parts)


def image_shape(text: str | None, own: tuple[int, ...] | None) -> tuple[int, ...]:
    """Parse ``--input``, which defaults to the shape stored in a folder."""
    shape = own if text is None else whole_numbers("--input", text)
    if shape is None or len(shape) != 3:
        if shape is None:
            raise SeparableValueError("--input is missing: give the shape of one image, as 3,224,224")
        raise SeparableValueError(f"--input {text}: has {len(shape)} numbers, but an image has three, as 3,224,224")
    return shape


def channel_values(name: str, text: str | None) -> tuple[float, ...] | None:
    """Parse ``.485,.456,.406`` or ``imagenet``."""
    if text is None:
        return None
    if text == "imagenet":
        from torch_separable.data import IMAGENET_MEAN, IMAGENET_STD

        return tuple(IMAGENET_MEAN if name == "--mean" else IMAGENET_STD)
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise SeparableValueError(f"{name} {text}: must be numbers separated by commas, or imagenet") from None


def preparation(
    image_size: int | None, mean: str | None, std: str | None, *, progress: bool, folder: Path | None = None
) -> dict[str, Any]:
    """Return the keyword arguments of `load_data`: the preparation of a folder if there is one, or the options.

    Raises:
        SeparableError: an option contradicts the folder.
    """
    given: dict[str, Any] = {
        "image_size": image_size,
        "mean": channel_values("--mean", mean),
        "std": channel_values("--std", std),
    }
    if folder is not None:
        from torch_separable.artifacts import run_directory

        own = run_directory.read_preparation(folder)
        given = given if own is None else own.settings(str(folder), **given)
    return {**given, "progress": progress}


def load_prepared(folder: Path | None, data: str, split: str, settings: dict[str, Any]) -> ImageData:
    """Load images, and check their channels and classes against the network of a folder."""
    from torch_separable.artifacts import run_directory
    from torch_separable.data import load_data

    source = load_data(data, split, **settings)
    own = None if folder is None else run_directory.read_preparation(folder)
    if own is not None:
        own.check(source, str(folder))
    return source


_JSON = {"true": True, "false": False, "null": None}


def keyword_arguments(option: str, texts: Iterable[str] | None) -> dict[str, Any]:
    """Read ``k=v`` pairs; values are literals of Python or JSON where they look like one, else text.

    Example:
        >>> keyword_arguments("--model-arg", ["width_multiplier=0.5", "order=depthwise_first", "bias=false"])
        {'width_multiplier': 0.5, 'order': 'depthwise_first', 'bias': False}
    """
    arguments: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise SeparableValueError(f"{option} {text}: expected name=value")
        try:
            arguments[key] = _JSON[value] if value in _JSON else ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            arguments[key] = value
    return arguments


def read_budget(text: str, engine: str | None = None) -> Budget:
    """Read ``macs=0.5``, ``parameters=0.3`` or ``latency_ms=4``, which is measured with ``engine``."""
    from torch_separable.conversion import Budget

    kind, _, value = text.partition("=")
    try:
        return Budget(**{kind: float(value)}, engine=engine)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        reason = f": {error}" if isinstance(error, SeparableValueError) else ""
        raise SeparableValueError(
            f"--budget {text}: expected macs=RATIO, parameters=RATIO or latency_ms=NUMBER{reason}"
        ) from error


def print_json(document: Any) -> None:
    """Print one JSON document to standard output, in ASCII so that it is valid in every terminal encoding."""
    print_text(json.dumps(document, indent=2) + "\n")


def print_text(text: str) -> None:
    """Print the output of a command that is read by programs."""
    print(text, end="", file=_answers.get(sys.stdout))
