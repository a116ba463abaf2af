"""Run docs/tutorial.ipynb and save its outputs: ``python docs/make_tutorial.py``. It takes half a minute."""

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
    """Return the notebook with today's outputs, without metadata of the machine or the time."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=600,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        # accelerate imports tqdm, which warns in notebooks without ipywidgets; no such bar is shown here.
        client.execute(env={**os.environ, "IPYTHONDIR": folder, "PYTHONWARNINGS": "ignore:IProgress not found"})
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                del output.data["text/plain"]  # repr of the same object
    return notebook


def main() -> None:
    """Write it."""
    write_text(NOTEBOOK, nbformat.writes(executed()) + "\n")
    print(f"{NOTEBOOK.name}: {NOTEBOOK.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
