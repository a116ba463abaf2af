"""Cost of convolutions, layers and networks: parameters, multiply-accumulates (MACs) and bytes."""

from torch_separable.cost.formulas import ConvSpec, separable_cost_ratio
from torch_separable.cost.network_summary import LayerCost, Summary, analyze, summary
from torch_separable.cost.render import Column
from torch_separable.cost.rules import RULES

__all__ = ["RULES", "Column", "ConvSpec", "LayerCost", "Summary", "analyze", "separable_cost_ratio", "summary"]
