"""Early layers depth first: the same tasks, each once, none before what it reads, and the same results."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torch_separable as ts
from torch_separable.runtime import available
from torch_separable.runtime.graph.fuse import fuse
from torch_separable.runtime.graph.lower import lower
from torch_separable.runtime.native.bindings import tasks
from torch_separable.runtime.native.instruction_sets import chosen_set
from torch_separable.runtime.native.operations import Kind, Operation, WindowParams
from torch_separable.runtime.planning.depth_first import depth_first, early_layers
from torch_separable.runtime.planning.schedule import schedule
from torch_separable.runtime.prepared import Prepared

pytestmark = [
    pytest.mark.skipif(not available(), reason="the package was built without its kernel library"),
    pytest.mark.usefixtures("running_threads"),
]


@pytest.fixture(autouse=True)
def small_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let maps of a quarter of a megabyte be large, whatever this processor's caches are."""
    monkeypatch.setattr("torch_separable.runtime.planning.depth_first.cache_bytes", lambda level: 2**19)
    monkeypatch.setattr("torch_separable.runtime.planning.depth_first._NEAR", 2**18)


class Branching(nn.Module):
    """Windows of several sizes, a residual that waits, pooling and channels that are joined by a sum."""

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        same = dilation * (kernel - 1) // 2
        self.stem = nn.Conv2d(3, channels, 3, stride=stride, padding=1)
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=same, dilation=dilation, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.dense = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, 5, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.pointwise(self.depthwise(x).relu())
        x = (self.dense(y) + x).relu()
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        return self.last(self.pointwise(x).relu())


def plans(
    network: nn.Module, images: Tensor, early: int, monkeypatch: pytest.MonkeyPatch, threads: int = 1
) -> Prepared:
    kernels = chosen_set()
    with torch.no_grad():
        program = fuse(lower(network.eval(), images))
    monkeypatch.setattr(
        "torch_separable.runtime.planning.schedule.early_layers", lambda *_: min(early, len(program.nodes))
    )
    return Prepared(schedule(program, kernels, threads), kernels, threads)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 20), kernel=st.sampled_from([3, 5]), stride=st.integers(1, 2), dilation=st.integers(1, 2),
    height=st.integers(16, 40), width=st.integers(16, 40), share=st.integers(1, 3), early=st.integers(1, 9),
    threads=st.integers(1, 3),
)  # fmt: skip
def test_results_are_the_same_to_the_last_bit(
    channels: int,
    kernel: int,
    stride: int,
    dilation: int,
    height: int,
    width: int,
    share: int,
    early: int,
    threads: int,
) -> None:
    torch.manual_seed(0)
    network = Branching(channels, kernel, stride, dilation)
    images = torch.randn(width, share * threads, 3, height).permute(1, 2, 3, 0)  # strides that no image has
    with pytest.MonkeyPatch.context() as monkeypatch:
        plain, interleaved = (plans(network, images, count, monkeypatch, threads) for count in (0, early))
    assert plain.plan.steps[0].task_lists is None
    assert interleaved.plan.steps[0].task_lists is not None
    assert len(interleaved.plan.steps[0].task_lists.ends) == threads
    assert torch.equal(interleaved.run(images), plain.run(images))


def test_outputs_that_are_wider_than_what_is_between_lie_where_each_share_ends() -> None:
    network, images = nn.Conv2d(3, 20, 3, padding=1), torch.randn(6, 3, 20, 20)
    kernels = chosen_set(torch.bfloat16)
    with pytest.MonkeyPatch.context() as monkeypatch, torch.no_grad():
        program = fuse(lower(network.eval(), images))
        results = []
        for early in (0, 1):
            monkeypatch.setattr("torch_separable.runtime.planning.schedule.early_layers", lambda *_, early=early: early)
            results.append(Prepared(schedule(program, kernels, 3), kernels, 3).run(images))
    assert torch.equal(*results)


def test_a_share_that_is_no_whole_number_of_images_leaves_layers_one_after_the_other() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        prepared = plans(Branching(8, 3, 1, 1), torch.randn(3, 3, 20, 20), 4, monkeypatch, threads=2)
    assert prepared.plan.steps[0].task_lists is None


def test_each_operation_is_told_once_whoever_computes_it() -> None:
    network, images = ts.models.mobilenet_v1().eval(), torch.zeros(2, 3, 224, 224)
    one, two = (ts.compile(network, images, threads=threads) for threads in (1, 2))
    task_lists = two._prepared(images).plan.steps[0].task_lists
    assert task_lists is not None
    early = task_lists.covered // 2
    told = [[(node.name, node.kind, node.flops) for node in c.explain(images, rounds=1).nodes] for c in (one, two)]
    assert told[0][:early] == told[1][:early]
    assert sum(flops for _, _, flops in told[0]) == sum(flops for _, _, flops in told[1])


def test_every_task_runs_once_and_layers_take_turns() -> None:
    network = ts.models.mobilenet_v1().eval()
    compiled = ts.compile(network, torch.zeros(1, 3, 224, 224), threads=1)
    (step,) = compiled._prepared(torch.zeros(1, 3, 224, 224)).plan.steps
    assert step.task_lists is not None
    ran: dict[int, list[int]] = {}
    for part in step.task_lists.parts:
        ran.setdefault(part.operation, []).extend(range(part.begin, part.end))
    early = step.operations[: step.task_lists.covered]
    assert ran == {i: list(range(tasks(operation))) for i, operation in enumerate(early)}
    # The first row of the third layer comes long before the last of the first.
    order = [part.operation for part in step.task_lists.parts]
    assert order.index(3) < len(order) - 1 - order[::-1].index(1)


def test_a_row_waits_for_the_rows_below_it_that_its_window_sees() -> None:
    rows = {"batch": 1, "in_height": 6, "out_height": 6, "out_width": 4}
    make = Operation(kind=Kind.IMPORT, **rows)
    read = Operation(kind=Kind.DEPTHWISE, **rows)
    read.depthwise.window = WindowParams(kernel_height=3, pad_height=1, stride_height=1, dilation_height=1)
    order = depth_first([make, read], [((), "a"), (("a",), "b")], lambda _: 6)
    assert [(part.operation, part.begin, part.end) for part in order] == [
        (0, 0, 2), (1, 0, 1), (0, 2, 3), (1, 1, 2), (0, 3, 4), (1, 2, 3), (0, 4, 5), (1, 3, 4), (0, 5, 6), (1, 4, 6),
    ]  # fmt: skip


def test_small_maps_and_large_weights_run_one_layer_after_the_other() -> None:
    def early(network: nn.Module, size: int) -> int:
        program = fuse(lower(network.eval(), torch.zeros(1, 3, size, size)))
        return early_layers(program, {name: shape[1] for name, shape in program.shapes.items()})

    with torch.no_grad():
        small = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1))
        assert early(small, 16) == 0
        assert early(small, 512) == 2
        assert early(nn.Sequential(nn.Conv2d(3, 2048, 9, padding=4)), 128) == 0
        mixed = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Softmax(1), nn.Conv2d(8, 8, 3, padding=1))
        assert early(mixed, 512) == 1
