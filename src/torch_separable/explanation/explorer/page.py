"""The explorer: one HTML page on which a reader chooses a convolution and sees its figure, arithmetic and cost.

The page computes in JavaScript (``templates/explorer/``). So that it cannot disagree with the library, it carries test
vectors that the library makes, and compares itself with them whenever it is opened.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from torch_separable._system.files import write_text
from torch_separable._version import __version__
from torch_separable.cost.formulas import ConvSpec
from torch_separable.errors import SeparableValueError
from torch_separable.explanation.arguments import ConvArguments
from torch_separable.explanation.arithmetic import share
from torch_separable.explanation.explanation import Explanation, explain
from torch_separable.explanation.stages import Order

Kind = Literal["standard", "grouped", "depthwise", "depthwise_first", "pointwise_first"]
_SEPARABLE: tuple[Order, ...] = get_args(Order)
Pair = tuple[int, int]

# Least and most that the page takes, in the order of ExplorerState; their products stay within what JavaScript counts
# exactly.
LIMITS: dict[str, Pair] = {
    "in": (1, 4096),
    "out": (1, 4096),
    "kernel": (1, 11),
    "input": (1, 1024),
    "stride": (1, 16),
    "padding": (0, 80),
    "dilation": (1, 16),
    "groups": (1, 4096),
    "depth_multiplier": (1, 16),
}
_SCRIPTS = (
    "tree.js",
    "arithmetic.js",
    "working.js",
    "layout.js",
    "placing.js",
    "figure.js",
    "marks.js",
    "miniature.js",
    "walk.js",
    "closeup.js",
    "state.js",
    "cards.js",
    "formula.js",
    "tables.js",
    "saving.js",
    "check.js",
    "player.js",
    "controls.js",
    "page.js",
)


@dataclass(frozen=True)
class ExplorerState:
    """The layer that the page opens at; the default is the article's example.

    Attributes:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: rows and columns of the kernel.
        input_size: rows and columns of the input.
        stride: step in rows and columns.
        padding: zeros on each side; None keeps the size at stride 1, where the kernel is odd.
        dilation: distance between the kernel's taps.
        groups: groups of the grouped convolution.
        depth_multiplier: multiplier, or rank, of the depthwise separable ones.
        show: which kind of layer is shown large.

    Raises:
        SeparableValueError: a number is smaller or larger than the page takes.

    Example:
        >>> ExplorerState(show="depthwise_first").explanation().weights
        68
    """

    in_channels: int = 4
    out_channels: int = 8
    kernel_size: Pair = (3, 3)
    input_size: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair | None = None
    dilation: Pair = (1, 1)
    groups: int = 2
    depth_multiplier: int = 1
    show: Kind = "standard"

    def __post_init__(self) -> None:
        if self.show not in get_args(Kind):
            raise SeparableValueError(f"show={self.show!r}: must be one of {', '.join(get_args(Kind))}")
        for (name, value), (least, most) in zip(self._entries(), LIMITS.values(), strict=True):
            values = value if isinstance(value, tuple) else (value,)
            if not all(least <= each <= most for each in values):
                raise SeparableValueError(f"{name}={value}: the explorer shows {least} to {most}")

    def _entries(self) -> Iterator[tuple[str, int | Pair]]:
        for name, value in asdict(self).items():
            if name != "show":
                yield name, self.padding_shown if value is None else value

    @property
    def padding_shown(self) -> Pair:
        """The padding in numbers."""
        if self.padding is not None:
            return self.padding
        rows, columns = (d * (k - 1) // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        return rows, columns

    @classmethod
    def of(cls, explanation: Explanation) -> ExplorerState:
        """The state that shows an explained layer.

        Raises:
            SeparableValueError: it is not one that the page can show: transposed, not of two dimensions, a separable
                one of kernel 1×1, or too large.
        """
        first, last = explanation.stages[0], explanation.stages[-1]
        separable = len(explanation.stages) > 1
        spatial = (
            next((stage for stage in explanation.stages if stage.name == "depthwise"), first) if separable else first
        )
        spec = spatial.spec
        if len(spec.kernel_size) != 2 or spec.transposed:
            raise SeparableValueError(
                f"{explanation.title}: the explorer shows convolutions of two dimensions that are not transposed"
            )
        if spatial.output_size != spec.output_size(spatial.input_size):
            raise SeparableValueError(
                f"{explanation.title}: the explorer shows the same padding on both sides, "
                "which padding='same' of an even kernel is not"
            )
        if separable and spec.is_pointwise:
            raise SeparableValueError(f"{explanation.title}: a 1×1 kernel has nothing to separate")
        kinds: dict[str, Kind] = {"grouped": "grouped", "depthwise": "depthwise"}
        order: Kind = "depthwise_first" if first is spatial else "pointwise_first"
        outer = first.spec.in_channels if order == "depthwise_first" else last.spec.out_channels
        chosen = cls(
            first.spec.in_channels,
            last.spec.out_channels,
            _pair(spec.kernel_size),
            _pair(first.input_size),
            _pair(spec.stride),
            _pair(spec.padding),
            _pair(spec.dilation),
            spec.groups if explanation.stages[0].name == "grouped" else 2,
            first.spec.out_channels // outer if separable else 1,
            order if separable else kinds.get(first.name, "standard"),
        )
        automatic = replace(chosen, padding=None)
        return automatic if automatic.padding_shown == chosen.padding else chosen

    def explanation(self) -> Explanation:
        """The shown layer, explained by the library."""
        arguments: ConvArguments = {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding_shown,
            "dilation": self.dilation,
        }
        if self.show in _SEPARABLE:
            arguments |= {"order": self.show, "depth_multiplier": self.depth_multiplier}
        else:
            arguments["groups"] = {"grouped": self.groups, "depthwise": self.in_channels}.get(self.show, 1)
        return explain(input_size=self.input_size, **arguments)

    def document(self) -> dict[str, Any]:
        """The state as the page has it, by the names of the command line's options."""
        entries = zip(LIMITS, (value for _, value in self._entries()), strict=True)
        named: dict[str, Any] = dict(entries)
        return named | {"padding": "auto" if self.padding is None else self.padding, "show": self.show}


