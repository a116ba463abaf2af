"""Distillation: the student learns from the dense network what conversion cost it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torch_separable._network.checks import as_network
from torch_separable._system.locking import sole_writer
from torch_separable.data.image_data import ImageData
from torch_separable.distillation.config import DistillConfig
from torch_separable.distillation.preflight import check_data
from torch_separable.distillation.run import EpochRecord, Run
from torch_separable.errors import SeparableValueError


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    data: ImageData,
    config: DistillConfig | None = None,
    *,
    validation: ImageData | None = None,
    output_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    **settings: Any,
) -> nn.Module:
    """Train a converted network to give the dense network's outputs.

    Neither network is changed: a copy of the student is trained and returned. Everything that the optimizer sees
    follows from the settings, the data and the networks, so a run that was killed goes on from its last checkpoint as
    if nothing had happened. With several processes (``accelerate launch``) each computes its share of every batch, and
    the run takes the course of one process up to rounding; except that batch norms normalise by the statistics of
    a process's share, as everywhere in data parallelism (the running ones are averaged over the processes).

    Args:
        student: the converted network; takes images (n, C, H, W), returns logits (n, classes), or an object with
            ``.logits``.
        teacher: the dense network, with outputs of the same shape. It runs in evaluation mode. ``None`` where
            ``logits_weight`` and ``feature_weight`` are 0: then this is ordinary training on labels.
        data: images to train on; labels are used only where ``label_weight`` is above 0.
        config: the settings.
        validation: labelled images, tried before the first epoch and after each; the weights that did best are
            returned. Without any, the last weights are (their running mean, where ``ema_decay`` is above 0).
        output_dir: folder for ``best.safetensors`` (the weights that are returned), ``checkpoint.safetensors`` (the
            state to go on from), ``log.jsonl`` (a line for each step and epoch) and ``settings.json``. With several
            processes, each must see it.
        resume: whether to go on from the checkpoint in ``output_dir``, if there is one; otherwise it is overwritten.
        progress: whether a bar may appear on a terminal after two seconds.
        on_epoch: called after each epoch, in the main process.
        **settings: fields of ``DistillConfig`` by name, instead of ``config``.

    Returns:
        The trained copy, in evaluation mode, on the device where the student is.

    Raises:
        SeparableError: networks and data do not fit each other, the loss is no longer finite, or a checkpoint in
            ``output_dir`` is damaged or of another run, or another process is writing there.
        MissingExtraError: accelerate (extra ``train``) is not installed.

    Example:
        >>> import torch
        >>> from torch_separable.distillation import ImageData, distill
        >>> data = ImageData("noise", "train", torch.rand(64, 3, 8, 8))
        >>> def network():
        ...     return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5))
        >>> epochs = []
        >>> distilled = distill(network(), network(), data, epochs=8, batch_size=16, on_epoch=epochs.append)
        >>> epochs[-1].loss < epochs[0].loss
        True
    """
    if config is not None and settings:
        raise SeparableValueError(f"{next(iter(settings))} is given beside config: give either settings, or config")
    config = config or DistillConfig.from_dict(settings)
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
            interrupt.add_note(f"stopped at step {run.step} of {run.steps}; {run.how_to_go_on()}")
            raise
