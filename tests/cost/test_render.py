"""A summary in its other forms: tables that fit, and the same numbers as JSON, CSV and HTML."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import OrderedDict
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.cost import Column, Summary, analyze, summary
from torch_separable.models import mobilenet_v1, mobilenet_v2, resnet20

NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mobilenet_v1": (mobilenet_v1, (3, 224, 224)),
    "mobilenet_v2": (lambda: mobilenet_v2(0.5), (3, 64, 64)),
    "resnet20": (resnet20, (3, 32, 32)),
    "transformer": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2),
        (7, 64),
    ),
}


def counted(name: str = "resnet20", **options: Any) -> Summary:
    build, size = NETWORKS[name]
    return summary(build(), size, verbose=False, **options)


def small() -> Summary:
    network = nn.Sequential(OrderedDict(unit=ts.depthwise_separable_conv(4, 8), act=nn.ReLU()))
    return analyze(network, torch.zeros(1, 4, 3, 3))


def at_width(table: Summary, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(width))
    return str(table).splitlines()


def test_a_table_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert at_width(small(), 80, monkeypatch) == [
        " Layer          Kernel   Groups   Output         Params   MACs   Saving",
        "────────────────────────────────────────────────────────────────────────",
        " unit                             (1, 8, 3, 3)        -      -    4.24x",
        "   depth_conv   3x3           4   (1, 4, 3, 3)       40    324    4.00x",
        "   point_conv   1x1           1   (1, 8, 3, 3)       40    288",
        " act                              (1, 8, 3, 3)        -      -",
        "────────────────────────────────────────────────────────────────────────",
        "                                                     80    612",
        "Total params: 80",
        "Trainable params: 80",
        "Non-trainable params: 0",
        "MACs: 612 (FLOPs, two for each: 1,224)",
        "Bytes moved: 1,616 (0.76 FLOP/byte); weights: 320",
    ]


def test_long_names_are_cut_at_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (f"backbone_of_the_network_with_a_very_long_name_of_some_stage_{i}" for i in (1, 2))
    network = nn.Sequential(OrderedDict([(first, nn.Conv2d(3, 8, 3)), (second, nn.Sequential(nn.Conv2d(8, 8, 3)))]))
    table = analyze(network, torch.zeros(1, 3, 224, 224))
    lines = at_width(table, 80, monkeypatch)
    assert max(map(len, lines[:6])) == 80
    assert [line.split()[0][-12:] for line in lines[2:5]] == ["some_stage_1", "some_stage_2", "0"]
    assert lines[2].startswith(" …")
    assert first in at_width(table, 120, monkeypatch)[2]


def test_columns_have_the_given_order(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(OrderedDict(unit=ts.depthwise_separable_conv(4, 8)))
    table = summary(network, (4, 3, 3), columns=["macs", Column.FORMULA, "dense", "layer"], verbose=False)
    assert at_width(table, 20, monkeypatch)[:7] == [
        " MACs   Weights                      Dense equivalent          Layer",
        "────────────────────────────────────────────────────────────────────────────",
        "    -                                3·3·4·8 = 288 (+8 bias)   unit",
        "  324   3·3·(4/4)·4 = 36 (+4 bias)   3·3·4·4 = 144 (+4 bias)     depth_conv",
        "  288   1·1·4·8 = 32 (+8 bias)                                   point_conv",
        "────────────────────────────────────────────────────────────────────────────",
        "  612",
    ]


@pytest.mark.parametrize("column", list(Column))
def test_each_column_can_stand_alone(column: Column, monkeypatch: pytest.MonkeyPatch) -> None:
    table = summary(mobilenet_v1(0.25), (3, 32, 32), columns=[column], verbose=False)
    lines = at_width(table, 80, monkeypatch)
    first, second = (i for i, line in enumerate(lines) if line.startswith("─"))
    assert second - first - 1 == len(table.layers)
    assert any(line.strip(" -") for line in lines[first + 1 : second])
    total = {"parameters": table.parameters, "macs": table.macs, "bytes": table.bytes}.get(column)
    if total is not None:
        assert lines[second + 1].strip() == f"{total:,}"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_fits_the_terminal_and_a_wide_one_has_every_column(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = counted(name)
    heads = {}
    for width in (80, 100, 120, 160, 240):
        lines = at_width(table, width, monkeypatch)
        assert max(map(len, lines)) <= width
        heads[width] = set(re.split(r"\s{2,}", lines[0].strip()))
    everything = {"Layer", "Type", "Output", "Params", "MACs", "Bytes moved", "FLOP/byte", "Weights"}
    convolutions = {"Kernel", "Stride", "Groups"} if any(row.kernel for row in table.layers) else set()
    savings = {"Dense equivalent", "Saving"} if any(row.saving for row in table.layers) else set()
    assert heads[240] == everything | convolutions | savings
    for shown in heads.values():
        assert {"Layer", "Output", "Params", "MACs"} <= shown <= heads[240]


def test_frozen_parameters_are_not_trainable(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ts.depthwise_separable_conv(4, 16)
    network.depth_conv.requires_grad_(False)
    lines = at_width(analyze(network, torch.zeros(1, 4, 3, 3)), 80, monkeypatch)
    assert [line for line in lines if "rainable" in line] == ["Trainable params: 80", "Non-trainable params: 40"]


def test_children_are_indented_below_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = at_width(summary(resnet20(), (3, 32, 32), columns=["layer"], verbose=False), 80, monkeypatch)
    assert lines[lines.index(" layer1") :][:4] == [" layer1", "   0", "     conv1", "     bn1"]


def test_long_lists_are_broken_to_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i in range(8):
                self.add_module(f"a_layer_that_is_never_used_{i}", nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x

    lines = at_width(analyze(Spare(), torch.zeros(1)), 80, monkeypatch)
    assert max(map(len, lines)) <= 80
    never = [f"a_layer_that_is_never_used_{i}" for i in range(5)]
    assert f"Never ran: {', '.join(never)} and 3 more" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("name", NETWORKS)
def test_json_is_the_dictionary_and_both_are_the_summary(name: str) -> None:
    table = counted(name)
    document = table.to_dict()
    assert json.loads(table.to_json()) == document
    assert json.loads(table.to_json(indent=None)) == document
    for field in ("network", "parameters", "trainable", "macs", "flops", "bytes", "intensity", "weight_bytes"):
        assert document[field] == getattr(table, field)
    for row, layer in zip(document["layers"], table.layers, strict=True):
        for field, value in row.items():
            expected = getattr(layer, field)
            assert value == (list(expected) if isinstance(expected, tuple) else expected)
    assert "·" in table.to_json()


def test_json_lists_uncounted_operators_and_uncalled_modules() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x)

    document = json.loads(analyze(Strange(), torch.zeros(4)).to_json())
    assert document["uncounted"] == {"aten._fft_r2c": 1}
    assert document["uncalled"] == ["spare"]
    assert document["input_shapes"] == [[4]]


@pytest.mark.parametrize("name", NETWORKS)
def test_csv_has_the_same_numbers(name: str) -> None:
    table = counted(name)
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(rows) == len(table.layers)
    for row, layer in zip(rows, table.layers, strict=True):
        assert row["layer"] == layer.name
        for field in ("type", "dense", "formula"):
            assert row[field] == getattr(layer, field)
        for field in ("calls", "parameters", "trainable", "macs", "flops", "bytes", "dense_macs"):
            assert int(row[field]) == getattr(layer, field)
        assert float(row["intensity"]) == layer.intensity
        assert (float(row["saving"]) if row["saving"] else None) == layer.saving
        for field in ("kernel", "stride", "output_shape"):
            assert tuple(map(int, row[field].split("x") if row[field] else ())) == getattr(layer, field)
        assert int(row["groups"] or 0) == layer.groups


STRANGE_NAME = 'a "b", <script>alert(1)</script> & c'


def strangely_named() -> Summary:
    return analyze(nn.Sequential(OrderedDict({STRANGE_NAME: nn.Conv2d(4, 8, 3, groups=2)})), torch.zeros(1, 4, 5, 5))


def test_csv_keeps_names_with_commas_and_quotes() -> None:
    (row,) = csv.DictReader(io.StringIO(strangely_named().to_csv()))
    assert (row["layer"], row["macs"]) == (STRANGE_NAME, "1296")


class Cells(HTMLParser):
    """The text of each cell, row by row, and a check that tags close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "br":
            return
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        else:
            assert tag in ("table", "thead", "tbody", "tfoot", "p")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_html_escapes_names() -> None:
    html = strangely_named()._repr_html_()
    assert "<script" not in html
    head, row, foot = Cells(html).rows
    assert row[:4] == [STRANGE_NAME, "Conv2d", "3x3", "1x1"]
    assert dict(zip(head, foot, strict=True))["MACs"] == "1,296"


def test_html_shows_the_chosen_columns_and_every_row() -> None:
    table = summary(mobilenet_v1(0.25), (3, 32, 32), columns=["layer", "saving"], verbose=False)
    head, *rows, foot = Cells(table._repr_html_()).rows
    assert (head, foot) == (["Layer", "Saving"], ["", ""])
    names = [layer.name.rpartition(".")[2] or "MobileNetV1" for layer in table.layers]
    assert [row[0].strip() for row in rows] == names
    assert f"Total params: {table.parameters:,}<br>" in table._repr_html_()
