"""Render ``Example:`` sections: the docstring parser of the site knows only ``Examples:``."""

from __future__ import annotations

import re

import griffe


class ExamplesExtension(griffe.Extension):
    """Renames the section, so that the reference shows examples as code."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Rename the section in one docstring; griffe calls this for each object."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
