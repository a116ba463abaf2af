"""Run code independently of the caller's PyTorch settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def default_settings() -> Iterator[None]:
    """Run the block with autocast and inference mode off, and with the default dtype float32 and device CPU.

    A network captured under autocast would contain its casts, and moments gathered under it would have three digits:
    what is computed must not depend on the context of the call. Also works as a decorator. PyTorch's default dtype is
    one setting of the whole process, so it is touched only if it is not float32.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     with default_settings():
        ...         (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device_type in _DEVICE_TYPES:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        default_dtype = torch.get_default_dtype()
        if default_dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, default_dtype)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
