"""Run docs/tutorial.ipynb and keep its outputs: ``python docs/make_tutorial.py``. It takes half a minute."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from torch_separable._system.files import write_text

NOTEBOOK = Path(__file__).resolve().parent / "tutorial.ipynb"


def executed() -> NotebookNode:
    """The notebook with what its cells give today, and nothing of the machine and the time of day."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=600,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        # tqdm, which accelerate imports, asks every notebook for ipywidgets; no bar of it is shown here.
        client.execute(env={**os.environ, "IPYTHONDIR": folder, "PYTHONWARNINGS": "ignore:IProgress not found"})
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                del output.data["text/plain"]  # the same once more, as Python's repr
    return notebook


def main() -> None:
    """Write it."""
    write_text(NOTEBOOK, nbformat.writes(executed()) + "\n")
    print(f"{NOTEBOOK.name}: {NOTEBOOK.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
