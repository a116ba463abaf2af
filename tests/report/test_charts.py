"""What the charts of a page draw, and that they draw as much of it as a person can read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("altair", reason="altair is not installed: pip install '.[report]'")

from torch_separable.report import charts
from torch_separable.report.charts import Chart, stage_names
from torch_separable.report.content import Epoch, Layers, Row, curve, headline


def rows(*names: str) -> list[Row]:
    return [
        Row(name, parameters=(100 + i, 10 + i), macs=(1000 + i, 100 + i), milliseconds=(1.0 + i, 0.5))
        for i, name in enumerate(names)
    ]


def layers(*names: str) -> Layers:
    known = rows(*names)
    rest = Row("everything else", parameters=(7, 7), macs=(3, 3), milliseconds=(0.5, 0.5))
    sums = [
        tuple(sum(getattr(row, key)[which] for row in (*known, rest)) for which in (0, 1))
        for key in ("parameters", "macs", "milliseconds")
    ]
    return Layers(tuple(known), rest, Row("whole network", "", "", "", *sums), "")  # type: ignore[arg-type]


def values(chart: Chart | None) -> list[dict[str, Any]]:
    assert chart is not None
    return [row for rows in chart.spec["datasets"].values() for row in rows]


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (["stem", "layer1.0.a", "layer1.1.a", "layer2.0.a"], ["stem", "layer1.0.a", "layer1.1.a", "layer2.0.a"]),
        (
            [f"layer{i}.{j}.conv" for i in (1, 2, 3) for j in range(3)],
            [f"layer{i}" for i in (1, 2, 3) for _ in range(3)],
        ),
        (["only"], ["only"]),
        ([], []),
        (
            [f"features.{i}" for i in range(14)],
            [f"features.{2 * (i // 2)} – features.{2 * (i // 2) + 1}" for i in range(14)],
        ),
        ([str(i) for i in range(8)], ["0 – 1", "0 – 1", "2 – 3", "2 – 3", "4 – 5", "4 – 5", "6 – 7", "6 – 7"]),
    ],
)
def test_stages_are_the_parts_that_names_begin_with(names: list[str], stages: list[str]) -> None:
    assert stage_names(rows(*names)) == dict(zip(names, stages, strict=True))


@given(st.lists(st.text("ab.", min_size=1, max_size=8), max_size=40, unique=True))
def test_there_are_never_more_stages_than_colours(names: list[str]) -> None:
    stages = stage_names(rows(*names))
    assert list(stages) == names
    assert len(set(stages.values())) <= 7


def test_shares_of_each_bar_add_up_to_the_networks() -> None:
    given_layers = layers("a", "b", "c")
    drawn = values(charts.shares_chart(given_layers))
    for metric, unit in (("parameters", "parameters"), ("macs", "MACs"), ("milliseconds", "ms")):
        dense, separable = getattr(given_layers.total, metric)
        for network, whole in (("dense", 1.0), ("separable", separable / dense)):
            shares = [row["share"] for row in drawn if row["bar"] == f"{unit}, {network}"]
            assert sum(shares) == pytest.approx(whole)


def test_charts_without_measurements_are_left_out() -> None:
    nothing = Layers((Row("a"),), None, Row("whole network"), "")
    assert charts.shares_chart(nothing) is None
    assert charts.layers_chart(nothing) is None
    assert charts.training_chart([Epoch("distillation", 1, 0.5, None, None)], (), {"loss": "loss"}) is None
    assert charts.training_chart([], (), {"loss": "loss"}) is None


def test_chart_of_a_very_deep_network_keeps_its_heaviest_layers() -> None:
    many = layers(*(f"block.{i}" for i in range(200)))
    drawn = [row["layer"] for row in values(charts.layers_chart(many)) if row["metric"] == "MACs"]
    assert list(dict.fromkeys(drawn)) == [f"block.{i}" for i in range(120, 200)]


def test_overlapping_points_share_a_label(results: dict[str, Any]) -> None:
    chart = charts.accuracy_chart(headline(results), curve(results))
    assert [row["label"] for row in values(chart) if "label" in row] == ["1", "", "2, 3"]


def test_axis_of_close_accuracies_has_enough_decimals(results: dict[str, Any]) -> None:
    def axis() -> str:
        chart = charts.accuracy_chart(headline(results), ())
        assert chart is not None
        layer = chart.spec["layer"][0]
        return str(layer["encoding"]["y"]["axis"]["format"])

    assert axis() == ".1%"
    results["steps"][1]["accuracy"] = 0.3
    assert axis() == ".0%"


def test_loss_between_epochs_is_drawn_if_it_was_logged() -> None:
    done = [Epoch("distillation", i, 1 / i, None, None) for i in (1, 2)]
    between = [Epoch("distillation", i / 4, 1.0, None, None) for i in range(1, 9)]
    drawn = values(charts.training_chart(done, between, {"loss": "loss"}))
    assert [row["epoch"] for row in drawn if "series" not in row] == [i / 4 for i in range(1, 9)]
