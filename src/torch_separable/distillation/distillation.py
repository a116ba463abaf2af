"""Knowledge distillation: train a converted network to reproduce the outputs of the dense one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_separable._network.checks import as_network
from torch_separable._system.locking import sole_writer
from torch_separable.data.collect import collect_images
from torch_separable.distillation.config import DistillConfig
from torch_separable.distillation.preflight import check_data
from torch_separable.distillation.run import EpochRecord, Run
from torch_separable.errors import SeparableValueError


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    data: Any,
    config: DistillConfig | None = None,
    *,
    validation: Any = None,
    output_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    **settings: Any,
) -> nn.Module:
    """Train a converted network to reproduce the dense network's outputs.

    Neither network is changed: the function trains and returns a copy of the student. Settings, data and networks
    determine every optimizer step, so a killed run resumes from its last checkpoint and ends in the same weights. With
    several processes (``accelerate launch``) each computes its share of every batch; up to rounding the result is that
    of one process. Batch norms that use batch statistics are the exception: as in all data parallelism, they see the
    share of one process (running statistics are averaged over the processes).

    Args:
        student: the converted network; takes images (N, C, H, W), returns logits (N, classes) or an object with
            ``.logits``.
        teacher: the dense network, with outputs of the same shape. It runs in evaluation mode. ``None`` if
            ``logits_weight`` and ``feature_weight`` are 0: this is ordinary training on labels.
        data: training images: an `ImageData`, or a ``DataLoader``, a data set or a sequence of images or of (image,
            label), which is read into memory once; labels are used only if ``label_weight`` is above 0.
        config: the settings.
        validation: labelled images, given like ``data``, to evaluate on before training and after each epoch; the best
            weights are returned. Without validation images the last weights are returned (their moving average if
            ``ema_decay`` is above 0).
        output_dir: folder for ``best.safetensors`` (the returned weights), ``checkpoint.safetensors`` (the state to
            resume from), ``log.jsonl`` (one line per step and epoch) and ``settings.json``. All processes must see it.
        resume: whether to resume from a checkpoint in ``output_dir``; otherwise an existing one is overwritten.
        progress: whether to show a progress bar on a terminal after two seconds.
        on_epoch: called after each epoch in the main process.
        **settings: fields of ``DistillConfig`` by name, instead of ``config``.

    Returns:
        The trained copy in evaluation mode, on the student's device.

    Raises:
        SeparableError: the networks and the data do not match, the loss is no longer finite, a checkpoint in
            ``output_dir`` is damaged or belongs to another run, or another process is writing to ``output_dir``.
        MissingExtraError: accelerate (extra ``train``) is not installed.

    Example:
        >>> import torch
        >>> from torch_separable.data import ImageData
        >>> data = ImageData("noise", "train", torch.rand(64, 3, 8, 8))
        >>> def network():
        ...     return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5))
        >>> epochs = []
        >>> distilled = distill(network(), network(), data, epochs=8, batch_size=16, on_epoch=epochs.append)
        >>> epochs[-1].loss < epochs[0].loss
        True
    """
    if config is not None and settings:
        raise SeparableValueError(f"{next(iter(settings))} and config are both given: give settings or config")
    config = config or DistillConfig.from_dict(settings)
    data = collect_images(data, name="data")
    validation = None if validation is None else collect_images(validation, name="validation")
    check_data(data, validation, config)
    for network, name in ((student, "student"), (teacher, "teacher")):
        if network is not None or name == "student":
            as_network(network, name)
    folder = None if output_dir is None else Path(output_dir).absolute()  # on_epoch may change the directory
    run = Run(student, teacher, data, validation=validation, config=config, folder=folder, on_epoch=on_epoch)
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        try:
            with nullcontext() if output_dir is None else sole_writer(output_dir):
                run.begin(resume=resume)
                return run.train(progress=progress)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"stopped at step {run.step} of {run.steps}; {run.how_to_resume()}")
            raise
