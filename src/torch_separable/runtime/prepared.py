"""Run a schedule: native calls over prepared operations, PyTorch for operators without a kernel."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_unflatten

from torch_separable._network.ambient import default_settings
from torch_separable.runtime.graph.ir import Node, Reference
from torch_separable.runtime.inputs import as_image
from torch_separable.runtime.native.bindings import parallel_for, run, tasks
from torch_separable.runtime.native.huge_pages import zeros
from torch_separable.runtime.native.instruction_sets import InstructionSet
from torch_separable.runtime.native.operations import Kind, Operation, Part, ThreadTaskLists
from torch_separable.runtime.planning.schedule import Schedule
from torch_separable.runtime.planning.weight_cache import without_packed_sources
from torch_separable.runtime.planning.workspace_views import padding_of, view_of
from torch_separable.runtime.profiling.breakdown import NodeTime, bytes_of, flops_of, kind_of

_CLOCK = 1e-4  # milliseconds: the resolution of the timer, as which shorter times are reported


class Prepared:
    """A schedule, and a workspace for each of the calls that run at the same time.

    It holds the packed weights of the schedule, and releases those that they were packed from.
    """

    def __init__(self, plan: Schedule, kernels: InstructionSet, threads: int) -> None:
        self.plan, self.kernels, self.threads = without_packed_sources(plan), kernels, threads
        # Threads of PyTorch spin for a while after each of its calls. Where such calls come between ours, a second pool
        # would compete with them for the same cores.
        calls_pytorch = any(step.call is not None for step in plan.steps)
        self.parallel = parallel_for() if calls_pytorch and threads > 1 else None
        self.idle: list[_Workspace] = []

    def run(self, x: Tensor) -> Any:
        """Return what the network returns."""
        x = as_image(x)
        workspace = self._take_workspace()
        try:
            results = [_own(value) if is_view else value for value, is_view in self._outputs(workspace, x)]
        finally:
            self.idle.append(workspace)
        structure = self.plan.program.structure
        return results[0] if structure.is_leaf() else tree_unflatten(results, structure)

    def run_into(self, out: Tensor, x: Tensor) -> None:
        """Write the only output to ``out``."""
        workspace = self._take_workspace()
        try:
            ((value, _),) = self._outputs(workspace, x)
            out.copy_(value)
        finally:
            self.idle.append(workspace)

    def _take_workspace(self) -> _Workspace:
        try:
            return self.idle.pop()
        except IndexError:
            return _Workspace(self.plan, self.kernels.dtype)

    def _outputs(self, workspace: _Workspace, x: Tensor) -> list[tuple[Any, bool]]:
        """Run all steps; return each output and whether it is a view of ``workspace``."""
        values: dict[str, Any] = {}
        workspace.bind_input(x)
        for step in self.plan.steps:
            self._step(workspace, step, x, values)
        program = self.plan.program
        layouts = program.output_layouts or ("",) * len(program.outputs)
        return [
            (values[name], False) if name in values else (workspace.outputs[name, layout], True)
            for name, layout in zip(program.outputs, layouts, strict=True)
        ]

    def _step(self, workspace: _Workspace, step: Any, x: Tensor, values: dict[str, Any]) -> None:
        if step.call is None:
            run(
                workspace.operations[id(step)],
                workspace.memory,
                x.data_ptr(),
                self.threads,
                step.task_lists,
                self.parallel,
            )
            return
        call = step.call
        # Operators that write into their operands get copies: the workspace's values have other readers.
        reads_views = isinstance(call.function, torch._ops.OpOverload) and not call.function._schema.is_mutable

        def argument(value: Any) -> Any:
            if not isinstance(value, Reference):
                return value
            if value.value in values:
                return values[value.value]
            view = view_of(workspace.memory, self.plan, value.value, value.layout)
            return view if reads_views and view.dtype == torch.float32 else _own(view)

        with default_settings(), torch.no_grad():
            args, kwargs = tree_map(
                argument, (call.args, dict(call.kwargs)), is_leaf=lambda leaf: isinstance(leaf, Reference)
            )
            result = call.function(*args, **kwargs)
        if call.output in self.plan.program.shapes:
            view_of(workspace.memory, self.plan, call.output, call.layout).copy_(result)
            padding_of(workspace.memory, self.plan, call.output).zero_()
        else:
            # A view of the workspace would change when its memory is used again.
            values[call.output] = tree_map(partial(_outside, workspace.memory), result)

    def profile(self, x: Tensor, rounds: int) -> list[NodeTime]:
        """Time each operation alone, minus an empty call. Operations that differ only in their images are one."""
        x = as_image(x)
        workspace = _Workspace(self.plan, self.kernels.dtype)
        workspace.bind_input(x)
        values: dict[str, Any] = {}
        calls: list[tuple[Node, list[Operation], Callable[[], None]]] = []
        for step in self.plan.steps:
            if step.call is not None:
                calls.append((step.call, [], partial(self._step, workspace, step, x, values)))
            for places in step.shard_groups:
                operations = [workspace.operations[id(step)][place] for place in places]
                alone = (Operation * len(operations))(*operations)
                shares = [[Part(place, 0, tasks(o))] for place, o in enumerate(operations)]
                lists = ThreadTaskLists.of(shares, len(shares)) if len(shares) > 1 else None
                arguments = (alone, workspace.memory, x.data_ptr(), self.threads, lists, self.parallel)
                calls.append((step.nodes[places[0]], operations, partial(run, *arguments)))
        nothing = partial(run, (Operation * 0)(), workspace.memory, x.data_ptr(), self.threads, None, self.parallel)
        timed: list[Callable[[], None]] = [nothing, *(call for _, _, call in calls)]
        times: list[list[float]] = [[] for _ in timed]
        for turn in range(rounds + 1):
            for call, spent in zip(timed, times, strict=True):
                start = time.perf_counter()
                call()
                if turn:
                    spent.append(1e3 * (time.perf_counter() - start))
        empty, *medians = map(statistics.median, times)
        return [
            NodeTime(
                node.name,
                self.plan.program.layers.get(node.name, ""),
                kind_of(node, operations[0] if operations else None),
                max(median - empty, _CLOCK),
                sum(flops_of(operation, node) for operation in operations),
                sum(bytes_of(operation) for operation in operations),
                any(operation.is_int8 for operation in operations),
            )
            for (node, operations, _), median in zip(calls, medians, strict=True)
        ]


def _outside(memory: Tensor, value: Any) -> Any:
    """A tensor that does not share the workspace's memory; anything else as it is."""
    if not isinstance(value, Tensor) or value.untyped_storage().data_ptr() != memory.untyped_storage().data_ptr():
        return value
    return value.clone()


def _own(view: Tensor) -> Tensor:
    """Copy a view's values to new memory: bfloat16 as float32, others as they are."""
    return view.float() if view.dtype == torch.bfloat16 else view.clone()


class _Workspace:
    """Memory for one call at a time, views of its results there, and operations whose strides of the input it sets."""

    def __init__(self, plan: Schedule, dtype: torch.dtype) -> None:
        with default_settings():  # calls from any context write into this memory
            self.memory = zeros(max(plan.size, 2), dtype)
        self.operations = {id(step): type(step.operations)(*step.operations) for step in plan.steps}
        self.imports = [o for step in self.operations.values() for o in step if o.kind == Kind.IMPORT]
        layouts = plan.program.output_layouts or ("",) * len(plan.program.outputs)
        self.outputs = {
            (name, layout): view_of(self.memory, plan, name, layout)
            for name, layout in zip(plan.program.outputs, layouts, strict=True)
            if name in plan.offsets
        }

    def bind_input(self, x: Tensor) -> None:
        """Let ``x`` be what is read next."""
        for operation in self.imports:
            operation.external.strides[:] = x.stride()
