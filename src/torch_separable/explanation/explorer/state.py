"""The state of the explorer: which layer it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from torch_separable.errors import SeparableValueError
from torch_separable.explanation.arguments import ConvArguments
from torch_separable.explanation.explanation import Explanation, explain
from torch_separable.explanation.stages import Order

Kind = Literal["standard", "grouped", "depthwise", "depthwise_first", "pointwise_first"]
SEPARABLE_ORDERS: tuple[Order, ...] = get_args(Order)
Pair = tuple[int, int]

# Minimum and maximum of each number, in the order of ExplorerState's fields. Their products stay below 2**53, the limit
# of exact integers in JavaScript.
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


@dataclass(frozen=True)
class ExplorerState:
    """The layer that the page shows when it opens; the default is the article's example.

    Attributes:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: rows and columns of the kernel.
        input_size: rows and columns of the input.
        stride: stride in rows and columns.
        padding: zeros on each side; ``None`` for the padding that keeps the size at stride 1 and an odd kernel.
        dilation: distance between kernel taps.
        groups: groups of the grouped convolution.
        depth_multiplier: depth multiplier of the depthwise separable convolutions.
        show: kind of the selected layer.

    Raises:
        SeparableValueError: a number is outside of its limits.

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
        """The padding as numbers."""
        if self.padding is not None:
            return self.padding
        rows, columns = (d * (k - 1) // 2 for k, d in zip(self.kernel_size, self.dilation, strict=True))
        return rows, columns

    @classmethod
    def of(cls, explanation: Explanation) -> ExplorerState:
        """Return the state that shows an explained layer.

        Raises:
            SeparableValueError: the page cannot show the layer: it is transposed, not two-dimensional, separable with a
                1×1 kernel, or outside of the limits.
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
                f"{explanation.title}: the explorer shows equal padding on both sides, "
                "but padding='same' of an even kernel is unequal"
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
        """Explain the selected layer."""
        arguments: ConvArguments = {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding_shown,
            "dilation": self.dilation,
        }
        if self.show in SEPARABLE_ORDERS:
            arguments |= {"order": self.show, "depth_multiplier": self.depth_multiplier}
        else:
            arguments["groups"] = {"grouped": self.groups, "depthwise": self.in_channels}.get(self.show, 1)
        return explain(input_shape=self.input_size, **arguments)

    def document(self) -> dict[str, Any]:
        """Return the state as the page's JSON, with the names of the command line's options."""
        entries = zip(LIMITS, (value for _, value in self._entries()), strict=True)
        named: dict[str, Any] = dict(entries)
        return named | {"padding": "auto" if self.padding is None else self.padding, "show": self.show}


EXAMPLES = {
    "article": ExplorerState(),
    "early": ExplorerState(32, 64, input_size=(112, 112), groups=4, show="depthwise_first"),
    "late": ExplorerState(512, 512, input_size=(14, 14), groups=32, show="depthwise_first"),
}


def _pair(values: Sequence[int]) -> Pair:
    rows, columns = values
    return rows, columns
