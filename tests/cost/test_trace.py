"""What a network executes: every operator under the module that called it, once, and the network as it was before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_separable.cost import ConvSpec, Summary, analyze
from torch_separable.cost.trace import execute
from torch_separable.errors import SeparableError, SeparableValueError
from torch_separable.models import mobilenet_v1, mobilenet_v2, resnet20
from torch_separable.nn import DepthwiseSeparableConv1d, DepthwiseSeparableConv2d, DepthwiseSeparableConv3d


class Net(nn.Module):
    """Children by name, and a forward pass given as a function of the network and its inputs."""

    def __init__(self, forward: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self, *args, **kwargs)


def macs_by_name(counted: Summary) -> dict[str, int]:
    return {row.name: row.macs for row in counted.layers if row.macs}


@pytest.mark.parametrize(
    ("layer", "shape", "parameters", "macs", "formula"),
    [
        (nn.Conv1d(4, 6, 3), (2, 4, 9), 78, 2 * 7 * 72, "3·4·6 = 72 (+6 bias)"),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), (2, 4, 3, 3), 152, 2 * 9 * 144, "3·3·(4/2)·8 = 144 (+8 bias)"),
        (nn.Conv2d(4, 8, 3, stride=2, bias=False), (2, 4, 9, 9), 288, 2 * 16 * 288, "3·3·4·8 = 288"),
        (nn.Conv2d(4, 8, 3, dilation=2), (2, 4, 9, 9), 296, 2 * 25 * 288, "3·3·4·8 = 288 (+8 bias)"),
        (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 5, 5), 40, 2 * 9 * 36, "3·3·(4/4)·4 = 36 (+4 bias)"),
        (nn.Conv3d(2, 4, (1, 2, 3)), (2, 2, 4, 4, 4), 52, 2 * 24 * 48, "1·2·3·2·4 = 48 (+4 bias)"),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5), 78, 2 * 5 * 72, "3·4·6 = 72 (+6 bias)"),
        (
            nn.ConvTranspose2d(4, 6, 2, 2, groups=2, bias=False), (2, 4, 5, 5), 48, 2 * 25 * 48, "2·2·(4/2)·6 = 48",
        ),
        (nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 3, 3), 51, 2 * 27 * 48, "2·2·2·2·3 = 48 (+3 bias)"),
        (nn.Linear(6, 5), (2, 6), 35, 60, "6·5 = 30"),
        (nn.Linear(6, 5, bias=False), (2, 3, 6), 30, 180, "6·5 = 30"),
        (nn.Bilinear(4, 5, 6), ((3, 4), (3, 5)), 126, 3 * 6 * 25, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
def test_one_layer(layer: nn.Module, shape: Any, parameters: int, macs: int, formula: str) -> None:
    inputs = [torch.rand(s) for s in (shape if isinstance(shape[0], tuple) else [shape])]
    counted = analyze(layer, *inputs)
    (row,) = counted.layers
    assert (row.name, row.type, row.calls) == ("", type(layer).__name__, 1)
    assert (row.parameters, row.macs, row.flops, row.formula) == (parameters, macs, 2 * macs, formula)
    assert row.output_shape == tuple(layer(*inputs).shape)
    assert (counted.uncounted, counted.uncalled) == ({}, ())


def test_convolutions_are_recorded_with_their_arguments() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, stride=(3, 2), padding=1, output_padding=(2, 1), groups=2, dilation=2)
    trace = execute(layer, (torch.rand(1, 4, 5, 5),), {}).modules[""]
    assert trace.convs == [ConvSpec(4, 6, (3, 3), (3, 2), (1, 1), (2, 2), 2, True, True, (2, 1))]
    assert trace.convs[0].output_size((5, 5)) == trace.output_shapes[0][2:]


def test_row_of_a_convolution_has_its_kernel_stride_and_groups() -> None:
    (row,) = analyze(nn.Conv2d(4, 8, (3, 5), stride=(2, 1), groups=2), torch.rand(1, 4, 9, 9)).layers
    assert (row.kernel, row.stride, row.groups) == ((3, 5), (2, 1), 2)
    (linear,) = analyze(nn.Linear(3, 4), torch.rand(1, 3)).layers
    assert (linear.kernel, linear.stride, linear.groups) == ((), (), 0)


def test_bytes_are_those_of_operands_and_results() -> None:
    (row,) = analyze(nn.Conv2d(4, 8, 3), torch.rand(2, 4, 9, 9)).layers
    assert row.bytes == 4 * (2 * 4 * 81 + 296 + 2 * 8 * 49)
    assert row.intensity == row.flops / row.bytes
    (half,) = analyze(nn.Conv2d(4, 8, 3).half(), torch.rand(2, 4, 9, 9).half()).layers
    assert half.bytes == row.bytes / 2
    (relu,) = analyze(nn.ReLU(), torch.rand(7)).layers
    assert relu.bytes == 4 * (7 + 7)
    (view,) = analyze(nn.Flatten(), torch.rand(1, 2, 3)).layers
    assert (view.bytes, view.intensity) == (0, 0.0)


def test_functional_operators_belong_to_the_module_whose_forward_calls_them() -> None:
    inner = Net(lambda self, x: F.conv2d(self.conv(x), torch.ones(2, 8, 1, 1)), conv=nn.Conv2d(4, 8, 3))
    outer = Net(lambda self, x: self.inner(x).flatten(1) @ torch.ones(98, 3), inner=inner)
    counted = analyze(outer, torch.rand(1, 4, 9, 9))
    assert macs_by_name(counted) == {"": 98 * 3, "inner": 49 * 2 * 8, "inner.conv": 49 * 288}
    assert {row.name: row.formula for row in counted.layers} == {
        "": "", "inner": "1·1·8·2 = 16", "inner.conv": "3·3·4·8 = 288 (+8 bias)",
    }  # fmt: skip


def test_a_module_used_twice_has_one_row_with_both_calls() -> None:
    layer = nn.Linear(4, 4)
    counted = analyze(Net(lambda self, x: self.again(self.first(x)), first=layer, again=layer), torch.rand(1, 4))
    (row,) = counted.layers
    assert (row.name, row.calls, row.parameters, row.macs, row.formula) == ("first", 2, 20, 32, "4·4 = 16")
    assert counted.parameters == 20


def test_a_shared_weight_is_counted_once_and_used_twice() -> None:
    network = Net(
        lambda self, tokens: self.head(self.embed(tokens)), embed=nn.Embedding(10, 4), head=nn.Linear(4, 10, bias=False)
    )
    network.head.weight = network.embed.weight  # type: ignore[assignment, union-attr]
    counted = analyze(network, torch.zeros(2, 3, dtype=torch.long))
    assert {row.name: (row.parameters, row.macs) for row in counted.layers} == {"embed": (40, 0), "head": (0, 240)}
    assert counted.weight_bytes == 4 * 40


def test_a_module_that_calls_itself() -> None:
    def forward(self: nn.Module, x: Tensor, times: int = 3) -> Tensor:
        return self(self.layer(x), times - 1) if times else x  # type: ignore[operator]

    counted = analyze(Net(forward, layer=nn.Linear(4, 4)), torch.rand(1, 4))
    assert macs_by_name(counted) == {"layer": 48}


def test_operators_of_hooks_belong_to_their_module() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    network[0].register_forward_pre_hook(lambda module, args: args[0] @ torch.ones(4, 4))
    network[1].register_forward_hook(lambda module, args, out: out @ torch.ones(4, 4))
    assert macs_by_name(analyze(network, torch.rand(1, 4))) == {"0": 32, "1": 16}


def test_parts_compiled_by_pytorch_are_counted_operator_by_operator() -> None:
    compiled = torch.compile(nn.Sequential(nn.Linear(4, 5), nn.ReLU()), backend="eager")
    compiled(torch.rand(1, 4))
    assert macs_by_name(analyze(compiled, torch.rand(1, 4))) == {"0": 20}
    within = analyze(nn.Sequential(compiled, nn.Linear(5, 6)), torch.rand(1, 4))
    assert macs_by_name(within) == {"0._orig_mod.0": 20, "1": 30}


def test_counting_continues_after_a_caught_error() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        try:
            self.wrong(x)  # type: ignore[operator]
        except RuntimeError:
            x = x @ torch.ones(4, 4)
        return self.right(x)  # type: ignore[operator, no-any-return]

    network = Net(forward, wrong=nn.Sequential(nn.Linear(5, 5)), right=nn.Linear(4, 6))
    assert macs_by_name(analyze(network, torch.rand(1, 4))) == {"": 16, "right": 24}


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: mobilenet_v1(0.25, num_classes=10), (2, 3, 32, 32)),
        (lambda: mobilenet_v2(0.25, num_classes=10), (1, 3, 32, 32)),
        (resnet20, (1, 3, 16, 16)),
        (lambda: nn.Transformer(16, 2, 1, 1, 32, batch_first=True), ((1, 5, 16), (1, 4, 16))),
        (lambda: DepthwiseSeparableConv1d(4, 8, 3, norm_layer=nn.BatchNorm1d), (1, 4, 9)),
        (lambda: DepthwiseSeparableConv2d(4, 8, 3, depth_multiplier=2), (1, 4, 9, 9)),
        (lambda: DepthwiseSeparableConv3d(4, 8, 3, act_layer=nn.ReLU), (1, 4, 5, 5, 5)),
    ],
)
def test_rows_add_up_to_the_totals_and_each_parameter_is_counted_once(build: Any, shape: Any) -> None:
    network = build()
    for parameter in list(network.parameters())[::2]:
        parameter.requires_grad_(False)
    counted = analyze(network, *(torch.rand(s) for s in (shape if isinstance(shape[0], tuple) else [shape])))
    for total in ("parameters", "trainable", "macs", "flops", "bytes"):
        assert getattr(counted, total) == sum(getattr(row, total) for row in counted.layers) > 0
    assert counted.parameters == sum(p.numel() for p in network.parameters())
    assert counted.trainable == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert counted.weight_bytes == sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    assert counted.intensity == counted.flops / counted.bytes


def test_inputs_by_name_and_outputs_by_name() -> None:
    network = Net(lambda self, *, a, b: {"sum": self.layer(a) + b, "b": b}, layer=nn.Linear(3, 4))
    named = {"a": torch.rand(2, 3), "b": torch.rand(2, 4)}
    for counted in (analyze(network, named), analyze(network, **named)):
        assert counted.input_shapes == ((2, 3), (2, 4))
        assert counted.input_bytes == 4 * 14
        assert counted.macs == 24
        assert counted.layers[0].output_shape == (2, 4)


def test_modules_that_never_run_are_named() -> None:
    network = Net(lambda self, x: self.used(x), used=nn.Linear(4, 4), spare=nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    counted = analyze(network, torch.rand(1, 4))
    assert counted.uncalled == ("spare.0",)
    assert counted.parameters == 40
    assert "Never ran: spare.0" in str(counted)


def test_module_whose_parameter_another_reads_is_not_uncalled() -> None:
    network = Net(
        lambda self, x: F.linear(self.scales[0] * x, self.lender.weight),
        lender=nn.Linear(4, 4),
        scales=nn.ParameterList([torch.ones(4)]),
    )
    assert analyze(network, torch.rand(1, 4)).uncalled == ()


class Restless(nn.Module):
    """What a forward pass may change: statistics in place, buffers replaced or new, attributes, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.BatchNorm1d(4).eval()
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("cache", None)
        self.register_buffer("history", torch.full((2,), torch.nan))
        self.fail = self.built = False
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        if not self.built:
            self.register_buffer("table", x * 2)
            self.scale = nn.Parameter(torch.ones(4))
            self.late = nn.Linear(4, 4)
            self.built = True
        self.calls = self.calls + 1
        self.cache = x
        self.history[0] = 1.0  # type: ignore[index, operator]
        F.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)
        x = F.dropout(self.drop(self.frozen(self.norm(x))), 0.5, training=True)
        if self.fail:
            raise RuntimeError("on purpose")
        return x

    def eval(self) -> nn.Module:  # type: ignore[override]
        raise AssertionError("an eval() of the model's own may do more than set flags")


