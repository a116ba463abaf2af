"""The sources say ``Example:``, of one; what parses docstrings for the site knows only ``Examples:``."""

from __future__ import annotations

import re

import griffe


class ExamplesExtension(griffe.Extension):
    """Reads the one as the other, so that examples stand in the reference as code."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Griffe calls it with each object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
