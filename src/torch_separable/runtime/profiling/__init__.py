"""Profiling: time per operation, the machine's peak, and tuning of tile sizes."""
