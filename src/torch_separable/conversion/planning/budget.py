"""What a converted network may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch_separable.conversion.planning.plan import Engine
from torch_separable.errors import SeparableValueError


@dataclass(frozen=True)
class Budget:
    """The maximum cost of the converted network. Exactly one of the three costs is given.

    Attributes:
        macs: multiply-accumulates of the whole network as a ratio to the dense network's, above 0 and at most 1:
            ``0.5`` allows half of them.
        parameters: parameters of the whole network as a ratio to the dense network's, above 0 and at most 1.
        latency_ms: milliseconds for one image on this machine, with PyTorch's current number of threads.
        engine: what ``latency_ms`` is measured with: ``"compiled"`` (`torch_separable.compile`, also for ``None``) or
            ``"pytorch"``.

    Raises:
        SeparableValueError: none or several are given, or one is out of range.

    Example:
        >>> Budget(macs=0.5)
        Budget(macs=0.5)
        >>> Budget(latency_ms=2.5, engine="pytorch")
        Budget(latency_ms=2.5, engine='pytorch')
    """

    macs: float | None = None
    parameters: float | None = None
    latency_ms: float | None = None
    engine: Engine | None = None

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"Budget({', '.join(given)})"

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None and name != "engine"}
        if len(given) != 1:
            raise SeparableValueError(f"Budget({given or ''}): give exactly one of macs, parameters, latency_ms")
        (name, value), *_ = given.items()
        is_latency = name == "latency_ms"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= (math.inf if is_latency else 1.0) or math.isinf(value):
            rule = "milliseconds above 0" if is_latency else "a ratio to the dense network's, above 0 and at most 1"
            raise SeparableValueError(f"Budget({name}={value!r}): must be {rule}")
        if self.engine is None:
            return
        if not is_latency:
            raise SeparableValueError(f"{self}: engine only applies to latency_ms; leave it out")
        if self.engine not in get_args(Engine):
            raise SeparableValueError(f"{self}: engine must be one of {', '.join(get_args(Engine))}, or None")

    @property
    def kind(self) -> Literal["macs", "parameters", "latency_ms"]:
        """The name of the cost that is given."""
        return "macs" if self.macs is not None else "parameters" if self.parameters is not None else "latency_ms"