_EXAMPLES = {
    "article": ExplorerState(),
    "early": ExplorerState(32, 64, input_size=(112, 112), groups=4, show="depthwise_first"),
    "late": ExplorerState(512, 512, input_size=(14, 14), groups=32, show="depthwise_first"),
}


def _pair(values: Sequence[int]) -> Pair:
    rows, columns = values
    return rows, columns


def explorer_page(state: ExplorerState | None = None) -> str:
    """The page as HTML that needs nothing else, opened at ``state``.

    Example:
        >>> page = explorer_page(ExplorerState(in_channels=32, out_channels=64))
        >>> page.startswith("<!doctype html>"), "<link" in page
        (True, False)
    """
    environment = Environment(
        loader=PackageLoader("torch_separable.explanation.explorer"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    words = json.loads(_source(environment, "explorer/words.json"))
    script = "\n".join(_source(environment, f"explorer/{name}") for name in _SCRIPTS)
    data = {
        "version": __version__,
        "start": (state or ExplorerState()).document(),
        "limits": LIMITS,
        "examples": {name: example.document() for name, example in _EXAMPLES.items()},
        "words": words,
        "vectors": vectors(),
    }
    return environment.get_template("explorer.html.j2").render(
        words=words["en"],
        limits=LIMITS,
        examples=list(_EXAMPLES),
        style=Markup(_source(environment, "explorer.css")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=data,
    )


def _source(environment: Environment, name: str) -> str:
    """A file of the templates as it is: scripts, styles and words are not templates."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def write_explorer(path: str | Path, state: ExplorerState | None = None) -> None:
    """Write the page to ``path``, whole or not at all."""
    write_text(path, explorer_page(state))


def vectors() -> dict[str, list[dict[str, Any]]]:
    """What the library says of a few hundred convolutions, for the page to compare itself with."""
    return {
        "specs": [_spec_facts(spec, size) for spec, size in _specs()],
        "divisions": [_division_facts(*channels) for channels in _DIVISIONS],
        "layers": [_layer_facts(state) for state in _layers()],
    }


_DIVISIONS = (
    (1, 1),
    (1, 8),
    (2, 4),
    (3, 5),
    (4, 8),
    (8, 12),
    (12, 8),
    (16, 16),
    (24, 36),
    (30, 42),
    (64, 96),
    (512, 768),
)


def _specs() -> Iterator[tuple[ConvSpec, Pair]]:
    """Convolutions of all sorts: every seventh-odd of all combinations of the values below."""
    channels = ((1, 1, 1), (4, 8, 1), (4, 8, 2), (4, 8, 4), (6, 9, 3), (16, 16, 16), (512, 768, 256), (4096, 4096, 1))
    kernels = ((1, 1), (2, 2), (3, 3), (3, 5), (11, 11))
    geometry = tuple(itertools.product(((1, 1), (2, 2), (3, 1)), ((0, 0), (1, 1), (2, 3)), ((1, 1), (2, 2), (1, 3))))
    sizes = ((3, 3), (8, 8), (7, 10), (224, 224), (1024, 1024))
    combinations = itertools.product(channels, kernels, geometry, (True, False), sizes)
    for (inputs, outputs, groups), kernel, (stride, padding, dilation), bias, size in itertools.islice(
        combinations, 0, None, 37
    ):
        yield ConvSpec(inputs, outputs, kernel, stride, padding, dilation, groups, bias), size


def _spec_facts(spec: ConvSpec, size: Pair) -> dict[str, Any]:
    given = {
        "in": spec.in_channels,
        "out": spec.out_channels,
        "kernel": spec.kernel_size,
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "groups": spec.groups,
        "bias": spec.bias,
    }
    facts = {
        "spec": given,
        "input": size,
        "weights": spec.weights,
        "parameters": spec.parameters,
        "formula": spec.formula(),
    }
    try:
        return facts | {"output": spec.output_size(size), "macs": spec.macs(size)}
    except SeparableValueError as error:
        return facts | {"error": str(error)}


def _division_facts(inputs: int, outputs: int) -> dict[str, Any]:
    groups: list[int] = []
    errors: dict[str, str] = {}
    for number in range(1, max(inputs, outputs) + 1):
        try:
            ConvSpec(inputs, outputs, (1, 1), groups=number)
            groups.append(number)
        except SeparableValueError as error:
            if len(errors) < 12:
                errors[str(number)] = str(error)
    return {"in": inputs, "out": outputs, "groups": groups, "errors": errors}


def _layers() -> Iterator[ExplorerState]:
    article = ExplorerState()
    for show in get_args(Kind):
        yield replace(article, show=show)
        yield replace(
            article, show=show, in_channels=8, out_channels=24, kernel_size=(3, 5), input_size=(9, 14), groups=4
        )
        yield replace(
            article, show=show, in_channels=512, out_channels=512, input_size=(14, 14), stride=(2, 2), groups=32
        )
    for show in _SEPARABLE:
        yield replace(article, show=show, depth_multiplier=3, padding=(0, 0), dilation=(2, 1), input_size=(8, 8))
        yield replace(article, show=show, in_channels=1, out_channels=1, input_size=(224, 224), kernel_size=(2, 2))
    yield replace(article, kernel_size=(1, 1))
    yield replace(article, kernel_size=(1, 1), stride=(2, 2), show="grouped", input_size=(7, 7))
    yield replace(
        article, in_channels=36, out_channels=36, groups=12, show="grouped", kernel_size=(5, 5), input_size=(5, 5)
    )


def _layer_facts(state: ExplorerState) -> dict[str, Any]:
    explanation = state.explanation()
    return {
        "state": state.document(),
        "title": explanation.title,
        "weights": explanation.weights,
        "parameters": explanation.parameters,
        "macs": explanation.macs,
        "steps": [[step.part, step.title, step.symbols, step.numbers, step.result_text] for step in explanation.steps],
        "alternatives": [
            [each.name, each.weights, each.parameters, each.macs, share(each.share), each.chosen]
            for each in explanation.alternatives
        ],
    }
