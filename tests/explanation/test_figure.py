"""The figure: valid, labelled, the same every time, and nothing half-written."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from torch_separable.errors import MissingExtraError, SeparableError, SeparableValueError
from torch_separable.explanation import explain

SVG = "{http://www.w3.org/2000/svg}"

LAYERS: dict[str, Any] = {
    "dense": {"groups": 1},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 4},
    "elided": {"in_channels": 64, "out_channels": 128, "groups": 4, "input_shape": (56, 56)},
    "separable": {"order": "depthwise_first"},
    "pointwise first": {"order": "pointwise_first", "depth_multiplier": 2},
    "one dimension": {"input_shape": (9,)},
    "three dimensions": {"input_shape": (4, 5, 6, 7), "transposed": True, "stride": 2},
    "one channel": {"in_channels": 1, "out_channels": 1},
    "wide": {"in_channels": 4096, "out_channels": 4096, "order": "depthwise_first", "input_shape": (512, 512)},
}


def drawn(name: str) -> Any:
    return explain(
        **{"in_channels": 4, "out_channels": 8, "kernel_size": 3, "padding": 1, "input_shape": (3, 3)} | LAYERS[name]
    )


def labels(svg: str) -> list[str]:
    return ["".join(text.itertext()).strip() for text in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", LAYERS)
def test_svg_parses_and_says_what_is_drawn(name: str) -> None:
    explanation = drawn(name)
    words = labels(explanation.svg())
    assert explanation.title.replace(" ", "") in "".join(words).replace(" ", "")
    assert {"input", "output", "×".join(map(str, explanation.output_shape))} <= set(words)
    for stage in explanation.stages:
        assert any(word.endswith(f" = {stage.spec.weights:,} weights") for word in words)
        assert f"{stage.macs:,} MACs" in words


@pytest.mark.parametrize("name", LAYERS)
def test_texts_stay_on_the_page_and_do_not_overlap(name: str) -> None:
    """Rendered text boxes neither leave the page nor cover each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from torch_separable.explanation.figure import _Drawing

    figure = _Drawing(drawn(name)).figure
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts if text.get_text()]
    assert len(boxes) > 6
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    for number, one in enumerate(boxes):
        for other in boxes[number + 1 :]:
            across = min(one.x1, other.x1) - max(one.x0, other.x0)
            up = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert min(across, up) < 1


def test_groups_are_labelled_and_told_apart_by_colour() -> None:
    words = labels(drawn("grouped").svg())
    assert {"group 0", "group 1"} <= set(words)
    fills = set(re.findall(r"fill: (#[0-9a-f]{6})", drawn("grouped").svg()))
    assert len(fills) > len(set(re.findall(r"fill: (#[0-9a-f]{6})", drawn("dense").svg())))


def test_many_channels_are_elided() -> None:
    words = labels(drawn("elided").svg())
    assert "⋮" in words
    assert {"0", "15", "63", "127"} <= set(words)
    assert "100" not in words


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_saving_twice_gives_the_same_bytes(suffix: str, tmp_path: Path) -> None:
    first, second = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    drawn("grouped").save(first)
    drawn("grouped").save(str(second))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a.{suffix}", f"b.{suffix}"]


def test_png_is_a_picture(tmp_path: Path) -> None:
    from matplotlib.image import imread

    drawn("separable").save(tmp_path / "separable.png")
    pixels = np.asarray(imread(tmp_path / "separable.png"))[..., :3]
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 800
    assert 0.03 < (pixels.min(axis=2) < 0.9).mean() < 0.6
    blue, orange = (pixels[..., 2] - pixels[..., 0] > 0.3), (pixels[..., 0] - pixels[..., 2] > 0.3)
    assert min(blue.sum(), orange.sum()) > 1000


def test_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SeparableValueError, match=r"'figure\.bmp'.*\.svg, \.png, \.pdf"):
        drawn("dense").save(tmp_path / "figure.bmp")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SeparableError, match="file"):
        drawn("dense").save(tmp_path / "file" / "figure.svg")


def test_without_matplotlib_the_extra_is_named_and_the_rest_works(monkeypatch: pytest.MonkeyPatch) -> None:
    explanation = drawn("dense")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"torch-separable\[figures\]"):
        explanation.svg()
    assert "288 weights" in str(explanation)
    html = explanation._repr_html_()
    assert "torch-separable[figures]" in html
    assert "<svg" not in html


def test_html_holds_the_figure_and_the_tables_and_escapes() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.depth_conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.point_conv = nn.Conv2d(4, 8, 1)
            self.add_module("<b>", nn.BatchNorm2d(4))

    html = explain(Odd(), (3, 3))._repr_html_()
    assert html.count("<table>") == 2
    assert "<svg" in html
    assert "<?xml" not in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
