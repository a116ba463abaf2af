"""The entry point, the list of commands, and the conversion of exceptions to messages and exit codes."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
import traceback
import warnings
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from torch_separable._system.text import printable
from torch_separable._version import __version__
from torch_separable.cli.bench import bench
from torch_separable.cli.convert import convert
from torch_separable.cli.demo import demo
from torch_separable.cli.distill import distill
from torch_separable.cli.evaluate import evaluate
from torch_separable.cli.explain import explain
from torch_separable.cli.export import export
from torch_separable.cli.frontier import frontier
from torch_separable.cli.quantize import quantize
from torch_separable.cli.report import report
from torch_separable.cli.summary import summary
from torch_separable.cli.tune import tune
from torch_separable.errors import SeparableError

BAD_INPUT, INTERRUPTED, BUG = 2, 130, 1
_PANEL_WIDTH = 78  # columns that the longest names of options and values need in the panels of help texts


class _Boundary(TyperGroup):
    """Prints exceptions of all commands as one line on standard error, preceded by the traceback with ``--debug``."""

    def invoke(self, ctx: Any) -> Any:
        stdout = sys.stdout
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning  # type: ignore[assignment]
                result = super().invoke(ctx)
            stdout.flush()  # raise BrokenPipeError here, not during interpreter shutdown
            return result
        except KeyboardInterrupt as interrupt:
            _say("interrupted; no incomplete file was left", *getattr(interrupt, "__notes__", ()))
            _json_error("interrupted", stdout)
            raise typer.Exit(INTERRUPTED) from interrupt
        except BrokenPipeError as error:
            # The reader, for example `head`, has closed the pipe. Redirect so that the flush at exit does not fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
            raise typer.Exit(0) from error
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):
                if hasattr(error, "format_message"):  # wrong usage, not an exit
                    _json_error(error.format_message(), stdout)
                raise
            if ctx.params["debug"]:
                traceback.print_exc()
            if isinstance(error, SeparableError):
                _say(f"error: {error}")
                _json_error(str(error), stdout)
                raise typer.Exit(BAD_INPUT) from error
            _say(f"unexpected {type(error).__name__}: {error}; --debug before the command shows the traceback")
            _json_error(f"unexpected {type(error).__name__}: {error}", stdout)
            raise typer.Exit(BUG) from error
        finally:
            sys.stdout = stdout


def _show_warning(message: Warning | str, *_: object) -> None:
    """Print a warning as one line; the place in the code that Python prints tells a user of the command nothing."""
    _say(f"warning: {message}")


def _say(*messages: str) -> None:
    for message in messages:
        print("separable:", *printable(message).splitlines(), file=sys.stderr)


def _json_error(message: str, stdout: TextIO) -> None:
    """Print the error as JSON if the command line asks for JSON, so that standard output is never empty."""
    if "--json" in sys.argv[1:]:
        print(json.dumps({"error": message}, indent=2), file=stdout)


app = typer.Typer(
    cls=_Boundary,
    name="separable",
    help="Count, explain, convert to, and distill depthwise separable convolutions in PyTorch networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"separable {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Count, explain, convert to, and distill depthwise separable convolutions in PyTorch networks."""


for command in (demo, summary, explain, convert, quantize, distill, evaluate, bench, frontier, tune, report, export):
    app.command()(command)


def _format_help(columns: int) -> None:
    """Choose the format of help texts: rich panels, or plain text where their columns would be truncated."""
    panels = columns >= _PANEL_WIDTH
    app.rich_markup_mode = "markdown" if panels else None
    for info in app.registered_commands:
        text = inspect.cleandoc(getattr(info.callback, "__doc__", None) or "")
        info.help = text if panels else text.replace("**", "")


def main() -> None:
    """Run the command line."""
    _format_help(shutil.get_terminal_size((80, 24)).columns)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # print "?" for characters that the terminal encoding lacks
    app()
