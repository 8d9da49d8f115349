"""Parameters of modules: where they are found, what has two names, and what would silently train nothing."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
from devices import assert_same, host, placed, tensor

import minisimclr as ms
from minisimclr import Tensor
from minisimclr.module import Module
from minisimclr.nn import BatchNorm2d, Linear

RNG = np.random.default_rng(0)


def linear(rows: int = 2, columns: int = 2) -> Linear:
    return Linear(rows, columns, rng=RNG)


class Stack(Module):
    """Layers in a list, applied one after the other."""

    def __init__(self, *layers: Module) -> None:
        self.blocks = list(layers)

    def __call__(self, x: Any, train: bool = False) -> Any:
        for layer in self.blocks:
            x = layer(x, train)
        return x


class Tied(Module):
    """An embedding and its transpose: one matrix, two names."""

    def __init__(self) -> None:
        self.encode = linear(2, 3)
        self.again = self.encode.weight
        self.extra = linear(2, 3)

    def __call__(self, x: Any, train: bool = False) -> Any:
        return self.encode(x) @ self.again.T


# ── Found ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [list, tuple, lambda layers: OrderedDict(zip("ab", layers))])
def test_layers_in_a_list_a_tuple_or_a_dict_are_found(kind: Any) -> None:
    module = Module()
    module.blocks = kind([linear(), linear()])
    names = ("a", "b") if isinstance(module.blocks, dict) else ("0", "1")
    expected = [f"blocks.{name}.{p}" for name in names for p in ("weight", "bias")]
    assert [name for name, _ in module.named_parameters()] == expected
    assert list(module.state_dict()) == expected
    assert [prefix for prefix, _ in module.modules()] == ["", *(f"blocks.{name}." for name in names)]
    assert len(module.parameters()) == 4


def test_layers_in_lists_are_trained_saved_loaded_copied_and_moved() -> None:
    net = placed(Stack(linear(), BatchNorm2d(2), Stack(linear())))
    before = net.state_dict()
    assert list(before)[-2:] == ["blocks.2.blocks.0.weight", "blocks.2.blocks.0.bias"]
    x = tensor(RNG.standard_normal((4, 2)).astype(np.float32))
    optimizer = ms.SGD(net.parameters(), lr=0.1)
    (net(x, train=True) ** 2).sum().backward()
    optimizer.step()
    after = net.state_dict()
    assert all((before[name] != after[name]).any() for name in before)
    net.load_state_dict(before)
    for name, array in net.state_dict().items():
        assert_same(array, before[name])
    other = copy.deepcopy(net).astype(np.float64)
    assert {array.dtype for array in other.state_dict().values()} == {np.dtype(np.float64)}
    assert net.blocks[0].weight.dtype == np.float32  # type: ignore[attr-defined]
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_what_is_appended_or_put_in_its_place_later_is_found() -> None:
    net = Stack(linear())
    net.blocks.append(linear())
    net.heads = {}
    net.heads["z"] = linear(2, 1)
    assert len(net.parameters()) == 6
    net.blocks[0] = BatchNorm2d(2)
    assert list(net.state_dict())[:2] == ["blocks.0.weight", "blocks.0.bias"]
    assert len(net.parameters()) == 6


def test_parameters_in_a_list_are_found_and_arrays_in_it_are_not() -> None:
    module = Module()
    module.scales = [Tensor(np.ones(2), requires_grad=True), np.ones(2), 3]
    assert list(module.state_dict()) == ["scales.0"]
    module.load_state_dict({"scales.0": np.zeros(2)})
    assert_same(module.scales[0].data, [0.0, 0.0])


@pytest.mark.parametrize(
    "hidden",
    [lambda x: {x}, lambda x: frozenset([x]), lambda x: deque([x]), lambda x: np.array([x, None], dtype=object)],
)
def test_layers_where_they_would_not_be_found_are_refused(hidden: Any) -> None:
    module = Module()
    with pytest.raises(TypeError, match=r"^blocks: layers are not found in a \w+; use a list or a dict$"):
        module.blocks = hidden(linear())
    assert not hasattr(module, "blocks")
    module.names = {"a", "b"}  # no layers


def test_a_module_that_would_be_part_of_itself_is_refused_and_nothing_changes() -> None:
    """A layer that keeps its network as `self.parent`: the search for parameters would never end."""
    network, layer = Stack(linear()), Stack(linear())
    network.layer = layer
    for name, value in [("parent", network), ("parents", [network]), ("self", layer), ("by_name", {"it": network})]:
        with pytest.raises(ValueError, match="cannot be part of itself"):
            setattr(layer, name, value)
        assert name not in vars(layer)
    assert len(network.parameters()) == 4
    layer.shared = network.blocks[0]  # a layer in two places is no circle
    assert len(network.parameters()) == 4


def test_the_tree_shows_layers_in_lists_below_their_owner() -> None:
    net = Stack(linear(), Stack(linear(2, 1)))
    assert repr(net).splitlines() == [
        "Stack                                         9 parameters",
        "  blocks.0: Linear    weight (2,2), bias (2)  6",
        "  blocks.1: Stack                             3",
        "    blocks.0: Linear  weight (2,1), bias (1)  3",
    ]


def test_an_error_names_the_layer_of_a_list() -> None:
    net = placed(Stack(linear(), linear(3, 3)))
    with pytest.raises(ValueError, match=r"^Stack.blocks.1 takes \(N,3\), got \(4,2\)$"):
        net(tensor(np.ones((4, 2), np.float32)))


# ── Two names, one parameter ──────────────────────────────────────────────────────────────────────


def test_a_parameter_with_two_names_is_listed_once_and_saved_under_both() -> None:
    net = Tied()
    names = [name for name, _ in net.named_parameters()]
    assert names == ["again", "encode.bias", "extra.weight", "extra.bias"]  # an attribute stands before its children
    assert len(names) == len({id(p) for p in net.parameters()}) == 4
    assert {"again", "encode.weight"} <= net.state_dict().keys()
    assert repr(net).splitlines()[0].split() == ["Tied", "again", "(2,3)", "18", "parameters"]  # 6 + 3 and 6 + 3


@pytest.mark.parametrize("make", [ms.SGD, ms.LARS])
@pytest.mark.parametrize("named", ["by the module", "twice in the list"])
def test_a_parameter_with_two_names_is_stepped_once(make: Any, named: str) -> None:
    w = tensor(np.full((2, 2), 3.0), requires_grad=True)
    module = Module()
    module.a, module.b = w, [w]
    parameters = module.parameters() if named == "by the module" else [w, w]
    alone = tensor(np.full((2, 2), 3.0), requires_grad=True)
    for p, optimizer in ((w, make(parameters, lr=0.1)), (alone, make([alone], lr=0.1))):
        assert len(optimizer.velocity) == 1
        for _ in range(2):
            optimizer.zero_grad()
            (p * p).sum().backward()
            optimizer.step()
    assert_same(w.data, alone.data)


def test_a_state_is_loaded_into_a_parameter_with_two_names_and_refused_if_the_two_differ() -> None:
    net, other = Tied(), Tied()
    state = other.state_dict()
    net.load_state_dict(state)
    assert net.again is net.encode.weight
    assert_same(net.again.data, other.again.data)
    before = net.state_dict()
    state["again"] = state["again"] + 1
    with pytest.raises(ValueError, match=r"^load_state_dict: .* and .* are one, but differ in the state$"):
        net.load_state_dict(state)
    for name, array in net.state_dict().items():  # nothing was changed
        assert_same(array, before[name])


def test_a_layer_with_two_names_has_one_set_of_statistics() -> None:
    norm = BatchNorm2d(2)
    net = Stack(norm, norm)
    assert len(net.parameters()) == 2
    state = net.state_dict()
    assert len(state) == 8
    net.load_state_dict(state)
    state["blocks.1.running_mean"] = np.ones(2)
    with pytest.raises(ValueError, match=r"blocks.0.running_mean and blocks.1.running_mean are one"):
        net.load_state_dict(state)


def test_equal_arrays_of_two_layers_stay_two() -> None:
    zeros = np.zeros(2, np.float32)
    a, b, net = BatchNorm2d(2), BatchNorm2d(2), Module()
    a.running_mean = b.running_mean = zeros
    net.both = [a, b]
    state = net.state_dict()
    state["both.1.running_mean"] = np.ones(2)
    net.load_state_dict(state)
    assert_same(a.running_mean, zeros)
    assert_same(b.running_mean, zeros + 1)


@pytest.mark.host
def test_a_masked_state_is_refused() -> None:
    net = linear()
    state: dict[str, Any] = net.state_dict()
    state["bias"] = np.ma.masked_array(state["bias"], [True, False])
    with pytest.raises(TypeError, match="mask"):
        net.load_state_dict(state)


@pytest.mark.parametrize("dtype", [None, int, complex, "text", Tensor(1.0)])
def test_a_module_is_converted_to_floats_only(dtype: Any) -> None:
    with pytest.raises(TypeError, match="floating-point dtype"):
        linear().astype(dtype)


# ── What would train nothing ──────────────────────────────────────────────────────────────────────


def test_a_step_that_gives_the_name_another_tensor_is_refused() -> None:
    p = tensor(np.ones((2, 2)), requires_grad=True)
    (p * p).sum().backward()
    steps = {
        "+": lambda p: p.__iadd__(p.grad),
        "-": lambda p: p.__isub__(0.1 * p.grad),
        "*": lambda p: p.__imul__(0.9),
        "/": lambda p: p.__itruediv__(2.0),
        "@": lambda p: p.__imatmul__(p),
        "**": lambda p: p.__ipow__(2),
    }
    for sign, step in steps.items():
        for recording in (True, False):  # also as other libraries have it, inside no_grad
            with contextlib.nullcontext() if recording else ms.no_grad(), pytest.raises(RuntimeError) as caught:
                step(p)
            assert f"write p.data {sign}= …, or use an optimizer" in str(caught.value)
    with pytest.raises(RuntimeError, match=r"p\.data -= …"):
        p -= 0.1 * p.grad
    p.data -= 0.1 * p.grad
    assert_same(p.data, np.full((2, 2), 0.8))


def test_a_sum_of_computed_tensors_may_grow() -> None:
    w, constant = tensor(np.ones(3), requires_grad=True), tensor(np.zeros(()))
    loss = (w * 2.0).sum()
    loss += (w * w).sum()
    loss *= 2
    loss -= 1.0
    loss /= 2.0
    loss **= 1
    constant += 1.0  # no gradient is lost
    assert constant.item() == 1.0
    loss.backward()
    assert_same(w.grad, [4.0, 4.0, 4.0])
    assert host(loss.data) == 8.5


def test_an_attribute_of_a_module_cannot_be_stepped_by_rebinding_it() -> None:
    layer = linear()
    with pytest.raises(RuntimeError, match="optimizer"):
        layer.weight -= 0.1
    layer.weight = layer.weight * 0.9  # type: ignore[assignment]
    with pytest.raises(TypeError, match="not a computed tensor"):
        ms.SGD(layer.parameters(), lr=0.1)
