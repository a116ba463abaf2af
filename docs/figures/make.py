"""Draw the figures of docs/: ``python docs/figures/make.py`` writes them beside this file.

The figures of docs/article.md come from `explain`, the roofline of docs/kernels.md from benchmarks/results.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import vl_convert
from torch import nn

from torch_separable._system.files import read_json
from torch_separable.explanation import Explanation, explain
from torch_separable.report.charts import roofline_chart
from torch_separable.report.engines import roof

HERE = Path(__file__).resolve().parent
MEASURED = HERE.parents[1] / "benchmarks" / "results" / "operations.json"


def figures() -> dict[str, str]:
    """Return each figure as SVG, by file name."""
    size = (4, 3, 3)
    separable = {"in_channels": 4, "out_channels": 8, "kernel_size": 3, "padding": 1, "input_shape": size}
    explained: dict[str, Explanation] = {
        "standard.svg": explain(nn.Conv2d(4, 8, 3, padding=1), size),
        "grouped.svg": explain(nn.Conv2d(4, 8, 3, padding=1, groups=2), size),
        "depthwise_first.svg": explain(**separable, order="depthwise_first"),
        "pointwise_first.svg": explain(**separable, order="pointwise_first"),
    }
    return {name: explanation.svg() for name, explanation in explained.items()} | {"roofline.svg": roofline()}


def roofline() -> str:
    """Return the roofline of MobileNetV1's operations, measured by ``benchmarks/runtime.py operations``, as SVG."""
    under = roof({"operations": read_json(MEASURED, "the operations of MobileNetV1")})
    assert under is not None
    chart = roofline_chart(under)
    assert chart is not None
    # The report's style sheet defines the colours as light-dark pairs; the figure uses the light ones on white.
    style = (files("torch_separable.report") / "templates" / "page.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"(--[a-z0-9-]+): light-dark\((#[0-9a-f]{6}),", style))
    spec = json.loads(re.sub(r"var\((--[a-z0-9-]+)\)", lambda found: colours[found[1]], json.dumps(chart.spec)))
    drawn: str = vl_convert.vegalite_to_svg({**spec, "width": 640, "background": "#ffffff"})
    return drawn


def main() -> None:
    """Write them."""
    for name, drawn in figures().items():
        (HERE / name).write_text(drawn, encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