@contextmanager
def everything_stays(network: nn.Module) -> Iterator[None]:
    def seen() -> list[Any]:
        hooks = [
            len(store)
            for module in network.modules()
            for name, store in vars(module).items()
            if "hooks" in name and store is not None
        ]
        identities = [(name, id(tensor)) for name, tensor in (*network.named_parameters(), *network.named_buffers())]
        modes = [(type(module), module.training) for module in network.modules()]
        gradients = [p.grad is None for p in network.parameters()]
        switches = [torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()]
        return [hooks, identities, modes, gradients, switches, torch.random.get_rng_state().tolist()]

    def values() -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    before, values_before = seen(), values()
    yield
    assert seen() == before
    after = values()
    assert after.keys() == values_before.keys()
    for name, tensor in values_before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_as_it_was(fails: bool) -> None:
    network = Restless()
    network.fail = fails
    seen: list[str] = []
    network.norm.register_forward_hook(lambda *_: seen.append("hook"))
    images = torch.rand(8, 4)
    torch.backends.mha.set_fastpath_enabled(True)
    with everything_stays(network):
        if fails:
            with pytest.raises(SeparableError, match="on purpose"):
                analyze(network, images)
        else:
            analyze(network, images)
    assert seen == ["hook"]
    assert network.modes == [(False, False)]
    assert (network.norm.training, network.frozen.training, network.built) == (True, False, False)
    network.fail = False
    network(images)  # it still runs, and builds what it had built before
    assert network.built


