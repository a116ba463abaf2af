"""A run as one self-contained HTML file: it works offline, and its security policy allows only its own scripts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from torch_separable._system.files import write_text
from torch_separable._version import __version__
from torch_separable.artifacts import run_directory
from torch_separable.errors import MissingExtraError, SeparableError
from torch_separable.report import charts
from torch_separable.report.charts import Chart
from torch_separable.report.content import curve, epochs, headline, layers, percent, steps_of_training
from torch_separable.report.engines import engine_cases, engine_problems, roof
from torch_separable.report.quantization import quantized_network
from torch_separable.report.read import RunFiles, read_run

_T = TypeVar("_T")


@dataclass(frozen=True)
class Page:
    """The page of a run.

    Attributes:
        html: the document.
        problems: one sentence per section that is missing; the page lists them, too.
    """

    html: str
    problems: tuple[str, ...]

    def write(self, path: str | Path) -> Path:
        """Write the file atomically and return its path."""
        write_text(path, self.html)
        return Path(path)


def write_report(run: Path, path: Path | None = None) -> Path:
    """Write the page of a run directory, by default ``index.html`` in it, and return its path.

    Raises:
        SeparableError: the folder is not a run directory, or the file cannot be written.
    """
    return build_page(read_run(run)).write(path or run / run_directory.PAGE)


def build_page(run: RunFiles) -> Page:
    """Return the page of a run. Text from models and files is escaped; equal runs give identical pages."""
    problems = list(run.problems)

    def attempt(what: str, make: Callable[[], _T]) -> _T | None:
        """Return a section, or ``None`` with a problem if the documents lack its values."""
        try:
            return make()
        except MissingExtraError:
            raise
        except (SeparableError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            problems.append(f"{what} cannot be shown: {error}.")
            return None

    results = run.results
    measured = results.get("steps") is not None or results.get("kind") in ("demo", "convert", "distill")
    shown = attempt("The headline", lambda: headline(results, run.plan)) if measured else None
    by_layer = attempt("The layers", lambda: layers(run))
    points = attempt("The curve", lambda: curve(results)) or ()
    done = attempt("The training", lambda: epochs(run)) or ()
    between = attempt("The training's steps", lambda: steps_of_training(run, done)) or ()

    integer = attempt("The quantization", lambda: quantized_network(results))
    cases = attempt("The engines", lambda: engine_cases(results)) or ()
    under = attempt("The operations", lambda: roof(results))

    drawn: dict[str, Chart] = {}
    bundle = ""
    try:
        bundle = charts.script()
        wanted: dict[str, Callable[[], Chart | None]] = {
            "times": lambda: charts.times_chart(shown.times) if shown and shown.times else None,
            "shares": lambda: charts.shares_chart(by_layer) if by_layer else None,
            "accuracy": lambda: charts.accuracy_chart(shown, points) if shown else None,
            "layers": lambda: charts.layers_chart(by_layer) if by_layer else None,
            "roofline": lambda: charts.roofline_chart(under) if under else None,
            "loss": lambda: charts.training_chart(done, between, {"loss": "loss"}),
            "agreement": lambda: charts.training_chart(
                done, (), {"agreement": "agreement", "validation": "held-out accuracy"}, share=True
            ),
        }
        for name, make in wanted.items():
            chart = attempt(f"The chart of {name}", make)
            if chart is not None:
                drawn[name] = chart
    except MissingExtraError as missing:
        problems.append(f"The charts are not shown: {missing}.")

    scripts = [_source("page.js"), *([bundle] if drawn else [])]
    html = _environment().get_template("page.html.j2").render(
        title=_words(results.get("title")) or "A run of torch-separable",
        kind=_words(results.get("kind")),
        problems=problems,
        shown=shown,
        layers=by_layer,
        points=points,
        epochs=done,
        cases=cases,
        quantized=integer,
        absent=engine_problems(results),
        roof=under,
        charts=drawn,
        specs={name: chart.spec for name, chart in drawn.items()},
        commands=_commands(run),
        settings=_plain(run.config.get("settings")),
        machine=_plain(run.config.get("machine")),
        version=__version__,
        style=Markup(_source("page.css")),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'{_hash(script)}'" for script in scripts),
    )  # fmt: skip
    return Page(html, tuple(problems))


def _words(value: object) -> str:
    return value if isinstance(value, str) else ""


def _commands(run: RunFiles) -> list[str]:
    """Return the commands that repeat the run, in order."""
    listed = run.results.get("commands")
    commands = listed if listed and isinstance(listed, list) else [run.config.get("command")]
    return [command for command in commands if isinstance(command, str)]


def _plain(document: object) -> list[tuple[str, str]]:
    """Return the names and values that are set."""
    if not isinstance(document, dict):
        return []
    return [(str(name).replace("_", " "), _inline(value)) for name, value in document.items() if value is not None]


def _inline(value: object) -> str:
    """Format a value in one line, without its empty parts."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_inline(part)}" for name, part in value.items() if part not in (None, [], {}, ""))
    if isinstance(value, list):
        return ", ".join(map(_inline, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hash(script: str) -> str:
    """Return the script's hash for the content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


@cache
def _source(name: str) -> str:
    return (files("torch_separable.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("torch_separable.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["percent"] = percent
    environment.filters["short"] = lambda value: f"{value:.3g}"
    return environment
