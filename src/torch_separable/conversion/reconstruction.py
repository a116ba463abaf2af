"""Reconstruction: train the separable layers block by block against the dense network's activations, without labels.

After the closed-form fits, each block (the module that contains converted layers, such as a residual block) is trained
by Adam to return what the dense block returns. Its inputs are mixed at random from dense and converted activations, so
that it neither relies on the errors of earlier blocks nor ignores them (as in QDrop, arXiv 2203.05740). A short pass
over the whole network follows, against its outputs. Images that it does not train on decide when to stop, and whether a
block keeps its closed-form fit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_separable._console.progress import progress_bar
from torch_separable._network.all_outputs import floating_outputs
from torch_separable._network.outputs import evaluating
from torch_separable.conversion.calibration.forward import place_batch, run_batch, run_placed
from torch_separable.conversion.calibration.images import Batch, images_in
from torch_separable.conversion.calibration.outputs import NetworkOutputs
from torch_separable.nn.separable import SEPARABLE

_SEPARABLE: tuple[type[nn.Module], ...] = tuple(SEPARABLE.values())


@dataclass(frozen=True)
class Schedule:
    """How long and how fast reconstruction trains.

    Attributes:
        steps: of Adam for each block.
        learning_rate: of Adam for blocks; it falls to zero as a cosine.
        final_steps: of Adam for the whole network.
        final_learning_rate: of Adam for the whole network.
        batch_size: images of a step.
        check_every: steps between two measurements on the validation images.
        seed: random seed for batches and for mixing activations.
    """

    steps: int = 200
    learning_rate: float = 1e-3
    final_steps: int = 100
    final_learning_rate: float = 3e-4
    batch_size: int = 32
    check_every: int = 50
    seed: int = 0


def reconstruct_network(
    dense: nn.Module,
    converted: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    validation: Sequence[Batch],
    reference: NetworkOutputs,
    schedule: Schedule = Schedule(),
    *,
    progress: bool = False,
) -> nn.Module:
    """Return a copy of ``converted`` whose separable layers are trained against ``dense``; neither is changed.

    Args:
        dense: the dense network.
        converted: its converted copy.
        names: converted layers, in execution order.
        batches: images to train on.
        validation: images that decide when to stop.
        reference: the dense network's outputs, for variances and weights.
        schedule: steps and learning rates.
        progress: whether to show a progress bar on a terminal.
    """
    student = copy.deepcopy(converted)
    modules = dict(student.named_modules())
    blocks = [name for name in _blocks_of(names) if any(isinstance(m, _SEPARABLE) for m in modules[name].modules())]
    generator = torch.Generator().manual_seed(schedule.seed)
    with progress_bar("reconstructing", len(blocks) + 1, shown=progress) as advance:
        for name in blocks:
            _train_block(dense, student, name, batches, validation, schedule, generator)
            advance(name)
        _train_whole(dense, student, batches, validation, reference, schedule, generator)
        advance("the whole network")
    return student


def _blocks_of(names: Sequence[str]) -> list[str]:
    """Return the blocks of converted layers: the modules that contain them, or the layers of a plain sequence.

    Example:
        >>> _blocks_of(["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1"])
        ['conv1', 'layer1.0', 'layer1.1']
    """
    parents = [name.rpartition(".")[0] or name for name in names]
    return [p for p in dict.fromkeys(parents) if not any(p.startswith(f"{other}.") for other in parents)]


def _train_block(
    dense: nn.Module,
    student: nn.Module,
    name: str,
    batches: Sequence[Batch],
    validation: Sequence[Batch],
    schedule: Schedule,
    generator: torch.Generator,
) -> None:
    """Train one block on activations of the dense network and of the student with the blocks before it trained."""
    original = _activations(dense, name, [*batches, *validation])
    current = _activations(student, name, [*batches, *validation])
    if original is None or current is None or original[0].shape != current[0].shape:
        return  # called several times, or with several inputs: it keeps its closed-form fit
    split = len(original[0]) * sum(map(images_in, batches)) // sum(map(images_in, [*batches, *validation]))
    (inputs, targets), converted_inputs = original, current[0]
    variance = targets[:split].var(0, unbiased=False).mean().clamp_min(1e-12)
    block = student.get_submodule(name)

    def loss() -> Tensor:
        chosen = torch.randint(split, (schedule.batch_size,), generator=generator)
        mixed = torch.rand(len(chosen), *[1] * (inputs.dim() - 1), generator=generator) < 0.5
        given = torch.where(mixed, inputs[chosen], converted_inputs[chosen])
        squared: Tensor = (block(_like(block, given)).float().cpu() - targets[chosen]).square()
        return squared.mean() / variance

    def error() -> float:
        parts = zip(converted_inputs[split:].split(64), targets[split:].split(64), strict=True)
        squared = [(block(_like(block, x)).float().cpu() - t).square().sum() for x, t in parts]
        return float(torch.stack(squared).sum() / targets[split:].numel() / variance)

    _descend(block, loss, error, schedule.steps, schedule.learning_rate, schedule.check_every)


def _train_whole(
    dense: nn.Module,
    student: nn.Module,
    batches: Sequence[Batch],
    validation: Sequence[Batch],
    reference: NetworkOutputs,
    schedule: Schedule,
    generator: torch.Generator,
) -> None:
    """Train all separable layers together against the dense network's outputs."""
    with evaluating(dense), torch.no_grad():
        targets = [floating_outputs(run_batch(dense, batch)) for batch in batches]
    judge = reference.of_images(dense, validation)

    def loss() -> Tensor:
        i = int(torch.randint(len(batches), (1,), generator=generator))
        outputs = floating_outputs(run_placed(student, place_batch(student, batches[i])))
        losses = []
        for name, weight in reference.weights.items():
            finite = targets[i][name].isfinite()
            squared = (outputs[name] - targets[i][name]).square()[finite]
            losses.append(weight * squared.mean() / reference.variances[name])
        return torch.stack(losses).sum()

    def error() -> float:
        return judge.change(judge.of_images(student, validation).values)

    _descend(student, loss, error, schedule.final_steps, schedule.final_learning_rate, schedule.check_every)


