"""Values in a workspace as PyTorch tensors, without a copy."""

from __future__ import annotations

import torch
from torch import Tensor

from torch_separable.runtime.planning.schedule import Schedule


def view_of(workspace: Tensor, schedule: Schedule, name: str, layout: str = "") -> Tensor:
    """Return a view of a value in the workspace, in a layout of ``arrangement.LAYOUTS``."""
    n, c, h, w = schedule.program.shapes[name]
    stride, offset = schedule.strides[name], workspace.storage_offset() + schedule.offsets[name]
    if name in schedule.program.quantized:
        workspace = workspace.view(torch.uint8)
        offset = workspace.storage_offset() + schedule.offsets[name]
    elif name in schedule.wide:
        workspace, offset = workspace.view(torch.float32), offset // 2
    pixels = torch.as_strided(workspace, (n, c, h, w), (h * w * stride, 1, w * stride, stride), offset)
    match layout or ("NC" if name in schedule.program.vectors else "NCHW"):
        case "NC":
            return pixels[:, :, 0, 0]
        case "NHWC":
            return pixels.permute(0, 2, 3, 1)
        case "NLC":
            return pixels.flatten(2).transpose(1, 2)
        case "NCL":
            return pixels.flatten(2)
        case _:
            return pixels


def padding_of(workspace: Tensor, schedule: Schedule, name: str) -> Tensor:
    """Return a view of a value's padding channels; kernels multiply them by zero, so they must be finite."""
    n, c, h, w = schedule.program.shapes[name]
    if name in schedule.program.quantized:
        workspace = workspace.view(torch.uint8)
    stride, offset = schedule.strides[name], workspace.storage_offset() + schedule.offsets[name]
    more = schedule.padded[name] - c
    return torch.as_strided(workspace, (n * h * w, more), (stride, 1), offset + c)
