"""Every command once through, on real images: what it prints, what it writes, and that both are true."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_separable._network.weights_file import read_weights
from torch_separable.artifacts import run_directory
from torch_separable.conversion import Plan
from torch_separable.cost import analyze
from torch_separable.data import load_data
from torch_separable.models import resnet20
from torch_separable.runtime import available

needs_kernels = pytest.mark.skipif(not available(), reason="this installation has no kernel library")

COMMANDS = [
    *(
        "demo",
        "summary",
        "explain",
        "convert",
        "quantize",
        "distill",
        "evaluate",
        "bench",
        "frontier",
        "tune",
        "report",
    ),
]
SMALL = "networks_for_cli:small"
CONVERT = f"convert {SMALL} --weights small.safetensors --data digits --images 64"


def of_json(outcome: Any) -> Any:
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def plain(help_text: str) -> str:
    return " ".join(re.sub(r"[│╭╰╮╯─]", " ", help_text).split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_an_example(separable: Callable[..., Any], command: str) -> None:
    outcome = separable(command, "--help")
    assert outcome.code == 0
    text = plain(outcome.out)
    example = re.search(rf"Example: separable ({command} .*?) (?:Options|Arguments)", text)
    assert example is not None, text
    options = re.findall(r" (--?[a-z-]+)", f" {example[1]}")
    listed = text.partition("Options")[2]
    assert options
    assert [option for option in options if f"{option} " not in listed] == []


def test_help_lists_every_command_and_fits_the_terminal(separable: Callable[..., Any]) -> None:
    outcome = separable("--help")
    assert outcome.code == 0
    assert all(f"│ {command} " in outcome.out for command in COMMANDS)
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert re.fullmatch(r"separable \d+\.\d+\.\S+\n", separable("--version").out)


def test_summary_prints_the_table_of_the_package(separable: Callable[..., Any]) -> None:
    outcome = separable("summary", "resnet20", "--input", "3,32,32", "--depth", "1")
    assert outcome.code == 0
    assert outcome.err == ""
    counted = analyze(resnet20(), torch.zeros(1, 3, 32, 32))
    assert f"Total params: {counted.parameters:,}" in outcome.out
    assert f"MACs: {counted.macs:,}" in outcome.out
    assert "layer1" in outcome.out
    assert "layer1.0" not in outcome.out


def test_summary_gives_the_same_numbers_as_json_and_csv(separable: Callable[..., Any]) -> None:
    arguments = ["summary", "mobilenet_v1", "--input", "3x64x64", "--model-arg", "width_multiplier=0.25"]
    document = of_json(separable(*arguments, "--batch-size", "2", "--json"))
    assert document["input_shapes"] == [[2, 3, 64, 64]]
    single = of_json(separable(*arguments, "--json"))
    assert document["macs"] == 2 * single["macs"]
    rows = list(csv.DictReader(io.StringIO(separable(*arguments, "--csv").out)))
    assert len(rows) == len(single["layers"])
    macs = next(name for name in rows[0] if name.lower() == "macs")
    assert sum(int(row[macs] or 0) for row in rows) == single["macs"] == sum(x["macs"] for x in single["layers"])


def test_summary_of_a_converted_folder_is_of_its_network(separable: Callable[..., Any], place: Path) -> None:
    outcome = separable("summary", "converted", "--model", SMALL, "--json")
    assert outcome.code == 0, outcome.err
    macs = json.loads(outcome.out)["macs"]
    shape = ",".join(map(str, run_directory.read_network(place / "converted").input_shape or ()))
    dense = json.loads(separable("summary", SMALL, "--input", shape, "--json").out)
    assert macs < dense["macs"]


def test_summary_of_chosen_columns(separable: Callable[..., Any]) -> None:
    outcome = separable("summary", SMALL, "--input", "1,32,32", "--columns", "layer,macs")
    assert outcome.code == 0
    assert outcome.out.split()[:2] == ["Layer", "MACs"]


def test_explain_prints_and_draws_the_tutorials_example(separable: Callable[..., Any], place: Path) -> None:
    example = "explain --in 4 --out 8 --kernel 3 --groups 2 --input 3,3"
    outcome = separable(*shlex.split(f"{example} --figure groups.svg"))
    assert outcome.code == 0
    assert "3·3·(4/2)·8 = 144 weights" in outcome.out
    assert outcome.out.endswith("\nfigure: groups.svg\n")
    assert "<svg" in (place / "groups.svg").read_text()
    document = of_json(separable(*shlex.split(f"{example} --json")))
    assert (document["weights"], document["parameters"], document["macs"]) == (144, 152, 1296)


@pytest.mark.parametrize(
    ("options", "weights", "output"),
    [
        ("--in 4 --out 8 --input 3,3", 288, [3, 3]),
        ("--in 4 --out 8 --input 3,3 --no-bias --stride 2", 288, [2, 2]),
        ("--in 4 --out 8 --input 9,9 --dilation 2", 288, [9, 9]),
        ("--in 4 --out 8 --input 9,9 --padding 0", 288, [7, 7]),
        ("--in 4 --out 8 --input 9 --kernel 5", 160, [9]),
        ("--in 2 --out 2 --input 4,5,6 --kernel 3,1,5", 60, [4, 5, 6]),
        ("--in 4 --out 8 --input 3,3 --order depthwise_first", 68, [3, 3]),
        ("--in 4 --out 8 --input 3,3 --order pointwise_first --depth-multiplier 2", 208, [3, 3]),
    ],
)
def test_explain_takes_every_option_of_a_convolution(
    separable: Callable[..., Any], options: str, weights: int, output: list[int]
) -> None:
    document = of_json(separable("explain", *shlex.split(options), "--json"))
    assert document["weights"] == weights
    assert document["output_shape"][1:] == output


def test_convert_writes_a_network_within_the_budget_and_reports_it(separable: Callable[..., Any], place: Path) -> None:
    outcome = separable(*shlex.split(f"{CONVERT} --budget macs=0.4 -o budget --quiet"))
    assert outcome.code == 0
    assert outcome.err == ""
    folder = place / "budget"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "index.html",
        "model.safetensors",
        "plan.json",
        "results.json",
    ]
    plan = Plan.load(folder / "plan.json")
    assert plan.macs[1] <= 0.4 * plan.macs[0]
    assert f"{plan.macs[0]:,} -> {plan.macs[1]:,} MACs" in outcome.out
    assert outcome.out.endswith("written to budget\npage: budget/index.html\n")
    assert max(map(len, outcome.out.splitlines())) <= 80
    config = json.loads((folder / "config.json").read_text())
    assert (config["model"], config["arguments"]) == (SMALL, {})
    assert config["settings"]["weights"] == "small.safetensors"
    assert config["settings"]["budget"] == "macs=0.4"
    assert config["command"].startswith("separable convert networks_for_cli:small --weights small.safetensors")


@pytest.mark.parametrize("engine", [pytest.param("compiled", marks=needs_kernels), "pytorch"])
def test_convert_within_milliseconds_reports_and_stores_them(
    separable: Callable[..., Any], place: Path, engine: str
) -> None:
    outcome = separable(*shlex.split(f"{CONVERT} --budget latency_ms=1000 --engine {engine} -o {engine} --quiet"))
    assert outcome.code == 0
    latency = Plan.load(place / engine / "plan.json").latency
    assert latency is not None
    assert latency.engine == engine
    assert f"for one image: about {latency.milliseconds[0]:.3g} -> " in outcome.out
    assert json.loads((place / engine / "config.json").read_text())["settings"]["engine"] == engine
    assert (
        f"planned ({engine}, threads: {latency.threads}) | {latency.milliseconds[0]:.3g} | "
        in (place / engine / "README.md").read_text()
    )
    document = of_json(
        separable(*shlex.split(f"{CONVERT} --budget latency_ms=1000 --engine {engine} -o {engine}2 --json"))
    )
    assert document["latency"]["engine"] == engine


def test_convert_prints_as_json_what_it_writes(separable: Callable[..., Any], place: Path) -> None:
    document = of_json(separable(*shlex.split(f"{CONVERT} --rank 2 --order pointwise_first --method svd -o j --json")))
    assert document.pop("output") == "j"
    assert json.loads((place / "j" / "results.json").read_text())["conversion"] == document
    plan = Plan.load(place / "j" / "plan.json")
    assert plan.method == "svd"
    assert {(layer.order, layer.rank) for layer in plan.layers} == {("pointwise_first", 2)}
    assert document["converted"] == ["0", "3"]


def test_convert_replaces_a_network_only_with_force(separable: Callable[..., Any], place: Path) -> None:
    assert separable(*shlex.split(f"{CONVERT} --rank 1 -o forced")).code == 0
    before = (place / "forced" / "model.safetensors").read_bytes()
    assert separable(*shlex.split(f"{CONVERT} --rank 3 -o forced")).code == 2
    assert (place / "forced" / "model.safetensors").read_bytes() == before
    assert separable(*shlex.split(f"{CONVERT} --rank 3 -o forced --force")).code == 0
    assert {layer.rank for layer in Plan.load(place / "forced" / "plan.json").layers} == {3}
    (place / "forced" / "network.onnx").touch()
    outcome = separable(*shlex.split(f"{CONVERT} --rank 2 -o forced --force"))
    assert "left over from an earlier conversion: network.onnx\n" in outcome.out
    assert (place / "forced" / "model.safetensors").read_bytes() != before


def test_edited_plan_is_applied(separable: Callable[..., Any], place: Path) -> None:
    assert separable(*shlex.split(f"{CONVERT} --rank 1 -o drawn")).code == 0
    document = json.loads((place / "drawn" / "plan.json").read_text())
    document["layers"][0] |= {"order": None, "rank": 0}
    (place / "edited.json").write_text(json.dumps(document))
    assert separable(*shlex.split(f"{CONVERT} --plan edited.json -o redrawn")).code == 0
    plan = Plan.load(place / "redrawn" / "plan.json")
    assert [layer.rank for layer in plan.layers][:2] == [0, 1]
    results = json.loads((place / "redrawn" / "results.json").read_text())
    assert list(plan.macs) == [step["macs"] for step in results["steps"]]
    outcome = separable(*shlex.split(f"{CONVERT} --plan edited.json --rank 2 -o never"))
    assert outcome.code == 2
    assert "--plan edited.json and --rank 2 are both given" in outcome.err


def test_excluded_layers_stay_dense(separable: Callable[..., Any], place: Path) -> None:
    assert separable(*shlex.split(f"{CONVERT} --rank 1 --exclude 0 -o kept --quiet")).code == 0
    layers = {layer.name: layer for layer in Plan.load(place / "kept" / "plan.json").layers}
    assert (layers["0"].order, layers["0"].reason) == (None, "excluded")
    assert any(layer.order for layer in layers.values())
    assert json.loads((place / "kept" / "config.json").read_text())["settings"]["exclude"] == ["0"]


def test_full_rank_conversion_is_as_accurate_as_the_dense_network(separable: Callable[..., Any]) -> None:
    assert separable(*shlex.split(f"{CONVERT} --rank 9 --mean .5 --std .5 -o exact")).code == 0
    arguments = ["--data", "digits", "--mean", ".5", "--std", ".5", "--json"]
    dense = of_json(separable("evaluate", SMALL, "--weights", "small.pth", *arguments))
    converted = of_json(separable("evaluate", "exact", "--model", SMALL, *arguments))
    assert dense["count"] == converted["count"] == len(load_data("digits", "test"))
    assert converted["correct"] == dense["correct"]
    assert converted["loss"] == pytest.approx(dense["loss"], rel=1e-3)


def test_evaluate_prints_the_accuracy_of_a_training_split(separable: Callable[..., Any]) -> None:
    result = of_json(separable("evaluate", SMALL, "--data", "digits", "--split", "train", "--json"))
    assert result["accuracy"] == result["correct"] / result["count"]
    outcome = separable("evaluate", SMALL, "--data", "digits", "--split", "train")
    assert outcome.out.startswith(f"{100 * result['accuracy']:.2f} % of 1347, loss {result['loss']:.4f} (images that")


def test_networks_of_the_package_are_evaluated_without_naming_them_again(
    separable: Callable[..., Any], place: Path
) -> None:
    network = "torch_separable.models:CifarResNet --model-arg blocks=1 --model-arg in_channels=1"
    command = f"convert {network} --data digits --images 32 --rank 1 --method svd -o builtin"
    assert separable(*shlex.split(command)).code == 0
    outcome = separable("evaluate", "builtin", "--data", "digits")
    assert outcome.code == 0, outcome.err

    config = json.loads((place / "builtin" / "config.json").read_text())
    config["model"] = "torch_separable.models:nn.Module"
    (place / "builtin" / "config.json").write_text(json.dumps(config))
    outcome = separable("evaluate", "builtin", "--data", "digits")
    assert outcome.code == 2, "only the networks themselves are built without being named"
    assert "would have to be imported" in outcome.err


DISTILL = f"distill converted --model {SMALL} --teacher small.safetensors --data digits --set batch_size=128"


def test_distill_trains_the_converted_network_and_leaves_its_weights(
    separable: Callable[..., Any], place: Path
) -> None:
    outcome = separable(*shlex.split(f"{DISTILL} --epochs 3 -o distilled --quiet"))
    assert outcome.code == 0, outcome.err
    folder = place / "distilled"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "best.safetensors",
        "checkpoint.safetensors",
        "config.json",
        "index.html",
        "log.jsonl",
        "model.safetensors",
        "plan.json",
        "results.json",
        "settings.json",
    ]
    assert "\nwritten to distilled\n" in outcome.out
    assert outcome.out.endswith("\npage: distilled/index.html\n")
    config = json.loads((folder / "settings.json").read_text())
    assert config["settings"]["batch_size"] == 128
    images = len(load_data("digits"))
    assert (config["data"]["images"], config["validation"]["images"]) == (images - 67, 67)
    weights, before = read_weights(folder / "model.safetensors"), read_weights(place / "converted/model.safetensors")
    assert weights.keys() == before.keys()
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
    with_weights = f"evaluate converted --model {SMALL} --weights distilled/model.safetensors --data digits --json"
    whole = f"evaluate distilled --model {SMALL} --data digits --json"
    assert of_json(separable(*shlex.split(with_weights))) == of_json(separable(*shlex.split(whole)))


def test_distill_prints_each_epoch_as_text_and_json(separable: Callable[..., Any]) -> None:
    outcome = separable(*shlex.split(f"{DISTILL} --epochs 2 -o told"))
    epochs = outcome.out.splitlines()[:3]
    number = r"\d+\.\d+"
    assert re.fullmatch(rf"epoch 0  validation {number} % of 67  {number} s", epochs[0])
    for epoch, line in enumerate(epochs[1:], start=1):
        trained = rf"epoch {epoch}  loss {number}  agreement {number} %  validation {number} % of 67  {number} s"
        assert re.fullmatch(trained, line)

    document = of_json(separable(*shlex.split(f"{DISTILL} --set epochs=2 -o told-json --hold-out 0 --json")))
    assert [record["epoch"] for record in document["epochs"]] == [1, 2]
    assert document["epochs"][1]["loss"] < document["epochs"][0]["loss"]
    assert document["epochs"][0]["validation"] is None


def test_finished_distillation_prints_all_its_epochs_again(separable: Callable[..., Any], place: Path) -> None:
    command = shlex.split(f"{DISTILL} --epochs 7 --set epochs=1 -o finished --json")
    first, again = of_json(separable(*command)), of_json(separable(*command))
    assert [record["epoch"] for record in first["epochs"]] == [0, 1]
    assert again == first
    assert json.loads((place / "finished" / "results.json").read_text())["epochs"] == first["epochs"]
    assert json.loads((place / "finished" / "config.json").read_text())["settings"]["epochs"] == 1


@pytest.mark.parametrize(
    "command",
    [
        f"{CONVERT} --rank 1 --evaluate test -o bars --force",
        f"{DISTILL} --epochs 1 --set max_steps=1 -o bars-distilled",
        f"evaluate {SMALL} --weights small.safetensors --data digits",
        f"export converted --model {SMALL} --to pt2 --data digits -o bars.pt2",
    ],
)
def test_quiet_and_json_disable_progress_bars_of_readers(
    separable: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    asked: list[bool] = []

    def watched(*arguments: Any, progress: bool, **settings: Any) -> Any:
        asked.append(progress)
        return load_data(*arguments, progress=progress, **settings)

    monkeypatch.setattr("torch_separable.data.load_data", watched)
    for option, shown in (("", True), ("--json", False), ("--quiet", False)):
        if option == "--quiet" and command.startswith("export"):
            continue
        asked.clear()
        assert separable(*shlex.split(f"{command} {option}")).code == 0
        assert set(asked) == {shown}


def test_distill_resumes_only_with_the_same_settings(separable: Callable[..., Any]) -> None:
    assert separable(*shlex.split(f"{DISTILL} --epochs 1 -o again")).code == 0
    assert separable(*shlex.split(f"{DISTILL} --epochs 1 -o again")).code == 0
    outcome = separable(*shlex.split(f"{DISTILL} --epochs 2 -o again"))
    assert outcome.code == 2
    assert "settings.epochs is 1 there and 2 here; give another output_dir, or resume=False (--fresh)" in outcome.err
    assert separable(*shlex.split(f"{DISTILL} --epochs 2 -o again --fresh")).code == 0


@pytest.mark.parametrize("folder", ["with spaces and ü, 中", "--starts-like-an-option"])
def test_folders_may_have_any_name(separable: Callable[..., Any], place: Path, folder: str) -> None:
    assert separable(*shlex.split(f"{CONVERT} --rank 1"), f"--output={folder}").code == 0
    document = of_json(separable(*shlex.split(f"evaluate --model {SMALL} --data digits --json"), "--", folder))
    assert document["count"] == 450
    command = json.loads((place / folder / "config.json").read_text())["command"]
    assert shlex.split(command)[-1] == f"--output={folder}"


@pytest.mark.parametrize(
    "command",
    [
        "summary networks_for_cli:Noisy --input 1,32,32",
        "evaluate networks_for_cli:Noisy --data digits",
        "convert networks_for_cli:Noisy --data digits --images 16 --rank 1 -o noisy",
    ],
)
def test_json_is_the_only_output_even_if_the_network_prints(separable: Callable[..., Any], command: str) -> None:
    outcome = separable(*shlex.split(command), "--json")
    assert of_json(outcome)
    assert "noise while it is built" in outcome.err
    assert "noise while it runs" in outcome.err


def test_csv_is_the_only_output_even_if_the_network_prints(separable: Callable[..., Any]) -> None:
    outcome = separable(*shlex.split("summary networks_for_cli:Noisy --input 1,32,32 --csv"))
    assert {len(row) for row in csv.reader(outcome.out.splitlines())} == {len(outcome.out.splitlines()[0].split(","))}
    assert "noise while it runs" in outcome.err


def test_interrupt_leaves_no_folder(separable: Callable[..., Any], place: Path) -> None:
    outcome = separable(
        "convert", "networks_for_cli:Interrupting", "--data", "digits", "--budget", "macs=0.5", "-o", "stopped"
    )
    assert outcome.code == 130
    assert outcome.err == "separable: interrupted; no incomplete file was left\n"
    assert not (place / "stopped").exists()


def test_built_in_network_without_weights_gives_a_warning(separable: Callable[..., Any]) -> None:
    outcome = separable("evaluate", "resnet20", "--data", "digits")
    assert "separable: resnet20 has random weights" in outcome.err
