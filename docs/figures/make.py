"""Draw the figures of docs/article.md: ``python docs/figures/make.py`` writes them beside this file."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from torch_separable.explain import Explanation, explain

HERE = Path(__file__).resolve().parent


def figures() -> dict[str, Explanation]:
    """What each figure shows, by its file name."""
    size = (4, 3, 3)
    separable = {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "padding": 1, "input_size": size}
    return {
        "standard.svg": explain(nn.Conv2d(4, 8, 3, padding=1), size),
        "grouped.svg": explain(nn.Conv2d(4, 8, 3, padding=1, groups=2), size),
        "depthwise_first.svg": explain(**separable, order="depthwise_first"),
        "pointwise_first.svg": explain(**separable, order="pointwise_first"),
    }


def main() -> None:
    """Write them."""
    for name, explanation in figures().items():
        explanation.save(HERE / name)
        print(f"{name}: {explanation.title}")


if __name__ == "__main__":
    main()
