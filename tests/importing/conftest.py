"""Keras is asked for its backend before anything imports it."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")
