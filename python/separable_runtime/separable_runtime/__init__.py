"""Run networks that torch-separable has compiled, with NumPy and without PyTorch."""

from separable_runtime.library import NetworkError
from separable_runtime.network import Array, Network, Plan

__all__ = ["Array", "Network", "NetworkError", "Plan"]
