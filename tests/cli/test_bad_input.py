"""Whatever is wrong with the input: exit code 2 and one line that names the thing and the remedy, no traceback."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = "networks_for_cli:small"
SUMMARY = f"summary {SMALL} --input 1,32,32"
CONVERT = f"convert {SMALL} --weights small.safetensors --data digits -o refused"
BUDGETED = f"{CONVERT} --budget macs=0.5"
DISTILL = f"distill converted --model {SMALL} --teacher small.safetensors --data digits"
EVALUATE = f"evaluate {SMALL} --data digits"
EXPLAIN = "explain --in 4 --out 8 --input 3,3"


def replaced(command: str, option: str, value: str) -> str:
    """The command with another value of an option."""
    words = shlex.split(command)
    words[words.index(option) + 1] = value
    return shlex.join(words)


NAMES = [
    (
        "summary resnet21 --input 3,32,32",
        "there is no network resnet21: did you mean resnet",
        "package.module:function",
    ),
    (
        "summary xyz --input 3,32,32",
        "there is no network xyz: known networks are mobilenet_v1, conv_mobilenet",
        "resnet56",
    ),
    ("summary nowhere:small --input 1,8,8", "no module nowhere", "or among the installed packages"),
    ("summary nowhere.inside:f --input 1,8,8", "no module nowhere ", ""),
    ("summary networks_for_cli.py:small --input 1,8,8", "no module networks_for_cli.py", ""),
    ("summary ./networks_for_cli.py:small --input 1,8,8", "is not of the form package.module:function", ""),
    ("summary networks_for_cli: --input 1,8,8", "is not of the form package.module:function", ""),
    ("summary :small --input 1,8,8", "is not of the form package.module:function", ""),
    ("summary networks_for_cli:smal --input 1,8,8", "networks_for_cli has no smal; did you mean small?", ""),
    ("summary networks_for_cli:zzz --input 1,8,8", "networks_for_cli has no zzz; name a function", ""),
    ("summary networks_for_cli:NOT_A_FUNCTION --input 1,8,8", "NOT_A_FUNCTION is of type int, not a function", ""),
    ("summary networks_for_cli:unfinished --input 1,8,8", "returned an object of type NoneType", "an nn.Module"),
    (
        "summary networks_for_cli:raising --input 1,8,8",
        "cannot be built with no arguments: RuntimeError: the",
        "is not",
    ),
    ("summary syntax_for_cli:small --input 1,8,8", "syntax_for_cli cannot be imported: SyntaxError", "line 1"),
    ("summary raising_for_cli:small --input 1,8,8", "raising_for_cli cannot be imported: OSError: no GPU in", ""),
    ("summary needing_for_cli:small --input 1,8,8", "needing_for_cli needs no_such_package, which is not inst", ""),
    (f"{SUMMARY} --model-arg width", "--model-arg width: expected name=value", ""),
    (
        f"{SUMMARY} --model-arg widht=4",
        "cannot be built with widht=4: TypeError",
        "unexpected keyword argument 'widht'",
    ),
    (f"{SUMMARY} --model-arg width=wide", "cannot be built with width='wide'", ""),
    ("summary mobilenet_v1 --input 3,64,64 --model-arg width_multiplier=-1", "width_multiplier=-1", ""),
]

SHAPES = [
    (replaced(SUMMARY, "--input", "3,32,32"), "input of shape (1, 3, 32, 32): layer '0' (Conv2d)", "1 channels"),
    (replaced(SUMMARY, "--input", "banana"), "--input banana", "as 3,224,224"),
    (replaced(SUMMARY, "--input", "1,32,0"), "--input 1,32,0", ""),
    (replaced(SUMMARY, "--input", "1,-32,32"), "--input 1,-32,32", ""),
    (replaced(SUMMARY, "--input", "1,32,"), "--input 1,32,", ""),
    (replaced(SUMMARY, "--input", "1.5,32"), "--input 1.5,32", ""),
    (replaced(SUMMARY, "--input", "²,3,3"), "--input ²,3,3", ""),
    (replaced(SUMMARY, "--input", ""), "--input is empty", ""),
    (f"{SUMMARY} --depth -1", "depth=-1", "at least 0"),
    (f"{SUMMARY} --batch-size 0", "batch_size=0", "at least 1"),
    (f"{SUMMARY} --columns layer,price", "columns has 'price'", "one of layer, type, kernel"),
    (f"{SUMMARY} --json --csv", "--json and --csv are both given", "give one of them"),
    (
        replaced(BUDGETED, "--data", "npz:coloured.npz"),
        "Sequential cannot take a batch of shape (8, 3, 32, 32)",
        "Give",
    ),
    (replaced(EVALUATE, "--data", "npz:coloured.npz"), "npz:coloured.npz", "3 channels"),
    (replaced(DISTILL, "--data", "npz:coloured.npz"), "npz:coloured.npz have 3 channels", "takes 1"),
]

WEIGHTS = [
    (f"{SUMMARY} --weights gone.pth", "no weights at gone.pth: no such file", ""),
    (f"{SUMMARY} --weights .", "no weights at .: it is a folder", ""),
    (f"{SUMMARY} --weights networks_for_cli.py", "networks_for_cli.py is not a whole weight file", "give the file"),
    (f"{SUMMARY} --weights cut.safetensors", "cut.safetensors is not a whole safetensors file", "save it again"),
    (f"{SUMMARY} --weights whole.pth", "whole.pth holds more than weights", "Save `model.state_dict()`"),
    (f"{SUMMARY} --weights code.pth", "could run code when it is read, so it is refused", "Save `model.state_dict()`"),
    (f"{SUMMARY} --weights narrow.safetensors", "(4, 1, 3, 3), should be (8, 1, 3, 3)", ""),
    (f"{SUMMARY} --weights spoilt.safetensors", "holds NaN or infinite weights (3.weight)", ""),
    (
        replaced(DISTILL, "--teacher", "narrow.safetensors"),
        "narrow.safetensors are not the weights of this network",
        "0.weight",
    ),
    (replaced(DISTILL, "--teacher", "gone.safetensors"), "no weights at gone.safetensors", ""),
]

IMAGES = [
    (replaced(BUDGETED, "--data", "digit"), "data 'digit': must be one of digits, npz:PATH, folder:PATH, hf:NAME", ""),
    (replaced(BUDGETED, "--data", "npz:"), "'npz:' has no path: write npz:PATH", ""),
    (replaced(BUDGETED, "--data", "npz:gone.npz"), "no images at gone.npz", ""),
    (replaced(BUDGETED, "--data", "npz:whole.pth"), "whole.pth has no array `images`", ""),
    (replaced(BUDGETED, "--data", "folder:gone"), "gone is not a folder", ""),
    (
        replaced(BUDGETED, "--data", "npz:spoilt.npz"),
        "image 3 of npz:spoilt.npz (train) has NaN",
        "repair or remove it",
    ),
    (replaced(EVALUATE, "--data", "npz:unlabelled.npz"), "npz:unlabelled.npz (test) has no labels", "evaluation needs"),
    (f"{CONVERT} --budget macs=0.5 --split valid", "split='valid': digits has the splits train and test", ""),
    (f"{EVALUATE} --split valid", "split='valid'", "train and test"),
    (f"{DISTILL} --split valid", "split='valid'", "train and test"),
    (
        f"{CONVERT} --budget macs=0.5 --images 7",
        "7 calibration images: at least 8 are needed",
        "256 to 1,024 recommended",
    ),
    (f"{CONVERT} --budget macs=0.5 --mean a,b", "--mean a,b", ""),
    (
        f"{CONVERT} --budget macs=0.5 --mean imagenet",
        "has 3 entries; the images of digits have 1 channels",
        "one entry for each channel",
    ),
    (f"{CONVERT} --budget macs=0.5 --mean nan", "mean=(nan,): every entry must be finite", ""),
    (f"{CONVERT} --budget macs=0.5 --std 0", "std=(0.0,): every entry must be finite and above 0", ""),
    (f"{CONVERT} --budget macs=0.5 --std inf", "std=(inf,): every entry must be finite and above 0", ""),
    (f"{CONVERT} --budget macs=0.5 --image-size 0", "image_size=0", "at least 1"),
    (f"{EVALUATE} --batch-size 0", "batch_size=0: must be at least 1", ""),
]

CHOICES = [
    (f"{CONVERT} --rank 0", "rank=0: must be a whole number, at least 1", ""),
    (f"{CONVERT} --rank 2 --budget macs=0.5", "--budget macs=0.5 and --rank 2 are both given", "give one of them"),
    (f"{CONVERT} --budget 0.5", "--budget 0.5: expected macs=RATIO", "latency_ms=NUMBER"),
    (f"{CONVERT} --budget time=4", "--budget time=4: expected macs=RATIO", ""),
    (f"{CONVERT} --budget macs=half", "--budget macs=half: expected macs=RATIO", ""),
    (f"{CONVERT} --budget macs=1.5", "--budget macs=1.5: ", "above 0 and at most 1"),
    (f"{CONVERT} --budget macs=nan", "--budget macs=nan: ", "above 0 and at most 1"),
    (f"{CONVERT} --budget latency_ms=0", "--budget latency_ms=0: ", "milliseconds above 0"),
    (f"{CONVERT} --budget latency_ms=5 --engine tpu", "--budget latency_ms=5: ", "must be one of compiled, pytorch"),
    (f"{BUDGETED} --engine pytorch", "--budget macs=0.5: ", "engine only applies to latency_ms"),
    (
        f"{CONVERT} --rank 2 --engine pytorch",
        "--engine pytorch only applies to --budget latency_ms=NUMBER",
        "--rank 2 is given",
    ),
    (f"{CONVERT} --budget macs=0.01", "Budget(macs=0.01) cannot be met", "Raise the budget"),
    (f"{CONVERT} --budget macs=0.5 --order both", "order='both': must be one of depthwise_first, pointwise_first", ""),
    (f"{CONVERT} --budget macs=0.5 --method magic", "method='magic': must be one of least_squares, svd", ""),
    (f"{CONVERT} --budget macs=0.5 --exclude stem", "exclude='stem' matches no convolution", "Its convolutions are "),
    (
        f"{CONVERT} --budget macs=0.5 --memory lots",
        "--memory lots: expected a number of bytes, such as 4GB or 512MB",
        "",
    ),
    (f"{CONVERT} --budget macs=0.5 --memory infGB", "--memory infGB: expected a number of bytes", ""),
    (f"{CONVERT} --budget macs=0.5 --memory 1KB", "--memory 1KB: at least 1MB is needed", ""),
    (replaced(CONVERT, "-o", "converted"), "converted already contains a converted network", "give --force"),
    (replaced(CONVERT, "-o", "small.pth"), "small.pth is not a folder", "Choose another"),
    (replaced(CONVERT, "-o", "small.pth/in/it"), "small.pth is not a folder", "Choose another"),
    (
        "convert networks_for_cli:pointwise --data digits --budget macs=0.5 -o refused",
        "no convolution to convert",
        "0:",
    ),
    ("demo -o small.pth", "small.pth is not a folder", "Choose another"),
    (f"{DISTILL} -o small.pth", "small.pth is not a folder", "Choose another"),
    (f"{DISTILL} -o another", "another already holds another network", "choose another folder"),
    (f"{DISTILL} -o another/../converted", "is the folder of the network to distill", "choose another folder"),
    (
        f"{replaced(DISTILL, '--model', 'networks_for_cli:placed')} --model-arg path=/x/y --data npz:gone.npz",
        "the network to distill has the argument path='/x/y': it could be the path of a file",
        "",
    ),
    (f"{DISTILL} --epochs 0", "epochs=0: must be a whole number of at least 1", ""),
    (f"{DISTILL} --set bath_size=4", "'bath_size' is not a setting of distill: use augment, batch_size", ""),
    (f"{DISTILL} --set batch_size", "--set batch_size: expected name=value", ""),
    (f"{DISTILL} --set batch_size=half", "batch_size='half': must be a whole number", ""),
    (f"{DISTILL} --set optimizer=lion", "optimizer='lion': must be one of 'adamw', 'sgd'", ""),
    (f"{DISTILL} --set augment=null", "augment=None: must be a tuple of names", ""),
    (f"{DISTILL} --set augment=5", "augment=5: must be a tuple of names", ""),
    (f"{DISTILL} --set 'augment={{[1]:2}}'", "augment='{[1]:2}': give a tuple of names", ""),
    (f"{DISTILL} --set features=5 --set feature_weight=1", "features=5: must be a tuple of names", ""),
    (f"{DISTILL} --set 'features=()' --set feature_weight=1", "features=() names no module", "None for all"),
    (f"{DISTILL} --set validation=1", "'validation' is not a setting of distill", ""),
    (f"{DISTILL} --set resume=false", "'resume' is not a setting of distill: use augment, batch_size", ""),
    (f"{DISTILL} --set student=1", "'student' is not a setting of distill", ""),
    (f"{DISTILL} --set config=1", "'config' is not a setting of distill", ""),
    (f"{DISTILL} --hold-out 1", "--hold-out 1.0", ""),
    (f"{DISTILL} --hold-out -0.1", "--hold-out -0.1", ""),
    (f"{DISTILL} --hold-out nan", "--hold-out nan", ""),
    ("distill gone --teacher small.safetensors --data digits", "gone is not a converted network", "written by convert"),
    ("distill . --teacher small.safetensors --data digits", ". is not a converted network: it has no config", "Give"),
    (
        "distill converted --teacher small.safetensors --data digits",
        f"was converted from {SMALL}, which would",
        "give --model",
    ),
    ("evaluate converted --data digits", "which would have to be imported: if you trust it", f"give --model {SMALL}"),
    (f"evaluate gone --model {SMALL} --data digits", f"gone is not a folder, but --model {SMALL}", ""),
    ("evaluate gone --data digits", "there is no network gone", ""),
    ("evaluate runs/gone --data digits", "there is no folder runs/gone", "a folder written by convert"),
    ("explain --in 4 --out 8 --groups 3 --input 3,3", "groups=3 does not divide in_channels=4", "multiples of groups"),
    (f"{EXPLAIN} --kernel 0", "--kernel 0", ""),
    (f"{EXPLAIN} --kernel 7 --padding 0", "smaller than the kernel", ""),
    (f"{EXPLAIN} --order sideways", "order='sideways': must be one of depthwise_first, pointwise_first", ""),
    (f"{EXPLAIN} --depth-multiplier 2", "depth_multiplier=2 without order", "give order="),
    (f"{EXPLAIN} --figure figure.gif", "cannot save a figure as 'figure.gif'", "one of .svg, .png, .pdf"),
    (f"{EXPLAIN} --figure small.pth/figure.svg", "cannot write small.pth/figure.svg", "choose another folder"),
    (replaced(EXPLAIN, "--in", "-4"), "in_channels=-4: must be an integer of at least 1", ""),
]


@pytest.mark.parametrize(("command", "thing", "remedy"), [*NAMES, *SHAPES, *WEIGHTS, *IMAGES, *CHOICES])
def test_bad_input_is_reported_in_one_line(
    separable: Callable[..., Any], place: Path, command: str, thing: str, remedy: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*") if "__pycache__" not in path.parts}
    outcome = separable(*shlex.split(command))
    assert outcome.code == 2, outcome.err
    if "--json" in shlex.split(command):
        assert json.loads(outcome.out).keys() == {"error"}
    else:
        assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert line.startswith("separable: error: ")
    assert thing in line
    assert remedy in line
    after = {path: path.stat().st_mtime_ns for path in place.rglob("*") if "__pycache__" not in path.parts}
    assert after == before, "nothing is written or changed"


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (f"{CONVERT} --budget macs=0.5 --images 0", "--images"),
        (f"{CONVERT} --budget macs=0.5 --images many", "--images"),
        (f"{CONVERT} --budget macs=0.5 --seed -1", "--seed"),
        (f"{CONVERT} --budget macs=0.5 --seed 99999999999999999999", "--seed"),
        (f"{CONVERT} --budget macs=0.5 --sparsity 0.5", "--sparsity"),
        (f"convert {SMALL} --data digits", "--output"),
        (f"summary {SMALL}", "--input"),
        ("explain --in 4 --out 8", "--input"),
        ("summarize", "summarize"),
    ],
)
def test_wrong_usage_names_the_help(separable: Callable[..., Any], command: str, named: str) -> None:
    outcome = separable(*shlex.split(command))
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert named in outcome.err
    assert "--help' for help" in outcome.err


def test_debug_shows_the_traceback_above_the_line(separable: Callable[..., Any]) -> None:
    outcome = separable("--debug", *shlex.split(f"{SUMMARY} --weights narrow.safetensors"))
    assert outcome.code == 2
    assert outcome.err.startswith("Traceback (most recent call last):\n")
    assert "in import_weights" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("separable: error: narrow.safetensors are not the weights")


def test_invalid_options_are_refused_before_any_work(separable: Callable[..., Any]) -> None:
    """The network would interrupt the command if it ran."""
    network = "networks_for_cli:Interrupting"
    for wrong in ("--order both", "--method magic", "--memory lots", "--budget 0.5", "--rank 0"):
        outcome = separable(*shlex.split(f"convert {network} --data digits -o refused {wrong}"))
        assert outcome.code == 2, wrong


def test_invalid_distillation_settings_are_refused_before_files_are_read(separable: Callable[..., Any]) -> None:
    distill = replaced(replaced(DISTILL, "--data", "npz:gone.npz"), "--teacher", "gone.safetensors")
    for wrong in ("--epochs 0", "--set bath_size=4", "--set augment=5"):
        assert "gone" not in separable(*shlex.split(f"{distill} {wrong}")).err
    outcome = separable(*shlex.split(f"{replaced(DISTILL, '--data', 'npz:gone.npz')} -o another"))
    assert "another already holds another network" in outcome.err


def test_missing_extra_is_named_with_its_install_command(
    separable: Callable[..., Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    outcome = separable(*shlex.split(f"{EXPLAIN} --figure figure.png"))
    assert outcome.code == 2
    assert "matplotlib" in outcome.err
    assert outcome.err.endswith(": pip install 'torch-separable[figures]'\n")
    monkeypatch.setitem(sys.modules, "altair", None)
    outcome = separable("demo", "-o", "refused")
    assert outcome.code == 2
    assert "pip install 'torch-separable[demo]'" in outcome.err

    command = f"{replaced(CONVERT, '-o', 'without-charts')} --images 16 --rank 1"
    outcome = separable(*shlex.split(command))
    assert outcome.code == 0
    missing = "The charts are not shown: altair is not installed: pip install 'torch-separable[report]'."
    assert outcome.out.endswith(f"written to without-charts\npage: without-charts/index.html\n  {missing}\n")
    assert (place / "without-charts" / "model.safetensors").is_file()
    assert (place / "without-charts" / "index.html").is_file()


def test_internal_error_and_bad_input_have_different_exit_codes(
    separable: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("torch_separable.cost.summary", faulty)
    outcome = separable(*shlex.split(SUMMARY))
    assert outcome.code == 1
    assert outcome.err == (
        "separable: unexpected ZeroDivisionError: division by zero; --debug before the command shows the traceback\n"
    )
