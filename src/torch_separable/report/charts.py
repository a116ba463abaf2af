"""The charts of a page: Vega-Lite specifications made with Altair, in the colours of the page's theme."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch_separable._system.extras import optional
from torch_separable.report.content import Epoch, Headline, Layers, Point, Row, Times, percent
from torch_separable.report.engines import Roof

_DENSE, _SEPARABLE = "var(--dense)", "var(--accent)"
_STAGES = tuple(f"var(--stage-{i})" for i in range(7))
_REST = "everything else"
_METRICS = (("parameters", "parameters"), ("macs", "MACs"), ("milliseconds", "ms"))
_ROWS = 80  # the table is easier to read than a taller chart


@dataclass(frozen=True)
class Chart:
    """A chart and its text alternative."""

    spec: dict[str, Any]
    words: str


@cache
def script() -> str:
    """Return the JavaScript bundle of Vega, Vega-Lite and Vega-Embed.

    Raises:
        MissingExtraError: vl-convert-python (extra ``report``) is not installed.
    """
    bundle: str = optional("vl_convert", "report").javascript_bundle()
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _altair() -> Any:
    return optional("altair", "report")


def shares_chart(layers: Layers) -> Chart | None:
    """Draw parameters, MACs and milliseconds of both networks relative to the dense one, with one colour per stage."""
    alt = _altair()
    stages = stage_names(layers.rows)
    records: list[dict[str, Any]] = []
    words = []
    for metric, unit in _METRICS:
        total: Any = getattr(layers.total, metric)
        rows = [(row, stages[row.name]) for row in layers.rows] + ([(layers.rest, _REST)] if layers.rest else [])
        known = [(row, stage, getattr(row, metric)) for row, stage in rows if getattr(row, metric)]
        if not total or not total[0] or not known:
            continue
        for which, network in enumerate(("dense", "separable")):
            for order, (row, stage, values) in enumerate(known):
                if values[which]:
                    records.append(
                        {
                            "bar": f"{unit}, {network}",
                            "layer": row.name,
                            "stage": stage,
                            "share": values[which] / total[0],
                            "amount": f"{values[which]:.3g} ms" if unit == "ms" else f"{values[which]:,}",
                            "order": order,
                        }
                    )
        words.append(f"{unit}: the separable network has {100 * total[1] / total[0]:.0f} % of the dense one's")
    if not records:
        return None
    bars = list(dict.fromkeys(record["bar"] for record in records))
    names = list(dict.fromkeys([*stages.values(), *([_REST] if layers.rest else [])]))
    colours = [_DENSE if name == _REST else _STAGES[i % len(_STAGES)] for i, name in enumerate(names)]
    chart = (
        alt.Chart(alt.InlineData(values=records), width="container", height=30 * len(bars))
        .mark_bar(stroke="var(--paper)", strokeWidth=0.5)
        .encode(
            y=alt.Y("bar:N", sort=bars, title=None),
            x=alt.X("share:Q", stack="zero", title="share of the dense network", axis=alt.Axis(format=".0%")),
            color=alt.Color(
                "stage:N",
                sort=names,
                scale=alt.Scale(domain=names, range=colours),
                legend=_legend(names, most=20),
            ),
            order=alt.Order("order:Q"),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("amount:N"),
                alt.Tooltip("share:Q", format=".1%", title="of the dense network"),
            ],
        )
    )
    return Chart(chart.to_dict(), f"Stacked bars. {'; '.join(words)}.")


def times_chart(times: Times) -> Chart:
    """Draw the time of both networks in each engine."""
    alt = _altair()
    records = [
        {"bar": f"{row.network}, {row.engine}", "network": row.network, "ms": row.milliseconds, "speedup": row.speedup}
        for row in times.rows
    ]
    bars = [record["bar"] for record in records]
    chart = (
        alt.Chart(alt.InlineData(values=records), width="container", height=30 * len(bars))
        .mark_bar()
        .encode(
            y=alt.Y("bar:N", sort=bars, title=None),
            x=alt.X("ms:Q", title="milliseconds", axis=alt.Axis(tickCount=5)),
            color=alt.Color(
                "network:N",
                scale=alt.Scale(domain=["dense", "separable"], range=[_DENSE, _SEPARABLE]),
                legend=None,
            ),
            tooltip=[
                alt.Tooltip("bar:N", title="network"),
                alt.Tooltip("ms:Q", format=".3g"),
                alt.Tooltip("speedup:Q", format=".2f"),
            ],
        )
    )
    words = "; ".join(f"{record['bar']}: {record['ms']:.3g} ms" for record in records)
    return Chart(chart.to_dict(), f"Bars. {words}.")


def _legend(names: Sequence[str], most: int = 40) -> Any:
    """Return a legend with as many columns as fit; names are cut to ``most`` characters."""
    alt = _altair()
    wide = 8 * min(max(map(len, names), default=1), most) + 48
    short = f"length(datum.label) > {most} ? '…' + slice(datum.label, {1 - most}) : datum.label"
    columns = alt.ExprRef(f"max(1, floor(width / {wide}))")
    return alt.Legend(title=None, orient="bottom", columns=columns, labelExpr=short)


def stage_names(rows: Sequence[Row]) -> dict[str, str]:
    """Group layers into at most seven stages by prefixes of their names, or else by their order.

    Example:
        >>> stage_names([Row("stem"), Row("stage1.conv"), Row("stage2.conv")])
        {'stem': 'stem', 'stage1.conv': 'stage1.conv', 'stage2.conv': 'stage2.conv'}
    """
    names = [row.name for row in rows]
    most = len(_STAGES)
    found: dict[str, str] = {}
    for depth in range(1, 2 + max((name.count(".") for name in names), default=0)):
        stages = {name: ".".join(name.split(".")[:depth]) for name in names}
        if len(set(stages.values())) > most:
            break
        found = stages
    if len(set(found.values())) > 1 or len(names) <= 1:
        return found or {name: name for name in names}
    size = -(-len(names) // most)
    groups = [names[start : start + size] for start in range(0, len(names), size)]
    return {name: group[0] if len(group) == 1 else f"{group[0]} – {group[-1]}" for group in groups for name in group}


def layers_chart(layers: Layers) -> Chart | None:
    """Draw each layer of both networks; the page sets the Vega parameter ``metric`` to the figure to draw."""
    alt = _altair()
    rows = [*layers.rows, *([layers.rest] if layers.rest else [])]
    if len(rows) > _ROWS:
        heaviest = sorted(rows, key=lambda row: -(row.macs or (0, 0))[0])[:_ROWS]
        rows = [row for row in rows if row in heaviest]
    records = [
        {"layer": row.name, "network": network, "metric": unit, "value": values[which], "change": _change(values, unit)}
        for row in rows
        for metric, unit in _METRICS
        if (values := getattr(row, metric))
        for which, network in enumerate(("dense", "separable"))
    ]
    if not records:
        return None
    metric = alt.param(name="metric", value="MACs")
    base = alt.Chart(alt.InlineData(values=records), width="container", height=20 * len(rows) + 4).encode(
        y=alt.Y("layer:N", sort=None, title=None, axis=alt.Axis(labelExpr=_SHORT, labelLimit=400)),
        x=alt.X("value:Q", stack=None, title=None, axis=alt.Axis(format="~s", orient="top", tickCount=5)),
        color=alt.Color(
            "network:N",
            scale=alt.Scale(domain=["dense", "separable"], range=[_DENSE, _SEPARABLE]),
            legend=alt.Legend(title=None, orient="top"),
        ),
        tooltip=[alt.Tooltip("layer:N"), alt.Tooltip("change:N", title="dense → separable")],
    )
    dense = base.transform_filter("datum.metric == metric && datum.network == 'dense'")
    separable = base.transform_filter("datum.metric == metric && datum.network == 'separable'")
    chart = alt.layer(
        dense.mark_bar(height=alt.RelativeBandSize(0.8)), separable.mark_bar(height=alt.RelativeBandSize(0.4))
    ).add_params(metric)
    heaviest_row = max(layers.rows, key=lambda row: (row.macs or (0, 0))[0], default=None)
    words = "Bars for each layer, dense and separable, with the numbers of the table above."
    if heaviest_row is not None and heaviest_row.macs:
        words += f" {heaviest_row.name} has the most MACs: {_change(heaviest_row.macs, 'MACs')}."
    return Chart(chart.to_dict(), words)


# Keep the ends of long names, because names of layers differ there. The container's size decides how many characters
# fit: `width` is what the labels leave of it, so a limit on `width` would flip with each layout. `width > 0` makes Vega
# evaluate the labels again when the window is resized.
_WIDE = "width > 0 && containerSize()[0] > 640"
_SHORT = f"length(datum.label) > ({_WIDE} ? 40 : 16) ? '…' + slice(datum.label, {_WIDE} ? -39 : -15) : datum.label"


def _change(values: tuple[float, float], unit: str) -> str:
    return f"{values[0]:.3g} → {values[1]:.3g} ms" if unit == "ms" else f"{values[0]:,} → {values[1]:,}"


def accuracy_chart(shown: Headline, points: Sequence[Point]) -> Chart | None:
    """Draw accuracy over MACs: one curve per method, and the steps of the run as numbered points."""
    alt = _altair()
    steps: list[dict[str, Any]] = [
        {
            "series": "dense" if i == 0 else "this run",
            "name": step.name,
            "label": str(i + 1),
            "macs": step.macs,
            "accuracy": step.accuracy,
        }
        for i, step in enumerate(shown.steps)
        if step.accuracy is not None
    ]
    if len(steps) < 2:
        return None
    reached = [*(step["accuracy"] for step in steps), *(point.accuracy for point in points)]
    spread = max(reached) - min(reached)
    decimals = 0 if spread > 0.05 else 1
    _label(steps, 0.05 * spread)
    methods = list(dict.fromkeys(point.method for point in points))
    curves = [
        {"series": p.method, "name": f"{p.method}, no training", "macs": p.macs, "accuracy": p.accuracy} for p in points
    ]
    domain = [*methods, "this run", "dense"]
    colours = {"this run": _SEPARABLE, "dense": _DENSE}
    others = iter(("var(--stage-1)", "var(--stage-2)", "var(--stage-3)", "var(--stage-4)"))
    ranges = [colours.get(name) or next(others, "var(--soft)") for name in domain]
    encoding: dict[str, Any] = {
        "x": alt.X(
            "macs:Q", title="MACs for each image", axis=alt.Axis(format="~s", tickCount=5), scale=alt.Scale(zero=True)
        ),
        "y": alt.Y(
            "accuracy:Q",
            title="accuracy",
            scale=alt.Scale(zero=False),
            axis=alt.Axis(format=f".{decimals}%", tickCount=5),
        ),
        "color": alt.Color(
            "series:N",
            sort=domain,
            scale=alt.Scale(domain=domain, range=ranges),
            legend=_legend(domain),
        ),
        "tooltip": [
            alt.Tooltip("name:N", title="network"),
            alt.Tooltip("macs:Q", format=",", title="MACs"),
            alt.Tooltip("accuracy:Q", format=".2%"),
        ],
    }
    drawn = []
    if curves:
        lines = alt.Chart(alt.InlineData(values=curves)).encode(**encoding)
        drawn += [lines.mark_line(strokeWidth=2), lines.mark_point(filled=True, size=50)]
    run = alt.Chart(alt.InlineData(values=steps)).encode(**encoding)
    drawn.append(run.mark_point(filled=True, size=130, opacity=1, stroke="var(--paper)", strokeWidth=1.5))
    drawn.append(run.mark_text(fontWeight="bold", dy=-14).encode(text="label:N", color=alt.value("var(--ink)")))
    words = [f"{step['name']} {percent(step['accuracy'])} at {step['macs']:,} MACs" for step in steps]
    words += [f"{p.method} without training {percent(p.accuracy)} at {p.macs:,} MACs" for p in points]
    chart = alt.layer(*drawn).properties(width="container", height=320)
    return Chart(chart.to_dict(), f"Accuracy over MACs. {'; '.join(words)}.")


def _label(steps: list[dict[str, Any]], near: float) -> None:
    """Give overlapping points one common label."""
    for i, step in enumerate(steps):
        for later in steps[i + 1 :]:
            if later["macs"] == step["macs"] and abs(later["accuracy"] - step["accuracy"]) <= near:
                later["label"], step["label"] = f"{step['label']}, {later['label']}", ""
                break


def training_chart(
    done: Sequence[Epoch], steps: Sequence[Epoch], names: Mapping[str, str], *, share: bool = False
) -> Chart | None:
    """Draw fields of `Epoch` over the epochs.

    Args:
        done: the epochs.
        steps: mean losses between the epochs.
        names: title of each field to draw.
        share: whether the values are shares of images.
    """
    alt = _altair()
    records = list(_series(done, names))
    if len(records) < 2:
        return None
    series = list(dict.fromkeys(record["series"] for record in records))
    value_axis = alt.Axis(format=".0%", tickCount=5) if share else alt.Axis(tickCount=5)
    x = alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, tickCount=6))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=not share), axis=value_axis)
    base = alt.Chart(alt.InlineData(values=records)).encode(
        x=x,
        y=y,
        color=alt.Color(
            "series:N",
            sort=series,
            scale=alt.Scale(domain=series, range=[_SEPARABLE, *_STAGES[1:]][: len(series)]),
            legend=_legend(series),
        ),
        strokeDash=alt.StrokeDash("series:N", sort=series, legend=None),
        tooltip=[
            alt.Tooltip("series:N", title="of"),
            alt.Tooltip("epoch:Q"),
            alt.Tooltip("value:Q", format=".2%" if share else ".4f"),
        ],
    )
    drawn = [
        base.mark_line(strokeWidth=2),
        base.mark_point(filled=True, size=36, opacity=1).encode(strokeDash=alt.Undefined),
    ]
    if steps and "loss" in names:
        faint = alt.Chart(alt.InlineData(values=[{"epoch": step.epoch, "value": step.loss} for step in steps]))
        drawn.insert(0, faint.mark_line(strokeWidth=1, opacity=0.5, color=_SEPARABLE).encode(x=x, y=y))
    words = []
    for name in series:
        values = [record for record in records if record["series"] == name]
        first, last = (percent(v["value"]) if share else f"{v['value']:.4f}" for v in (values[0], values[-1]))
        words.append(f"{name}: {first} in epoch {values[0]['epoch']}, {last} in epoch {values[-1]['epoch']}")
    chart = alt.layer(*drawn).properties(width="container", height=220)
    return Chart(chart.to_dict(), f"{'; '.join(words)}.")


def _series(done: Sequence[Epoch], names: Mapping[str, str]) -> Iterable[dict[str, Any]]:
    phases = {epoch.phase for epoch in done}
    for name, words in names.items():
        for epoch in done:
            value = getattr(epoch, name)
            if value is not None:
                series = f"{words}, {epoch.phase}" if len(phases) > 1 else words
                yield {"series": series, "epoch": epoch.epoch, "value": value}


def roofline_chart(shown: Roof) -> Chart | None:
    """Draw the roofline model: throughput of each operation over its arithmetic intensity, both logarithmic.

    A roof is the limit set by peak arithmetic and by the bandwidth of one level of memory (Williams, Waterman and
    Patterson, "Roofline", CACM 52(4), 2009).
    """
    if not shown.nodes:
        return None
    alt = _altair()
    points = [
        {
            "layer": node.name,
            "kernel": node.kind,
            "ms": node.milliseconds,
            "intensity": node.intensity,
            "gflops": node.gflops,
            "share": node.gflops / shown.gflops if node.gflops <= shown.gflops else None,
        }
        for node in shown.nodes
    ]
    low = min(node.intensity for node in shown.nodes) / 2
    high = max(2 * max(node.intensity for node in shown.nodes), 2 * shown.gflops / shown.memory)
    roofs = [
        {"roof": name, "intensity": at, "gflops": min(shown.gflops, rate * at)}
        for name, rate in (("from the second-level cache", shown.cache), ("from memory", shown.memory))
        for at in sorted({low, min(max(shown.gflops / rate, low), high), high})
    ]
    kinds = list(dict.fromkeys(node.kind for node in shown.nodes))
    x = alt.X(
        "intensity:Q",
        title="floating-point operations a byte",
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
        axis=alt.Axis(format="~s", tickCount=5),
    )
    y = alt.Y(
        "gflops:Q",
        title="GFLOP/s",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(format="~s", tickCount=5),
    )
    lines = alt.Chart(alt.InlineData(values=roofs)).encode(
        x=x,
        y=y,
        strokeDash=alt.StrokeDash(
            "roof:N", sort=None, legend=alt.Legend(title=None, orient="top", symbolType="stroke")
        ),
        tooltip=[alt.Tooltip("roof:N")],
    )
    dots = alt.Chart(alt.InlineData(values=points)).encode(
        x=x,
        y=y,
        color=alt.Color(
            "kernel:N",
            sort=kinds,
            scale=alt.Scale(domain=kinds, range=[_STAGES[i % len(_STAGES)] for i in range(len(kinds))]),
            legend=_legend(kinds),
        ),
        size=alt.Size("ms:Q", legend=None, scale=alt.Scale(range=[30, 400])),
        tooltip=[
            alt.Tooltip("layer:N"),
            alt.Tooltip("kernel:N"),
            alt.Tooltip("ms:Q", format=".3f"),
            alt.Tooltip("gflops:Q", format=".1f", title="GFLOP/s"),
            alt.Tooltip("intensity:Q", format=".2f", title="FLOP/byte"),
            alt.Tooltip("share:Q", format=".0%", title="of the peak"),
        ],
    )
    chart = alt.layer(
        lines.mark_line(color="var(--soft)", strokeWidth=1.5),
        dots.mark_point(filled=True, opacity=0.85, stroke="var(--paper)", strokeWidth=1),
    ).properties(width="container", height=340)
    slowest = max(shown.nodes, key=lambda node: node.milliseconds)
    nearest = max(shown.nodes, key=lambda node: node.gflops)
    words = (
        f"Roofline: the peak is {shown.gflops:.0f} GFLOP/s. {nearest.name} is nearest to it with {nearest.gflops:.0f}; "
        f"{slowest.name} takes longest, {slowest.milliseconds:.3f} ms at {slowest.gflops:.0f} GFLOP/s."
    )
    return Chart(chart.to_dict(), words)
