"""One distillation run: the training loop, evaluation after each epoch, checkpoints and the log."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable._console.progress import Advance, progress_bar
from torch_separable._network.checks import device_of
from torch_separable._network.copying import copied
from torch_separable._network.outputs import logits_of, predictions
from torch_separable._network.weights_file import load_weights, save_weights
from torch_separable._system.files import write_json
from torch_separable._version import __version__
from torch_separable.data.augmentation import Augmentation, derive_seed
from torch_separable.data.image_data import UNLABELLED, ImageData
from torch_separable.distillation.checkpoint import Checkpoint, describe_network, optimizer_state, restore_optimizer
from torch_separable.distillation.config import DistillConfig
from torch_separable.distillation.evaluation import Evaluation, evaluate, evaluation_of
from torch_separable.distillation.losses import feature_distance, logits_divergence, matched_features, watching
from torch_separable.distillation.optimizer import make_average, make_optimizer, make_scheduler
from torch_separable.distillation.preflight import check_networks, layout_for
from torch_separable.distillation.processes import shared, start_accelerator
from torch_separable.distillation.training_log import append_record, keep_records
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.nn.rank_by_rank import rank_by_rank

_CHECKPOINT_SECONDS = 60.0  # a killed run loses at most this much work, even if a step takes seconds
CHECKPOINT, BEST, LOG, SETTINGS = "checkpoint.safetensors", "best.safetensors", "log.jsonl", "settings.json"


@dataclass(frozen=True)
class EpochRecord:
    """The result of one epoch.

    Attributes:
        epoch: completed epochs; 0 is the student before training.
        step: completed optimizer steps.
        loss: mean over the epoch's images; ``None`` for epoch 0.
        agreement: share of the epoch's images for which the student predicts the teacher's class (without a teacher,
            the label); ``None`` for epoch 0.
        learning_rate: learning rate of the next step.
        seconds: duration of the epoch in this process.
        validation: result on the validation images; ``None`` without validation images.
    """

    epoch: int
    step: int
    loss: float | None
    agreement: float | None
    learning_rate: float
    seconds: float
    validation: Evaluation | None

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch}"]
        if self.loss is not None and self.agreement is not None:
            parts += [f"loss {self.loss:.4f}", f"agreement {100 * self.agreement:.1f} %"]
        if self.validation is not None:
            parts.append(f"validation {100 * self.validation.accuracy:.2f} % of {self.validation.count}")
        return "  ".join([*parts, f"{self.seconds:.1f} s"])

    def to_dict(self) -> dict[str, Any]:
        """Return the record by name, as JSON types."""
        validation = self.validation.to_dict() if self.validation else None
        return {"kind": "epoch", **vars(self), "validation": validation}


class Run:
    """The state of a distillation in progress: networks, optimizer, position, best result."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        data: ImageData,
        *,
        validation: ImageData | None,
        config: DistillConfig,
        folder: Path | None,
        on_epoch: Callable[[EpochRecord], None] | None,
    ) -> None:
        self.accelerator = start_accelerator()
        self.device: torch.device = self.accelerator.device
        self.home = device_of(student)
        self.data, self.validation, self.config = data, validation, config
        self.folder, self.on_epoch = folder, on_epoch
        self.out = folder if self.accelerator.is_main_process else None  # only one process writes
        self.identity = {
            "settings": config.to_dict(),
            "data": data.describe(),
            "validation": None if validation is None else validation.describe(),
            "student": describe_network(student),
        }
        if teacher is not None and config.needs_teacher:
            self.identity["teacher"] = describe_network(teacher)
        self.layout = layout_for([network for network in (student, teacher) if network is not None], data)
        self.student = _moved(copied(student), self.device, self.layout)
        # Decide by the student as given: a checkpoint that is restored later holds statistics of this run's images.
        self.frozen = [m for m in self.student.modules() if config.frozen_norms and _has_statistics(m)]
        self.teacher: nn.Module | None = None
        self.features: tuple[str, ...] = ()
        if teacher is not None and config.needs_teacher:
            self.teacher = _moved(copied(teacher), self.device, self.layout)
            self.teacher.eval().requires_grad_(False)
            if config.feature_weight:
                self.features = matched_features(student, teacher, config.features)
        check_networks(self.student, self.teacher, data, config, self.features, self.device)
        self.model = shared(self.accelerator, self.student)
        self.optimizer = make_optimizer(self.student, config)
        self.average = make_average(self.student, config.ema_decay) if config.ema_decay else None
        self.augment = Augmentation(config.augment, config.seed)

        self.batch_size = min(config.batch_size, len(data))
        share = self.accelerator.num_processes * config.gradient_accumulation
        if self.batch_size < share:
            raise SeparableValueError(
                f"a batch of {self.batch_size} images is too small for {self.accelerator.num_processes} processes with "
                f"gradient_accumulation={config.gradient_accumulation}: at least {share} images are needed"
            )
        self.steps_per_epoch = len(data) // self.batch_size
        self.steps = config.epochs * self.steps_per_epoch
        if config.max_steps is not None:
            self.steps = min(self.steps, config.max_steps)
        self.step = 0
        self.saved_step: int | None = None
        self.saved_at = time.monotonic()
        self.sums = _Sums()
        self.best: Evaluation | None = None
        self.best_state: dict[str, Tensor] | None = None
        self.ours: Mapping[str, Tensor] = {}
        self.theirs: Mapping[str, Tensor] = {}

    @property
    def candidate(self) -> nn.Module:
        """The network to evaluate and return: the moving average of the weights if there is one, else the student."""
        return self.student if self.average is None else self.average.module

    @property
    def selects_best(self) -> bool:
        """Whether the validation images select the returned weights; otherwise these are the last."""
        return self.validation is not None and self.config.keep == "best"

    def begin(self, *, resume: bool) -> None:
        """Restore the checkpoint if there is one; otherwise evaluate the student and start the log."""
        if self.folder is not None:
            if self.out is not None:
                _tidy(self.out, keep_checkpoint=resume)
            self.accelerator.wait_for_everyone()
            if (self.folder / CHECKPOINT).exists():
                self._restore(self.folder / CHECKPOINT)
        self.scheduler = make_scheduler(self.optimizer, self.config, self.steps, self.step)
        if self.out is not None:
            versions = {"torch_separable": __version__, "torch": torch.__version__}
            processes = self.accelerator.num_processes
            write_json(self.out / SETTINGS, {**versions, "processes": processes, **self.identity})
            keep_records(self.out / LOG, self.step if self.step else -1)
        if self.step == 0 and self.validation is not None:
            self._finish_epoch(0, started=time.monotonic())

    def train(self, *, progress: bool) -> nn.Module:
        """Run the remaining steps and return the network with the selected weights."""
        shown = progress and bool(self.accelerator.is_main_process)
        with ExitStack() as stack:
            advance = stack.enter_context(progress_bar("distilling", self.steps, shown=shown, done=self.step))
            for network in {self.student, self.candidate}:
                stack.enter_context(rank_by_rank(network))
            self.ours = stack.enter_context(watching(self.student, self.features))
            if self.teacher is not None:
                self.theirs = stack.enter_context(watching(self.teacher, self.features))
            self.student.train()
            for module in self.frozen:
                module.training = False
            while self.step < self.steps:
                self._epoch(advance)
        if not self.selects_best:
            self._keep_best()
        assert self.best_state is not None
        self.accelerator.wait_for_everyone()
        self.student.zero_grad(set_to_none=True)
        self.student.load_state_dict(self.best_state)
        return _moved(self.student, self.home, torch.contiguous_format).eval()

    def _epoch(self, advance: Advance) -> None:
        config, started = self.config, time.monotonic()
        epoch = self.step // self.steps_per_epoch
        order = torch.randperm(len(self.data), generator=torch.Generator().manual_seed(derive_seed(config.seed, epoch)))
        first = self.step - epoch * self.steps_per_epoch
        for batch in torch.split(order, self.batch_size)[first : self.steps_per_epoch]:
            loss, agreement = self._step(batch)
            self.step += 1
            self.sums.add(loss, agreement)
            rate = float(self.scheduler.get_last_lr()[0])
            if self.out is not None:
                record = {"kind": "step", "step": self.step, "epoch": epoch, "loss": loss, "agreement": agreement}
                append_record(self.out / LOG, {**record, "learning_rate": rate})
            note = (
                f"epoch {epoch + 1}/{config.epochs}  loss {loss:.4f}  agreement {100 * agreement:.1f} %  lr {rate:.1e}"
            )
            advance(note + (f"  best {100 * self.best.accuracy:.2f} %" if self.best else ""))
            if self.step == self.steps:
                break
            due = self.step % config.checkpoint_every == 0 or time.monotonic() - self.saved_at > _CHECKPOINT_SECONDS
            if due and self.step % self.steps_per_epoch:
                self._save()
        self._finish_epoch(epoch + 1, started)
        self._save()

    def _step(self, batch: Tensor) -> tuple[float, float]:
        """Run one optimizer step on the images ``batch`` (indices); return the mean loss and agreement over it."""
        accelerator, size = self.accelerator, len(batch)
        torch.manual_seed(derive_seed(self.config.seed, self.step, accelerator.process_index, 0))  # for dropout
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(2, device=self.device)
        mine = torch.arange(size).tensor_split(accelerator.num_processes)[accelerator.process_index]
        parts = mine.tensor_split(self.config.gradient_accumulation)
        for part in parts:
            with nullcontext() if part is parts[-1] else accelerator.no_sync(self.model):
                losses, agreement = self._losses(batch, part)
                # DDP averages gradients over the processes, and the loss is a sum over the batch: scale by the number
                # of processes. accelerator.backward would also divide by the accumulation steps of its own launcher.
                (losses.sum() * (accelerator.num_processes / size)).backward()
            sums += torch.stack([losses.detach().sum(), agreement.sum()])
        loss, agreed = (accelerator.reduce(sums, "sum") / size).tolist()
        if not math.isfinite(loss):
            raise SeparableError(
                f"the loss became {loss} at step {self.step + 1} of {self.steps} (learning_rate="
                f"{self.config.learning_rate:g}, warmup={self.config.warmup:g}): a lower learning_rate or a longer "
                f"warmup makes smaller steps; {self.how_to_resume()}"
            )
        self.optimizer.step()
        self.scheduler.step()
        self._average_buffers()
        if self.average is not None:
            self.average.update_parameters(self.student)
        return loss, agreed

    def _losses(self, batch: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and agreement of each image at ``positions`` of ``batch``, both (N,)."""
        config = self.config
        images, labels = self._take(batch, positions), self._labels(batch, positions)
        mixing = self.augment.mixing(self.step, positions, len(batch))
        if mixing is not None:
            partners, share = mixing[0], mixing[1].to(self.device)
            weight = share.view(-1, 1, 1, 1)
            images = weight * images + (1 - weight) * self._take(batch, partners)
        images = images.contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            ours, theirs = logits_of(self.model(images)), None
            if self.teacher is not None:
                with torch.no_grad():  # not inference_mode: the loss saves these tensors for its backward pass
                    theirs = logits_of(self.teacher(images))
        losses = torch.zeros(len(images), device=self.device)
        if theirs is not None and config.logits_weight:
            losses = losses + config.logits_weight * logits_divergence(ours, theirs, config.temperature)
        if theirs is not None and config.feature_weight:
            pairs = [[seen[name] for name in self.features] for seen in (self.ours, self.theirs)]
            losses = losses + config.feature_weight * feature_distance(*pairs)
        if config.label_weight:
            wrong = F.cross_entropy(ours.float(), labels, reduction="none")
            if mixing is not None:
                other = F.cross_entropy(ours.float(), self._labels(batch, partners), reduction="none")
                wrong = share * wrong + (1 - share) * other
            losses = losses + config.label_weight * wrong
        if self.accelerator.num_processes > 1 and not (config.logits_weight or config.label_weight):
            # DDP waits for the gradient of every parameter, including those that the features do not depend on.
            losses = losses + 0 * ours.float().flatten(1).sum(1)
        named = labels if theirs is None else predictions(theirs)
        agreement = (predictions(ours) == named).float().reshape(len(images), -1).mean(1)
        return losses, agreement

    def _take(self, batch: Tensor, positions: Tensor) -> Tensor:
        """Return the augmented and normalised images at ``positions`` of ``batch``."""
        raw = self.data.images[batch[positions]].to(self.device)
        return self.data.normalise(self.augment(raw, self.step, positions, len(batch)))

    def _labels(self, batch: Tensor, positions: Tensor) -> Tensor:
        if self.data.labels is None:
            return torch.full((len(positions),), UNLABELLED, device=self.device)
        return self.data.labels[batch[positions]].to(self.device)

    def _average_buffers(self) -> None:
        """Average the running statistics of batch norms over the processes, each of which saw its own share."""
        buffers = [buffer for buffer in self.student.buffers() if buffer.is_floating_point()]
        if self.accelerator.num_processes == 1 or not buffers:
            return
        means = self.accelerator.reduce(torch.cat([buffer.flatten() for buffer in buffers]), "mean")
        for buffer, mean in zip(buffers, torch.split(means, [buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))

    def _finish_epoch(self, epoch: int, started: float) -> None:
        """Validate, store the weights if they are the best so far, log, call ``on_epoch``, and reset the sums."""
        self._check_weights()
        validation = None
        if self.validation is not None:
            validation = self._validate(self.validation)
            if self.best is None or (validation.accuracy, -validation.loss) > (self.best.accuracy, -self.best.loss):
                self.best = validation
                if self.selects_best:
                    self._keep_best()
        rate = float(self.scheduler.get_last_lr()[0])
        loss, agreement = self.sums.means()
        record = EpochRecord(epoch, self.step, loss, agreement, rate, time.monotonic() - started, validation)
        self.sums = _Sums()
        if self.out is not None:
            append_record(self.out / LOG, record.to_dict())
        if self.on_epoch is not None and self.accelerator.is_main_process:
            self.on_epoch(record)

    def _validate(self, data: ImageData) -> Evaluation:
        """Evaluate the candidate; each process takes its share of the images."""
        count, rank, processes = len(data), self.accelerator.process_index, self.accelerator.num_processes
        share = range(rank * count // processes, (rank + 1) * count // processes)
        total = torch.zeros(2, dtype=torch.float64)
        if share:
            mine = evaluate(self.candidate, data.subset(share), progress=False)
            total = torch.tensor([mine.correct, mine.loss * mine.count], dtype=torch.float64)
        if processes > 1:
            total = self.accelerator.reduce(total.float().to(self.device), "sum").double().cpu()
        return evaluation_of(total, count)

    def _keep_best(self) -> None:
        state = self.candidate.state_dict()
        self.best_state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
        if self.out is not None:
            save_weights(self.best_state, self.out / BEST)

    def _check_weights(self) -> None:
        """Raise if a weight is not finite, before the weights are evaluated or replace the last good checkpoint."""
        state = self.student.state_dict()
        infinite = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
        if infinite:
            raise SeparableError(
                f"{infinite[0]} became NaN or infinite by step {self.step} of {self.steps} (learning_rate="
                f"{self.config.learning_rate:g}): a lower learning_rate makes smaller steps; {self.how_to_resume()}"
            )

    def _save(self) -> None:
        self._check_weights()
        if self.out is not None:
            state = self.student.state_dict()
            tensors: dict[str, Mapping[str, Tensor]] = {"student": state, "optimizer": optimizer_state(self.optimizer)}
            if self.average is not None:
                tensors["ema"] = self.average.state_dict()
            numbers = {"step": self.step, "sums": vars(self.sums), "best": self.best and self.best.to_dict()}
            Checkpoint(self.identity, numbers, tensors).save(self.out / CHECKPOINT)
        self.saved_step, self.saved_at = self.step, time.monotonic()

    def _restore(self, path: Path) -> None:
        checkpoint = Checkpoint.load(path)
        checkpoint.check(self.identity, path)
        try:
            self.student.load_state_dict(dict(checkpoint.tensors["student"]))
            restore_optimizer(self.optimizer, checkpoint.tensors["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(dict(checkpoint.tensors["ema"]))
            self.step = self.saved_step = int(checkpoint.numbers["step"])
            self.sums = _Sums(**checkpoint.numbers["sums"])
            best = checkpoint.numbers["best"]
        except (KeyError, RuntimeError, TypeError, ValueError, IndexError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise SeparableError(f"{path} does not match this run: {first}; resume=False starts again") from error
        if best is not None and self.selects_best:
            kept = copy.deepcopy(self.candidate)
            load_weights(kept, path.parent / BEST)
            self.best = Evaluation(best["correct"], best["count"], best["loss"])
            self.best_state = {name: tensor.detach().cpu() for name, tensor in kept.state_dict().items()}

    def how_to_resume(self) -> str:
        """Return the part of a message that says which checkpoint there is."""
        if self.folder is None:
            return "there is no checkpoint, because output_dir was not given"
        if self.saved_step is None:
            return f"{self.folder} has no checkpoint yet"
        return f"{self.folder} has the checkpoint of step {self.saved_step}; repeat the call to resume from it"


@dataclass
class _Sums:
    """Sums over the steps of the current epoch."""

    loss: float = 0.0
    agreement: float = 0.0
    steps: int = 0

    def add(self, loss: float, agreement: float) -> None:
        self.loss += loss
        self.agreement += agreement
        self.steps += 1

    def means(self) -> tuple[float | None, float | None]:
        return (self.loss / self.steps, self.agreement / self.steps) if self.steps else (None, None)


def _moved(model: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    moved: nn.Module = model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    return moved


def _has_statistics(module: nn.Module) -> bool:
    """Whether a module is a batch norm whose running statistics differ from their initial values."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is None:
        return False
    assert module.running_var is not None
    return bool((module.running_mean != 0).any() or (module.running_var != 1).any())


def _tidy(folder: Path, *, keep_checkpoint: bool) -> None:
    """Create the folder, and remove its checkpoint unless ``keep_checkpoint``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not keep_checkpoint:
            (folder / CHECKPOINT).unlink(missing_ok=True)
    except OSError as error:
        raise SeparableError(f"cannot write into output_dir={folder}: {error.strerror or error}") from error