def test_pending_backward_pass_still_runs() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    loss = network(torch.rand(8, 4)).sum()
    analyze(network, torch.rand(8, 4))
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())


def test_training_and_evaluation_mode_count_alike() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU())
    trained = analyze(network.train(), torch.rand(1, 3, 8, 8))
    assert trained == analyze(network.eval(), torch.rand(1, 3, 8, 8))


def message(network: nn.Module, *inputs: Any, **named: Any) -> str:
    with pytest.raises(SeparableError) as refusal:
        analyze(network, *inputs, **named)
    text = str(refusal.value)
    assert "\n" not in text
    return text


def test_an_input_of_the_wrong_shape_names_the_layer_and_what_it_was_given() -> None:
    text = message(mobilenet_v1(0.25), torch.rand(1, 4, 32, 32))
    assert text.startswith(
        "MobileNetV1 cannot run on input of shape (1, 4, 32, 32): layer 'stem.0' (Conv2d) was given [(1, 4, 32, 32)]: "
        "Given groups=1, weight of size [8, 3, 3, 3], expected input[1, 4, 32, 32] to have 3 channels"
    )
    deep = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 6)))
    assert "layer '1.1' (Linear) was given [(1, 4)]: mat1 and mat2 shapes cannot be multiplied" in message(
        deep, torch.rand(1, 3)
    )


