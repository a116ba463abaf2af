"""Evaluation of networks and knowledge distillation from a dense teacher to a separable student."""

from torch_separable.distillation.comparison import Comparison
from torch_separable.distillation.config import DistillConfig
from torch_separable.distillation.distillation import distill
from torch_separable.distillation.evaluation import Evaluation, evaluate
from torch_separable.distillation.run import EpochRecord

__all__ = [
    "Comparison",
    "DistillConfig",
    "EpochRecord",
    "Evaluation",
    "distill",
    "evaluate",
]
