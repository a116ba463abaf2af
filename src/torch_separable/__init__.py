"""Separable."""
