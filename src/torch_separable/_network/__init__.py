"""Helpers for any nn.Module: check it, copy it, run it in evaluation mode, load and refresh its weights."""