def test_error_outside_of_layers_names_no_layer() -> None:
    inner = Net(lambda self, x: self.fine(x) @ torch.ones(9), fine=nn.Linear(3, 4))
    assert message(nn.Sequential(inner), torch.rand(2, 3)).startswith(
        "Sequential cannot run on input of shape (2, 3): layer '0' (Net) was given [(2, 3)]: size mismatch"
    )
    assert message(inner, torch.rand(2, 3)).startswith(
        "Net cannot run on input of shape (2, 3): forward: size mismatch"
    )


def test_caught_error_is_not_reported() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        try:
            self.wrong(x)  # type: ignore[operator]
        except RuntimeError:
            self.right(x)  # type: ignore[operator]
        raise KeyError("calibration")

    text = message(Net(forward, wrong=nn.Linear(5, 5), right=nn.Linear(4, 4)), torch.rand(1, 4))
    assert text == "Net cannot run on input of shape (1, 4): forward: 'calibration'"


def test_an_error_while_another_is_being_handled_names_its_own_layer() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4))
    try:
        raise ValueError("of the caller")
    except ValueError:
        assert "layer '1' (Linear) was given [(1, 4)]" in message(network, torch.rand(1, 3))


def test_an_error_of_a_hook_names_its_layer() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))

    def refuse(*_: Any) -> None:
        raise ArithmeticError("refused")

    handle = network[1].register_forward_pre_hook(refuse)
    assert message(network, torch.rand(1, 3)).endswith("layer '1' (Linear) was given [(1, 3)]: refused")
    handle.remove()
    network[0].register_forward_hook(refuse)
    assert message(network, torch.rand(1, 3)).endswith("layer '0' (Linear) was given [(1, 3)]: refused")


