"""The command ``separable``: a thin layer over the package's own calls, one file a command."""
