"""A quantity of the dense network beside the same quantity of the converted one."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

Number = TypeVar("Number", int, float)


class Reduction(NamedTuple, Generic[Number]):
    """MACs, parameters or milliseconds of the dense network and of the converted one.

    Attributes:
        dense: the quantity in the dense network or layer.
        converted: the quantity after conversion, in the same unit.

    Example:
        >>> macs = Reduction(dense=1000, converted=250)
        >>> macs.converted, macs.ratio
        (250, 4.0)
    """

    dense: Number
    converted: Number

    @property
    def ratio(self) -> float:
        """Dense divided by converted: 2.0 means that half is left."""
        return self.dense / self.converted
