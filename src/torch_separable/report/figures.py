"""The figures of a report, drawn by matplotlib as SVG to stand within the page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from torch_separable.extras import optional

_DENSE, _SEPARABLE = "#6f7b8a", "#0072b2"


def steps_figure(steps: Sequence[dict[str, Any]]) -> str:
    """Draw accuracy over multiply-accumulates, a point for each step."""
    figure, axes = _figure(6.4, 3.6)
    for number, step in enumerate(steps, start=1):
        axes.scatter(
            step["macs"] / 1e6, 100 * step["accuracy"], s=90, color=_DENSE if number == 1 else _SEPARABLE, zorder=3
        )
        axes.annotate(
            f"{number}",
            (step["macs"] / 1e6, 100 * step["accuracy"]),
            ha="center",
            va="center",
            color="white",
            fontsize=8,
            zorder=4,
        )
    axes.set_xlim(left=0)
    axes.set_ylim(top=102)
    axes.set_xlabel("million MACs for each image")
    axes.set_ylabel("accuracy, %")
    return _svg(figure)


def layers_figure(layers: Sequence[dict[str, Any]]) -> str:
    """Draw each layer's multiply-accumulates before and after."""
    layers = [layer for layer in layers if layer["macs"][0]]
    figure, axes = _figure(6.4, 1.2 + 0.3 * len(layers))
    places = range(len(layers))
    axes.barh([p - 0.19 for p in places], [x["macs"][0] / 1e6 for x in layers], 0.36, color=_DENSE, label="dense")
    axes.barh(
        [p + 0.19 for p in places], [x["macs"][1] / 1e6 for x in layers], 0.36, color=_SEPARABLE, label="converted"
    )
    axes.set_yticks(list(places), [x["name"].replace("$", r"\$") for x in layers], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("million MACs for each image")
    axes.legend(frameon=False, labelcolor="#6f7b8a")
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure = optional("matplotlib.figure", "figures").Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    # A grey that reads on a light and on a dark page.
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#6f7b8a")
    axes.tick_params(colors="#6f7b8a")
    axes.xaxis.label.set_color("#6f7b8a")
    axes.yaxis.label.set_color("#6f7b8a")
    axes.grid(color="#6f7b8a", alpha=0.2)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any) -> str:
    matplotlib = optional("matplotlib", "figures")
    out = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "torch-separable", "font.family": "sans-serif"}
    ):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    return drawn[drawn.index("<svg") :]
