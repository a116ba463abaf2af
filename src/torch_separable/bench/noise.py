"""Detection of noise during a benchmark: other processes, time stolen by the hypervisor, and spread of the times."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_STAT = Path("/proc/stat")
# Below these, medians of alternating rounds are stable: a share of stolen time, cores of other processes, and the
# distance between the quartiles relative to the median.
_MOST_STOLEN = 0.02
_MOST_OTHER_CORES = 0.25
_MOST_SPREAD = 0.2


@dataclass(frozen=True)
class CpuTimes:
    """CPU time of the whole machine since boot, in seconds: spent, stolen by the hypervisor, and in total."""

    busy: float
    stolen: float
    total: float

    @classmethod
    def now(cls) -> CpuTimes | None:
        """Read the times; ``None`` on systems without ``/proc/stat``."""
        if not _STAT.is_file():
            return None
        # user nice system idle iowait irq softirq steal; guest times are part of user and nice
        values = [int(value) for value in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, idle, iowait, irq, softirq, steal = (
            value / os.sysconf("SC_CLK_TCK") for value in [*values, *[0] * (8 - len(values))]
        )
        busy = user + nice + system + irq + softirq
        return cls(busy, steal, busy + idle + iowait + steal)


class NoiseMeter:
    """Compares the load of the machine during a measurement with the load that the measurement itself causes.

    Example:
        >>> meter = NoiseMeter(threads=1)
        >>> isinstance(meter.sentences({"engine": (1.0, (0.99, 1.02))}), list)
        True
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        self.start, self.started = CpuTimes.now(), time.monotonic()

    def sentences(self, times: Mapping[str, tuple[float, tuple[float, float]]]) -> list[str]:
        """Return one sentence for each kind of noise since the meter was created.

        Args:
            times: median and quartiles of each engine by its title.
        """
        end = CpuTimes.now()
        found = []
        if self.start is not None and end is not None:
            found += load_sentences(self.start, end, time.monotonic() - self.started, self.threads)
        widest = max(times, key=lambda name: _spread(*times[name]), default=None)
        if widest is not None and _spread(*times[widest]) > _MOST_SPREAD:
            found.append(f"The quartiles of {widest} are {100 * _spread(*times[widest]):.0f} % of its median apart.")
        if found:
            found = [f"Noisy measurement: {found[0]}", *found[1:], f"Load average at the start: {self.load:.1f}."]
        return found


def load_sentences(start: CpuTimes, end: CpuTimes, seconds: float, threads: int) -> list[str]:
    """Return sentences on stolen time and on other processes between two readings ``seconds`` apart.

    Example:
        >>> load_sentences(CpuTimes(0, 0, 0), CpuTimes(20, 2, 40), seconds=10, threads=1)
        ['the hypervisor took 5 % of the CPU time.', 'Other processes used 1.0 cores.']
    """
    found = []
    total = end.total - start.total
    if total > 0 and (end.stolen - start.stolen) / total > _MOST_STOLEN:
        found.append(f"the hypervisor took {100 * (end.stolen - start.stolen) / total:.0f} % of the CPU time.")
    others = (end.busy - start.busy) / max(seconds, 1e-9) - threads
    if others > _MOST_OTHER_CORES:
        text = f"other processes used {others:.1f} cores."
        found.append(text.capitalize() if found else text)
    return found


def _spread(median: float, quartiles: tuple[float, float]) -> float:
    low, high = quartiles
    return (high - low) / median
