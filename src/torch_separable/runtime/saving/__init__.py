"""Compiled networks in one file, which the kernel library runs without Python or PyTorch."""