def _descend(
    module: nn.Module,
    loss: Callable[[], Tensor],
    error: Callable[[], float],
    steps: int,
    learning_rate: float,
    check_every: int,
) -> None:
    """Train the separable layers of a module by Adam; leave the weights with the least validation error.

    The initial weights are one candidate, so the error does not rise.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _SEPARABLE)]
    trained = [parameter for layer in layers for parameter in layer.parameters()]
    with _only(module, trained), evaluating(module):
        with torch.no_grad():
            best, weights = error(), [parameter.detach().clone() for parameter in trained]
        optimizer = torch.optim.Adam(trained, learning_rate)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        for step in range(1, steps + 1):
            optimizer.zero_grad(set_to_none=True)
            with torch.enable_grad():
                loss().backward()
            optimizer.step()
            decay.step()
            if step % check_every == 0 or step == steps:
                with torch.no_grad():
                    now = error()
                if now < best:
                    best, weights = now, [parameter.detach().clone() for parameter in trained]
        with torch.no_grad():
            for parameter, value in zip(trained, weights, strict=True):
                parameter.copy_(value)


@contextmanager
def _only(module: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients reach only the given parameters; remove gradients and restore ``requires_grad`` afterwards."""
    before = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        module.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, requires_grad in before:
            parameter.grad = None
            parameter.requires_grad_(requires_grad)


def _activations(model: nn.Module, name: str, batches: Sequence[Batch]) -> tuple[Tensor, Tensor] | None:
    """Return a module's inputs and outputs over all batches; ``None`` unless each pass calls it once on one tensor."""
    seen: list[tuple[Any, Any]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        seen.append((args[0] if len(args) == 1 and not kwargs else None, output))

    handle = model.get_submodule(name).register_forward_hook(note, with_kwargs=True)
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                run_batch(model, batch)
    finally:
        handle.remove()
    if len(seen) != len(batches) or not all(isinstance(x, Tensor) and isinstance(y, Tensor) for x, y in seen):
        return None
    inputs, outputs = ([pair[i].float().cpu() for pair in seen] for i in (0, 1))
    if len({x.shape[1:] for x in inputs}) > 1 or any(len(x) != len(y) for x, y in zip(inputs, outputs, strict=True)):
        return None
    return torch.cat(inputs), torch.cat(outputs)


def _like(module: nn.Module, tensor: Tensor) -> Tensor:
    return tensor.to(next(module.parameters()))
