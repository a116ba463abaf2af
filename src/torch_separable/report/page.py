"""A run as one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from torch_separable import runs
from torch_separable.errors import SeparableError
from torch_separable.files import read_json, write_text
from torch_separable.report.facts import facts_of, promise_sentence
from torch_separable.report.figures import layers_figure, steps_figure


def write_report(run: Path, path: Path | None = None) -> Path:
    """Write the page of a run directory, by default ``index.html`` in it, and return its path.

    Raises:
        SeparableError: the run's results are missing or damaged.
        MissingExtraError: matplotlib (extra ``figures``) is not installed.
    """
    path = path or run / runs.PAGE
    results = read_json(run / runs.RESULTS, "a run's results")
    plan = read_json(run / runs.PLAN, "a plan")
    config = read_json(run / runs.CONFIG, "a run's settings")
    write_text(path, build_report(results, plan, config))
    return path


def build_report(results: dict[str, Any], plan: dict[str, Any], config: dict[str, Any]) -> str:
    """Return the page; every text from a model or a file is escaped.

    Args:
        results: of the run.
        plan: the conversion, layer by layer.
        config: settings, command and machine.

    Raises:
        SeparableError: something that the page shows is missing.
    """
    environment = Environment(
        loader=PackageLoader("torch_separable.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["percent"] = lambda value: f"{100 * value:.2f} %"
    try:
        facts = facts_of(results) if "steps" in results else None
        return environment.get_template("page.html.j2").render(
            results=results,
            plan=plan,
            config=config,
            facts=facts,
            promise="" if facts is None else promise_sentence(facts),
            steps_figure=Markup(steps_figure(results["steps"])) if facts else "",
            layers_figure=Markup(layers_figure(plan["layers"])),
        )
    except (UndefinedError, LookupError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise SeparableError(
            f"the run's files lack something that the page shows, or hold it otherwise: {error}. Run it again"
        ) from error