def test_missing_and_unknown_inputs_are_named() -> None:
    assert "forward: " in message(nn.Linear(3, 3))
    assert "missing 1 required positional argument: 'input'" in message(nn.Linear(3, 3))
    assert "unexpected keyword argument 'images'" in message(nn.Linear(3, 3), images=torch.rand(1, 3))


def test_error_without_message_is_named_by_its_type() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        raise NotImplementedError

    assert message(Net(forward), torch.rand(2)) == "Net cannot run on input of shape (2,): forward: NotImplementedError"


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (lambda: nn.LazyLinear(3), "parameter weight has no shape yet (a lazy module): run the model once, then count"),
        (lambda: nn.Sequential(nn.LazyBatchNorm1d()), "parameter 0.weight has no shape yet"),
        (lambda: torch.jit.script(nn.Linear(3, 3)), "the model is scripted"),
        (lambda: nn.Sequential(torch.jit.script(nn.Linear(3, 3))), "layer '0' is scripted"),
        (lambda: torch.rand(3), "model is a Tensor: expected an nn.Module"),
        (lambda: nn.Linear, "model is a type: expected an nn.Module"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_unsupported_networks_are_refused(model: Callable[[], Any], text: str) -> None:
    with pytest.raises(SeparableError) as refusal:
        analyze(model(), torch.rand(1, 3))
    assert str(refusal.value).startswith(text)
    assert isinstance(refusal.value, SeparableValueError) == ("lazy" not in text and "no shape" not in text)


def test_embeddings_with_max_norm_are_restored() -> None:
    network = nn.Embedding(10, 4, max_norm=1.0)
    with everything_stays(network):
        analyze(network, torch.arange(10))


def test_buffers_are_restored() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.inference_mode():
                self.register_buffer("made", torch.zeros(3))
            self.register_buffer("adjacency", torch.eye(3).to_sparse())
            self.register_buffer("wide", torch.full((1,), torch.nan).expand(3))
            self.register_buffer("grown", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                self.made.add_(1)
            self.grown.resize_(5).fill_(1)
            return torch.sparse.mm(self.adjacency, x)

    network = Buffered()
    analyze(network, torch.rand(3, 2))
    assert network.made.tolist() == [0] * 3
    assert network.grown.tolist() == [0, 0]


def test_views_without_is_view_move_no_bytes() -> None:
    plain, biased = (analyze(nn.Linear(64, 64, bias=bias), torch.rand(2, 8, 64)).bytes for bias in (False, True))
    assert biased - plain == 64 * 4
