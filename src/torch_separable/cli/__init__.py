"""The command ``separable``: a thin layer over the package's functions, with one file per command."""
