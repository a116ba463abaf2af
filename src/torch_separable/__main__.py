"""``python -m torch_separable`` is the command ``separable``."""

from torch_separable.cli.main import main

if __name__ == "__main__":
    main()
