"""Compare every kernel with PyTorch on 20,000 random layers: the tests of the float kernels with more examples.

    python benchmarks/soak.py                    # a few minutes on one core
    python benchmarks/soak.py --cases 2000 --seed 7

Each run draws new cases unless a seed is given. A failure prints the minimal case and how to repeat it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from hypothesis import HealthCheck, settings

TESTS = (Path(__file__).resolve().parents[1] / "tests" / "runtime").glob("test_*_kernels.py")


class Longer:
    """Pytest plugin that distributes the cases over the properties."""

    def __init__(self, cases: int) -> None:
        self.cases = cases

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Raise the number of examples, each property's in the proportion that the tests have."""
        properties = [item.obj for item in items if hasattr(getattr(item, "obj", None), "hypothesis")]  # type: ignore[attr-defined]
        known = {test: test._hypothesis_internal_use_settings.max_examples for test in properties}
        total = sum(known.values())
        for test, examples in known.items():
            test._hypothesis_internal_use_settings = settings(
                max_examples=max(1, round(self.cases * examples / total)),
                deadline=None,
                derandomize=False,
                database=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            )
        print(f"{len(known)} properties, {self.cases:,} cases")


def main(
    cases: Annotated[int, typer.Option(help="Number of cases over all properties.")] = 20_000,
    seed: Annotated[int | None, typer.Option(help="Seed that repeats the cases of a run.")] = None,
) -> None:
    """Run the kernels' properties on many random cases."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = ["-q", "-s", "-p", "no:cacheprovider", "--hypothesis-show-statistics", "-m", "not slow"]
    if seed is not None:
        options.append(f"--hypothesis-seed={seed}")
    sys.exit(pytest.main([*options, *map(str, TESTS)], plugins=[Longer(cases)]))


if __name__ == "__main__":
    typer.run(main)
