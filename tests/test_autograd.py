"""The engine: promises about the graph, the memory, the dtypes and the arrays, whatever the operation.

Operations one at a time are in test_ops.py. What breaks an engine does not show there: sharing, depth,
order, aliasing, memory. Here each of these has its test.
"""

from __future__ import annotations

import functools
import gc
import inspect
import itertools
import pydoc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from devices import assert_close, assert_same, host, on_device, placed, share_memory, tensor, transfers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

import minisimclr as ms
from minisimclr import ops
from minisimclr.backend import is_array
from minisimclr.engine import autograd
from minisimclr.engine.autograd import Node, Tensor, no_grad, primitive
from minisimclr.engine.ledger import Ledger, saved_bytes

Array = np.ndarray[Any, Any]


def leaf(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Tensor:
    return tensor(np.random.default_rng([seed, *shape]).uniform(0.5, 2, shape).astype(dtype), requires_grad=True)


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Memory must come back by reference counts alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def nodes_below(tensor: Tensor) -> list[Node]:
    found: dict[Node, None] = {}
    frontier = [tensor._node]
    while frontier:
        node = frontier.pop()
        if node is not None and node not in found:
            found[node] = None
            frontier.extend(node.parents)
    return list(found)


# ── Broadcasting ──────────────────────────────────────────────────────────────────────────────────

TWO_SIDED = {
    "add": (ops.add, lambda x, y: (np.ones(x.shape), np.ones(y.shape))),
    "subtract": (ops.subtract, lambda x, y: (np.ones(x.shape), -np.ones(y.shape))),
    "multiply": (ops.multiply, lambda x, y: (y, x)),
    "divide": (ops.divide, lambda x, y: (1 / y, -x / y**2)),
    "maximum": (ops.maximum, lambda x, y: (np.where(x > y, 1, 0), np.where(x < y, 1, 0))),
}


def summed_to(array: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting as its definition says: element by element."""
    total = np.zeros(shape)
    for index in np.ndindex(array.shape):
        own = index[len(index) - len(shape) :]
        total[tuple(0 if size == 1 else i for i, size in zip(own, shape))] += array[index]
    return total


def assert_broadcasting_is_undone(name: str, shape_x: tuple[int, ...], shape_y: tuple[int, ...]) -> None:
    op, slopes = TWO_SIDED[name]
    x, y = leaf(*shape_x, seed=1), leaf(*shape_y, seed=2)
    value = op(x, y)
    g = np.random.default_rng(3).standard_normal(value.shape)
    value.backward(on_device(g))
    wide = np.broadcast_arrays(host(x.data), host(y.data))
    for side, slope in zip((x, y), slopes(*wide)):
        assert is_array(side.grad)  # also where nothing is left to sum over: no NumPy scalar
        assert side.grad.shape == side.shape
        assert_close(side.grad, summed_to(g * slope, side.shape), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", TWO_SIDED)
@pytest.mark.parametrize(
    ("shape_x", "shape_y"),
    [
        ((), ()),
        ((), (3,)),
        ((1,), (3,)),
        ((3,), (2, 3)),
        ((2, 1), (3,)),
        ((2, 1), (1, 3)),
        ((1, 1), (2, 3)),
        ((1, 3, 1), (2, 1, 4)),
        ((4,), (3, 2, 4)),
        ((0,), (1,)),
        ((0,), ()),
        ((2, 0), (1, 1)),
        ((2, 1), (2, 0)),
        ((0, 3), (3,)),
        ((1, 0), (5, 1)),
        ((1,), ()),
        ((1, 1), ()),
        ((2, 1, 1), (2, 4, 1)),
    ],
)
def test_broadcasting_is_undone(name: str, shape_x: tuple[int, ...], shape_y: tuple[int, ...]) -> None:
    assert_broadcasting_is_undone(name, shape_x, shape_y)
    assert_broadcasting_is_undone(name, shape_y, shape_x)


@given(
    shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3),
    name=st.sampled_from(list(TWO_SIDED)),
)
def test_broadcasting_is_undone_for_any_two_shapes(shapes: Any, name: str) -> None:
    assert_broadcasting_is_undone(name, *shapes.input_shapes)


def test_arrays_and_numbers_on_either_side_broadcast_too() -> None:
    x = leaf(3)
    column, table = on_device((np.ones((2, 1)), np.ones((2, 3))))
    (column * x + 2 - x / table + 3.0 * x).sum().backward()
    assert_close(x.grad, [2 - 2 + 6] * 3)


# ── Sharing, order and depth ──────────────────────────────────────────────────────────────────────


def test_a_tensor_used_twice_by_one_op_gets_both_gradients() -> None:
    for f, slope in [
        (lambda x: x * x, lambda x: 2 * x),
        (lambda x: x + x, lambda x: 2 + 0 * x),
        (lambda x: x - x, lambda x: 0 * x),
        (lambda x: x / x, lambda x: 0 * x),
        (lambda x: ops.maximum(x, x), lambda x: 1 + 0 * x),
        (lambda x: ops.concatenate(x, x, axis=1), lambda x: 2 + 0 * x),
    ]:
        x = leaf(2, 3)
        f(x).sum().backward()
        assert_close(x.grad, slope(x.data), atol=1e-15)


def test_x_times_its_transpose_has_both_terms() -> None:
    x = leaf(3, 4)
    g = np.random.default_rng(0).standard_normal((3, 3))
    (x @ x.T).backward(on_device(g))
    assert_close(x.grad, (g + g.T) @ host(x.data), rtol=1e-13)


@pytest.mark.parametrize("long", [1, 2, 7, 50])
def test_diamonds_wait_for_their_longer_side(long: int) -> None:
    for order in ("short first", "long first"):
        x = leaf(3)
        top = x * 2
        side = top
        for _ in range(long):
            side = side * 1.5
        y = top * side if order == "short first" else side * top
        (y + top + x).sum().backward()
        assert_close(x.grad, 2 * 4 * 1.5**long * x.data + 2 + 1, rtol=1e-12)


def test_nested_diamonds_count_every_path() -> None:
    x = leaf()
    y = x
    for _ in range(5):
        y = y + y * 2  # two ways to y, and through each two more
    y.backward()
    assert float(x.grad) == pytest.approx(3**5)


def test_sixty_doublings_take_sixty_steps_not_two_to_the_sixty() -> None:
    x = leaf()
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad == 2.0**60


DEPTHS = [20_000, pytest.param(100_000, marks=pytest.mark.slow)]  # Python's limit is 1,000 calls, C's a stack of 8 MiB


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_deep_graph_has_its_backward_pass_without_recursion(depth: int) -> None:
    x = leaf(dtype=np.float64)
    y = x
    for _ in range(depth):
        y = y + 1.0
    y.backward()
    assert x.grad == 1


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_deep_graph_can_be_dropped_without_a_backward_pass(no_gc: None, depth: int) -> None:
    y = leaf()
    watch = weakref.ref(y._node)
    for _ in range(depth):
        y = y * 1.0
    del y
    assert watch() is None


@given(st.lists(st.tuples(st.sampled_from("+*-m"), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=25))
def test_any_graph_agrees_with_forward_mode(steps: list[tuple[str, int, int]]) -> None:
    """Random programs on scalars, against dual numbers: (value, slope along each of three inputs)."""
    leaves = [tensor(v, requires_grad=True) for v in (0.3, -0.4, 0.5)]
    tensors: list[Any] = list(leaves)
    duals = [(float(x.data), np.eye(3)[i]) for i, x in enumerate(leaves)]
    for kind, i, j in steps:
        a, b = i % len(tensors), j % len(tensors)
        (va, da), (vb, db) = duals[a], duals[b]
        if kind == "+":
            tensors.append((tensors[a] + tensors[b]) * 0.5)
            duals.append(((va + vb) / 2, (da + db) / 2))
        elif kind == "-":
            tensors.append(tensors[a] - tensors[b] * 0.5)
            duals.append((va - vb / 2, da - db / 2))
        elif kind == "*":
            tensors.append(tensors[a] * tensors[b])
            duals.append((va * vb, va * db + vb * da))
        else:
            tensors.append(ops.exp(-(tensors[a] * tensors[a])) * tensors[b])
            e = np.exp(-va * va)
            duals.append((e * vb, e * (db - 2 * va * vb * da)))
    tensors[-1].backward()
    grads = [0.0 if x.grad is None else float(x.grad) for x in leaves]
    assert_close(grads, duals[-1][1], rtol=1e-9, atol=1e-12)


# ── Accumulation and starting points ──────────────────────────────────────────────────────────────


def test_gradients_of_two_graphs_add_up_to_exactly_twice() -> None:
    x = leaf(4, 3)

    def loss() -> Tensor:
        return (ops.exp(x) * x / 3).sum()

    loss().backward()
    assert x.grad is not None
    once = x.grad.copy()
    loss().backward()
    assert_same(x.grad, 2 * once)
    x.grad = None
    loss().backward()
    assert_same(x.grad, once)


def test_a_second_backward_raises_and_leaves_gradients_alone() -> None:
    x = leaf(3)
    y = x * x
    y.sum().backward()
    once = x.grad.copy()  # type: ignore[union-attr]
    for again in (lambda: y.backward(on_device(np.ones(3))), lambda: (y + x).sum().backward()):
        with pytest.raises(RuntimeError, match="already gone"):
            again()
        assert_same(x.grad, once)


def test_only_leaves_collect_a_gradient_and_what_lies_between_keeps_none() -> None:
    """A computed tensor passes its gradient on and keeps nothing of it, be it the root or used twice."""
    x, y = leaf(3), leaf(3)
    product = x * y
    both = product + ops.exp(product)
    loss = both.sum()
    loss.backward()
    assert [t.grad is None for t in (x, y, product, both, loss)] == [False, False, True, True, True]
    assert_close(x.grad, host(y.data) * (1 + np.exp(host(x.data) * host(y.data))))
    again = (x * 2).sum()
    again.backward()
    assert again.grad is None


def test_a_leaf_is_its_own_graph() -> None:
    x = tensor(3.0, requires_grad=True)
    x.backward()
    x.backward()
    assert x.grad == 2


def test_numbers_and_nested_lists_become_tensors() -> None:
    assert_same(Tensor([[1.0, 2.0], [3.0, 4.0]]).data, [[1.0, 2.0], [3.0, 4.0]])
    assert_same(Tensor(3.0).data, 3.0)


def test_a_list_that_indexed_may_be_changed_afterwards() -> None:
    x, index = leaf(3), [0, 1]
    y = x[index]
    index[:] = 2, 2
    y.sum().backward()
    assert_same(x.grad, [1.0, 1.0, 0.0])


def test_the_seed_is_needed_unless_there_is_one_element() -> None:
    x = leaf(2, 3)
    with pytest.raises(RuntimeError, match=r"shape \(2, 3\) needs the gradient"):
        (x * 2).backward()
    with pytest.raises(RuntimeError, match=r"shape \(0,\) needs"):
        (leaf(0) * 2).backward()
    one = leaf(1, 1)
    (one * 2).backward()
    assert_same(one.grad, [[2.0]])


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 3), (2, 1), (), (2, 3, 1)])
def test_a_seed_of_another_shape_raises(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="gradient has shape"):
        (leaf(2, 3) * 2).backward(on_device(np.ones(shape)))


def test_backward_without_history_says_so() -> None:
    for constant in (tensor(1.0), leaf().detach(), tensor(1.0) * 2):
        with pytest.raises(RuntimeError, match="requires_grad=True"):
            constant.backward()


def test_a_seed_may_be_a_tensor_a_list_or_of_another_dtype() -> None:
    for seed in (tensor([1.0, 2.0]), [1.0, 2.0], np.array([1, 2]), np.array([1.0, 2.0], np.float32)):
        x = leaf(2)
        (x * 3).backward(on_device(seed))  # type: ignore[arg-type]
        assert_same(x.grad, [3.0, 6.0])


def test_a_seed_is_rounded_to_the_dtype_of_its_tensor() -> None:
    x = leaf(2, dtype=np.float32)
    x.backward(on_device(np.array([1.0, 2.0])))
    assert x.grad.dtype == np.float32  # type: ignore[union-attr]


def test_a_tensor_lies_row_by_row_in_memory_whatever_it_was_made_from() -> None:
    columns = on_device(np.arange(6.0).reshape(3, 2)).T
    for x in (Tensor(columns), Tensor(columns, requires_grad=True)):
        assert x.data.flags.c_contiguous
        assert_same(x.data, columns)


def test_operators_and_methods_are_the_functions_of_the_same_name() -> None:
    x = leaf(2, 3)
    pairs = (
        (x**3, ops.power(x, exponent=3)),
        (-x, ops.negative(x)),
        (x[1:], ops.getitem(x, index=slice(1, None))),
        (x.sum(axis=1, keepdims=True), ops.sum(x, axis=1, keepdims=True)),
        (x.sum(axis=0), ops.sum(x, axis=0)),
        (x.mean(axis=0, keepdims=True), ops.mean(x, axis=0, keepdims=True)),
        (x.mean(axis=1), ops.mean(x, axis=1)),
        (x.reshape(3, 2), ops.reshape(x, shape=(3, 2))),
        (x.T, ops.transpose(x)),
    )
    for method, function in pairs:
        assert method.shape == function.shape
        assert_same(method.data, function.data)
    assert x.sum(axis=1, keepdims=True).shape == (2, 1)
    assert x.mean(axis=0, keepdims=True).shape == (1, 3)
    assert_same((x**3).data, host(x.data) ** 3)


def test_an_op_says_that_it_is_one_and_that_it_returns_a_tensor() -> None:
    @primitive
    def same(xp: Any, x: Any) -> Any:
        return x, lambda g: g

    for op in (same, ops.exp):
        assert op.is_primitive is True  # type: ignore[attr-defined]
        assert op.__annotations__ == {"return": Tensor}


@pytest.mark.host
def test_help_shows_what_a_caller_gives_and_gets() -> None:
    signature = inspect.signature(ops.relu)
    assert list(signature.parameters) == ["x"]
    assert signature.return_annotation is Tensor
    assert list(inspect.signature(ops.sum).parameters) == ["x", "axis", "keepdims"]
    assert str(inspect.signature(ops.concatenate)).startswith("(*arrays: 'Tensor | Array | float', axis: 'int' = 0)")
    for name in ops.__all__:
        if hasattr(getattr(ops, name), "is_primitive"):
            shown = pydoc.plain(pydoc.render_doc(getattr(ops, name))).replace(
                "(\n    ", "("
            )  # Python 3.13 breaks lines
            assert f"\n{name}(x" in shown or f"\n{name}(*arrays" in shown or f"\n{name}(logits" in shown, name
            assert "(xp" not in shown, name
            assert "Vjp" not in shown, name


@pytest.mark.host
def test_methods_of_a_tensor_have_the_docstring_of_their_op() -> None:
    pairs = {"sum": ops.sum, "mean": ops.mean, "reshape": ops.reshape, "transpose": ops.transpose, "T": ops.transpose}
    pairs |= {"__add__": ops.add, "__rsub__": ops.subtract, "__mul__": ops.multiply, "__truediv__": ops.divide}
    pairs |= {"__matmul__": ops.matmul, "__pow__": ops.power, "__neg__": ops.negative, "__getitem__": ops.getitem}
    for name, op in pairs.items():
        assert getattr(Tensor, name).__doc__ == op.__doc__
        assert op.__doc__
    assert "keepdims" in pydoc.plain(pydoc.render_doc(Tensor.sum))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda a, b: a @ a, r"matmul: shapes \(2, 3\) and \(2, 3\) do not fit"),
        (lambda a, b: a + b, r"add: shapes \(2, 3\) and \(4,\) do not fit"),
        (lambda a, b: a * b, r"multiply: shapes \(2, 3\) and \(4,\) do not fit"),
        (lambda a, b: ops.maximum(a, b), r"maximum: shapes \(2, 3\) and \(4,\) do not fit"),
        (lambda a, b: a @ 2.0, "matmul takes vectors and matrices, not numbers"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_name_of_the_op(wrong: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        wrong(leaf(2, 3), leaf(4))


def kept_by_partial(saved: Any) -> Any:
    return functools.partial(lambda saved, g: g * saved, saved)


def kept_by_a_named_argument_of_partial(saved: Any) -> Any:
    return functools.partial(lambda g, saved: g * saved, saved=saved)


def kept_by_a_default_argument(saved: Any) -> Any:
    return lambda g, saved=saved: g * saved


def kept_by_a_named_default_argument(saved: Any) -> Any:
    def vjp(g: Any, *, saved: Any = saved) -> Any:
        return g * saved

    return vjp


def kept_by_a_dictionary(saved: Any) -> Any:
    kept = {"deep": [({"er": saved},)]}
    return lambda g: g * kept["deep"][0][0]["er"]


def kept_by_an_object(saved: Any) -> Any:
    class Memory:
        def __init__(self, saved: Any) -> None:
            self.saved = saved

        def vjp(self, g: Any) -> Any:
            return g * self.saved

        __call__ = vjp

    return Memory(saved)


def kept_by_a_bound_method(saved: Any) -> Any:
    return kept_by_an_object(saved).vjp


def kept_by_a_bound_method_of_slots(saved: Any) -> Any:
    class Memory:
        __slots__ = ("saved",)

        def vjp(self, g: Any) -> Any:
            return g * self.saved

    memory = Memory()
    memory.saved = saved
    return memory.vjp


def kept_by_a_recursive_helper(saved: Any) -> Any:
    def helper(g: Any, depth: int) -> Any:
        return g * saved if depth == 0 else helper(g, depth - 1)

    return lambda g: helper(g, 3)


def kept_by_a_list_that_holds_itself(saved: Any) -> Any:
    ring: list[Any] = [saved]
    ring.append(ring)
    return lambda g: g * ring[1][0]


KEPT_BY = [value for name, value in list(globals().items()) if name.startswith("kept_by_")]


@pytest.mark.parametrize("keep", KEPT_BY)
def test_an_array_is_found_wherever_a_vjp_keeps_it(keep: Callable[[Any], Any]) -> None:
    """`saved_bytes` counts such an array, and it is guarded, because it is an input or a value of the operation."""

    @primitive
    def scale(xp: Any, x: Any, factor: Any) -> Any:
        times = keep(factor)
        return x * factor, lambda g: (times(g), None)

    x, factor = leaf(5), tensor(np.full(5, 2.0)) * 1.0
    y = scale(x, factor)
    assert saved_bytes(y) == {"scale": factor.data.nbytes}
    y.backward(on_device(np.ones(5)))
    assert_same(x.grad, np.full(5, 2.0))
    assert saved_bytes(y).total == 0


def test_the_ledger_looks_into_no_class_no_module_and_no_empty_variable() -> None:
    @primitive
    def same(xp: Any, x: Any) -> Any:
        kind, module = Tensor, ops
        if x.ndim > 9:
            never = x

        def vjp(g: Any) -> Any:
            return (kind, module, never) and g

        return x * 1, vjp

    assert saved_bytes(same(leaf(3) + 1.0)).total == 0


def test_a_vjp_of_wrong_length_or_shape_is_reported() -> None:
    @primitive
    def two_for_one(xp: Any, x: Array) -> Any:
        return x * 1, lambda g: (g, g)

    @primitive
    def one_for_two(xp: Any, x: Array, y: Array) -> Any:
        return x * y, lambda g: (g * y,)

    @primitive
    def wrong_shape(xp: Any, x: Array) -> Any:
        return x * 1, lambda g: g[:-1]

    with pytest.raises(RuntimeError, match="two_for_one: the vjp gave 2 gradients for 1"):
        two_for_one(leaf()).backward()
    with pytest.raises(RuntimeError, match="one_for_two: the vjp gave 1 gradients for 2"):
        one_for_two(leaf(), leaf()).backward()
    with pytest.raises(RuntimeError, match=r"wrong_shape: the vjp gave shape \(2,\) for an input of shape \(3,\)"):
        wrong_shape(leaf(3)).backward(on_device(np.ones(3)))


# ── Memory ────────────────────────────────────────────────────────────────────────────────────────


def chain(x: Tensor) -> Tensor:
    y = ops.relu(x @ x.T)
    return (ops.exp(y * 0.1) + y).mean()


def test_memory_is_free_as_soon_as_the_loss_is_dropped(no_gc: None) -> None:
    x = leaf(4, 4)
    y = x * 2
    watched = [weakref.ref(thing) for thing in (y, y._node, y.data)]
    loss = chain(y)
    del y
    assert watched[0]() is None
    assert watched[1]() is not None
    del loss
    assert [w() for w in watched] == [None, None, None]


def test_memory_is_free_after_backward_while_the_loss_lives(no_gc: None) -> None:
    x = leaf(4, 4)
    y = x * 2
    node, array = weakref.ref(y._node), weakref.ref(y.data)
    loss = chain(y)
    del y
    loss.backward()
    assert node() is None
    assert array() is None
    assert loss.shape == ()


@pytest.mark.parametrize(
    "op",
    [
        lambda y: y + 1,
        lambda y: -y,
        lambda y: y - 2,
        lambda y: y.sum(),
        lambda y: y.mean(axis=0),
        ops.exp,
        ops.relu,
        lambda y: y[1:] + 0,
        lambda y: ops.concatenate(y, y),
        lambda y: ops.batch_norm(
            tensor(np.ones((3, 3))),
            *on_device((np.ones(3), np.zeros(3))),
            y,
            batch=True,
            relu=True,
            **on_device({"mean": np.zeros(3), "variance": np.ones(3)}),
        ),
    ],
    ids=["add", "negative", "subtract", "sum", "mean", "exp", "relu", "getitem", "concatenate", "shortcut"],
)
def test_an_array_that_no_vjp_needs_dies_at_once(no_gc: None, op: Callable[[Tensor], Tensor]) -> None:
    x = leaf(3, 3)
    y = x + 1
    array = weakref.ref(y.data)
    z = op(y)
    del y
    assert array() is None
    assert z.requires_grad


def test_nothing_is_left_in_the_collector_after_training_steps(no_gc: None) -> None:
    model, views = tiny_simclr(), on_device(np.random.default_rng(0).random((4, 8, 8, 3), np.float32))

    def step() -> None:
        loss, _, _ = model.loss(views, views[::-1].copy())
        loss.backward()
        model.zero_grad()

    step()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(3):
        step()
    assert len(gc.get_objects()) <= before + 10


@pytest.mark.slow
def test_200_training_steps_grow_memory_by_less_than_a_percent(no_gc: None) -> None:
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    model, views = tiny_simclr(), on_device(np.random.default_rng(0).random((8, 16, 16, 3), np.float32))
    sizes = []
    for _ in range(230):
        model.loss(views, views[::-1].copy())[0].backward()
        model.zero_grad()
        sizes.append(resident())
    assert sizes[-1] < 1.01 * sizes[30]


def test_a_residual_block_keeps_what_its_gradient_needs_and_no_more() -> None:
    """It keeps the inputs of both convolutions and both norms, and the last ReLU's output: five activations."""
    block = placed(
        ms.resnet.BasicBlock(8, 8, 1, *ms.resnet._makers(np.random.default_rng(0), "conv=slabs", None, None))
    )
    x = leaf(8, 8, 4, 8, dtype=np.float32)
    unit = x.data.nbytes
    y = block(x * 1.0, train=True)
    ledger = saved_bytes(y)
    small = 4 * 8 * 4 * 4  # vectors of 8 channels
    assert set(ledger) == {"conv2d", "batch_norm"}
    assert 5 * unit <= ledger.total <= 5 * unit + small
    assert str(ledger).splitlines()[-1].split() == [f"{ledger.total / 2**20:.2f}", "MiB", "total"]


def test_saved_bytes_counts_a_shared_array_once_and_parameters_never() -> None:
    x = leaf(10)  # 80 bytes
    assert saved_bytes(x * x).total == 0
    y = x + 1
    assert saved_bytes(y * y) == {"multiply": 80}
    assert saved_bytes((y * y).sum() + (y * 3.0).sum() + (y.reshape(2, 5) * y.reshape(2, 5)).sum()).total == 80
    assert saved_bytes(tensor(1.0)).total == 0
    older = ops.exp(x)
    younger = ops.relu(older * 2.0)
    assert saved_bytes(older * younger) == {"exp": 80, "relu": 80}  # multiply keeps both, but they were kept before
    z = y * y
    z.backward(on_device(np.ones(10)))
    assert saved_bytes(z).total == 0


@pytest.mark.host
def test_the_ledger_prints_the_largest_first_and_the_total_last() -> None:
    printed = str(Ledger({"exp": 1 << 20, "conv2d": 3 << 20, "relu": 2 << 20}))
    assert [line.split()[-1] for line in printed.splitlines()] == ["conv2d", "relu", "exp", "total"]


def test_a_program_may_end_while_a_graph_is_alive() -> None:
    program = (
        "import numpy as np, minisimclr as ms\n"
        "x = ms.Tensor(np.ones(3), requires_grad=True); y = (x * x).sum(); print(y.item())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("3.0\n", "")


# ── Aliasing and writing ──────────────────────────────────────────────────────────────────────────


def test_gradients_share_memory_with_nothing() -> None:
    x, y, w = leaf(3, 3), leaf(3, 3, seed=1), leaf(3)
    seed = on_device(np.ones((3, 3)))
    z = x + y + x.T + w + (x.reshape(9).reshape(3, 3) - y)
    z.backward(seed)
    arrays = [seed, x.data, y.data, w.data, z.data, x.grad, y.grad, w.grad]
    for a, b in itertools.combinations(arrays, 2):
        assert not share_memory(a, b)
    for array in (x.grad, y.grad, w.grad):
        array[...] = 7  # type: ignore[index]
    assert_same(seed, np.ones((3, 3)))


def test_the_gradient_of_a_leaf_that_is_the_root_is_not_the_seed() -> None:
    x, seed = leaf(3), on_device(np.ones(3))
    x.backward(seed)
    assert not share_memory(x.grad, seed)  # type: ignore[arg-type]


def test_read_only_inputs_and_seeds_are_accepted_and_left_alone() -> None:
    a, seed = np.arange(1.0, 5.0).reshape(2, 2), np.ones((2, 2))
    a.flags.writeable = seed.flags.writeable = False
    here, start = on_device((a, seed))
    x = Tensor(here, requires_grad=True)
    (x * here + here).backward(start)
    assert_same(x.grad, here)
    assert_same(here, [[1, 2], [3, 4]])
    assert_same(start, np.ones((2, 2)))


STRIDED = {
    "every other": lambda: np.random.default_rng(0).standard_normal((6, 8))[::2, ::2],
    "negative": lambda: np.random.default_rng(0).standard_normal((3, 4))[::-1, ::-1],
    "Fortran": lambda: np.asfortranarray(np.random.default_rng(0).standard_normal((3, 4))),
    "transposed": lambda: np.random.default_rng(0).standard_normal((4, 3)).T,
    "stride 0": lambda: np.broadcast_to(np.random.default_rng(0).standard_normal(4), (3, 4)),
}


@pytest.mark.parametrize("layout", STRIDED)
def test_any_memory_layout_equals_its_copy(layout: str) -> None:
    def run(array: Array, seed: Array) -> tuple[Array, Array]:
        x = Tensor(array, requires_grad=True)
        y = ops.exp(x * 0.5) * array + ops.relu(x.T).T @ on_device(np.ones((4, 4)))
        y.backward(seed)
        assert x.grad is not None
        return y.data, x.grad

    a = on_device(STRIDED[layout]())
    for strided, plain in zip(run(a, a), run(a.copy(), a.copy())):
        assert_same(strided, plain)


def test_what_went_in_may_be_changed_afterwards() -> None:
    """A tensor copies its array; so does an op with the arrays it gets, settings included."""
    a, factor, index = on_device((np.ones(3), np.full(3, 2.0), np.array([0, 0, 2])))
    x = Tensor(a, requires_grad=True)
    y = (x * factor)[index]
    a[:], factor[:], index[:] = 9, 9, 1
    y.sum().backward()
    assert_same(x.grad, [4, 0, 2])

    logits, labels = leaf(4, 3), on_device(np.array([0, 1, 2, 0]))
    right = leaf(4, 3)
    ops.cross_entropy(right, labels=labels).backward()
    loss = ops.cross_entropy(logits, labels=labels)
    labels[:] = 1
    loss.backward()
    assert_same(logits.grad, right.grad)

    x, mean, variance = leaf(5, 3), *on_device((np.zeros(3), np.ones(3)))
    y = ops.batch_norm(x, *on_device((np.ones(3), np.zeros(3))), mean=mean, variance=variance, batch=False, eps=0.0)
    mean[:], variance[:] = 5, 5
    y.sum().backward()
    assert_same(x.grad, np.ones((5, 3)))


def test_replacing_the_data_of_a_leaf_leaves_older_graphs_right_and_drops_its_gradient() -> None:
    x = leaf(3)
    old = x.data.copy()
    y = x * x
    x.data = on_device(np.zeros(3))
    (x * x).sum().backward()
    assert_same(x.grad, np.zeros(3))
    y.sum().backward()
    assert_same(x.grad, np.zeros(3))  # the old graph ends in the old leaf
    assert_same(y.data, old**2)
    with pytest.raises(RuntimeError, match="only a leaf"):
        (x * 2).data = np.zeros(3)
    with pytest.raises(TypeError, match="floating-point"):
        x.data = on_device(np.arange(3))


# ── Recording or not ──────────────────────────────────────────────────────────────────────────────


def test_no_grad_records_nothing_also_nested_and_after_an_exception() -> None:
    x = leaf(3)
    with no_grad():
        assert not (x * 2).requires_grad
        with no_grad():
            assert not (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
    with pytest.raises(KeyError), no_grad(), no_grad():
        raise KeyError
    assert (x * 2).requires_grad


def test_constants_and_detached_tensors_are_not_recorded() -> None:
    x = leaf(3)
    assert x.detach().grad is None
    assert not (x.detach() * 2).requires_grad
    assert not (tensor(np.ones(3)) * 2).requires_grad
    (x * x.detach()).sum().backward()
    assert_same(x.grad, x.data)
    with pytest.raises(RuntimeError, match="no gradient"):
        x.detach().grad = np.zeros(3)


@pytest.mark.parametrize(
    "failing",
    [
        lambda x: x @ tensor(np.ones((5, 5))),
        lambda x: x + tensor(np.ones(7)),
        lambda x: x.reshape(4, 4),
        lambda x: ops.batch_norm(
            x, *[on_device(np.ones(2))] * 2, mean=on_device(np.ones(2)), variance=on_device(np.ones(2)), batch=True
        ),
        lambda x: ms.nt_xent(x, x[:1]),
    ],
)
def test_an_op_that_raises_leaves_no_residue(failing: Callable[[Tensor], Tensor], no_gc: None) -> None:
    x = leaf(3, 3)
    with pytest.raises((ValueError, TypeError)):
        failing(x)
    x.data[0] = 5  # not locked
    (x * 2).sum().backward()
    assert_same(x.grad, np.full((3, 3), 2.0))


def test_a_vjp_that_raises_leaves_no_gradient_behind(no_gc: None) -> None:
    @primitive
    def broken(xp: Any, x: Array) -> Any:
        def vjp(g: Array) -> Array:
            raise ZeroDivisionError

        return x * 1, vjp

    x, y = leaf(3), leaf(3)
    loss = (broken(x) + y).sum()
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    assert x.grad is None
    assert y.grad is None
    del loss
    x.data[...] = y.data[...] = 0  # not locked


# ── What a tensor is made of ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32, np.uint8, np.int64])
def test_integers_and_booleans_refuse_gradients_but_compute(dtype: Any) -> None:
    with pytest.raises(TypeError, match="only floating-point"):
        tensor(np.ones(3, dtype), requires_grad=True)
    assert (tensor(np.ones(3, dtype)) * 2.0).data.sum() == 6


@pytest.mark.parametrize("bad", [np.array([1j]), np.array(["a"]), np.array([object()]), "text", None])
def test_what_is_no_number_is_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"Tensor takes numbers .* not dtype"):
        Tensor(bad)
    expected = (
        rf"expected a Tensor, an array or a number, not {type(bad).__name__}$"
        if not is_array(bad)
        else "Tensor takes numbers"
    )
    with pytest.raises(TypeError, match=expected):
        ops.exp(bad)


def test_a_tensor_of_a_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="not a Tensor"):
        Tensor(leaf(2))


@pytest.mark.parametrize("other", ["text", None, object(), [1.0], {1: 2}, 1j])
def test_an_operator_with_something_else_is_a_type_error(other: Any) -> None:
    x = leaf(2)
    for operation in (
        lambda: x + other,
        lambda: other + x,
        lambda: x - other,
        lambda: other - x,
        lambda: x * other,
        lambda: x / other,
        lambda: other / x,
        lambda: x @ other,
        lambda: other @ x,
        lambda: x**other,
    ):
        with pytest.raises(TypeError):
            operation()


@pytest.mark.parametrize("scalar", [np.float64(2), np.float32(2), np.int64(2), np.float16(2), np.bool_(True), 2, 2.0])
def test_scalars_do_not_promote_float32(scalar: Any) -> None:
    x = leaf(3, dtype=np.float32)
    for operation in (
        lambda: x + scalar,
        lambda: scalar + x,
        lambda: x - scalar,
        lambda: scalar - x,
        lambda: x * scalar,
        lambda: scalar * x,
        lambda: x / scalar,
        lambda: scalar / x,
        lambda: ops.maximum(x, scalar),
        lambda: ops.power(x, exponent=float(scalar)),
        lambda: ms.nt_xent(x[None], x[None], temperature=1.0 if scalar in (True,) else scalar),
    ):
        x.grad = None
        y = operation()
        assert y.dtype == np.float32
        y.sum().backward()
        assert x.grad.dtype == np.float32  # type: ignore[union-attr]


def test_gradients_have_the_dtype_and_shape_of_their_tensor() -> None:
    x, y = leaf(3, dtype=np.float32), leaf(2, 3, dtype=np.float64)
    (x * y).sum().backward()
    assert (x.grad.dtype, y.grad.dtype) == (np.float32, np.float64)  # type: ignore[union-attr]
    assert (x.grad.shape, y.grad.shape) == ((3,), (2, 3))  # type: ignore[union-attr]
    half = leaf(3, dtype=np.float16)
    (half * half).sum().backward()
    assert half.grad.dtype == np.float16  # type: ignore[union-attr]


def tiny_simclr() -> ms.SimCLR:
    rng = np.random.default_rng(0)
    encoder = ms.resnet_small(base=4, rng=rng)
    return placed(ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, 8, 4, rng=rng)))


def test_float32_stays_float32_at_every_node_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_simclr()
    views = on_device(np.random.default_rng(1).random((2, 4, 8, 8, 3), np.float32))
    passed: list[Any] = []
    unbroadcast = autograd._unbroadcast

    def spy(gradient: Array, parent: Node, name: str) -> Array:
        passed.append((name, gradient.dtype))
        return unbroadcast(gradient, parent, name)

    monkeypatch.setattr(autograd, "_unbroadcast", spy)
    loss, _, _ = model.loss(*views)
    assert {(node.name, node.dtype) for node in nodes_below(loss) if node.dtype != np.float32} == set()
    loss.backward()
    assert {(name, dtype) for name, dtype in passed if dtype != np.float32} == set()
    optimizer = ms.LARS(model.parameters(), lr=0.1)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == np.float32, name
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == np.float32, name
    assert all(array.dtype == np.float32 for array in model.state_dict().values())


@pytest.mark.parametrize("stem", ["small", "cifar", "imagenet"])
@pytest.mark.parametrize("optimizer", [ms.LARS, ms.SGD])
def test_a_training_step_never_waits_for_the_device(optimizer: Any, stem: str) -> None:
    """No number is read, no array copied: forward, backward, the optimizer's norms, the running statistics."""
    rng = np.random.default_rng(0)
    encoder = ms.resnet_small(base=4, stem=stem, rng=rng)
    model = placed(ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, 8, 4, rng=rng)))
    step = optimizer(model.parameters(), lr=0.1, weight_decay=1e-6)
    views = on_device(rng.random((2, 4, 16, 16, 3), np.float32))
    a, b = views[0], views[1]
    with transfers() as crossed:
        for _ in range(2):
            model.loss(a, b, temperature=0.2)[0].backward()
            step.step(0.05)
            step.zero_grad()
    assert not crossed


# ── NaN and kinks ─────────────────────────────────────────────────────────────────────────────────


def test_nan_in_nan_out() -> None:
    bad = np.array([[1.0, np.nan, 2.0], [3.0, 4.0, 5.0]])
    labels, columns, kernel = on_device((np.array([0, 1]), np.ones((3, 2)), np.ones((2, 2, 1, 1))))
    for op in (
        ops.exp,
        ops.relu,
        ops.log,
        ops.l2_normalize,
        lambda x: ops.max(x),
        lambda x: ops.maximum(x, 9.0),
        lambda x: x.sum(),
        lambda x: x.mean(),
        lambda x: x @ columns,
        lambda x: x * 0.0,
        lambda x: ops.cross_entropy(x, labels=labels),
        lambda x: ops.max_pool2d(x.reshape(2, 3, 1, 1), kernel=2, stride=1),
        lambda x: ops.conv2d(x.reshape(2, 3, 1, 1), kernel),
        lambda x: ms.nt_xent(x, x + 1),
    ):
        x = tensor(bad, requires_grad=True)
        y = op(x)
        assert np.isnan(host(y.data)).any()
        y.backward(on_device(np.ones(y.shape)))
        assert x.grad is not None


def test_kinks_have_the_slopes_that_the_docstrings_name() -> None:
    x = tensor([-1.0, -0.0, 0.0, 2.0], requires_grad=True)
    ops.relu(x).sum().backward()
    assert_same(x.grad, [0, 0, 0, 1])

    x, y = tensor([1.0, 2.0, 3.0], requires_grad=True), tensor([1.0, 3.0, 2.0], requires_grad=True)
    ops.maximum(x, y).sum().backward()
    assert_same(x.grad, [0.5, 0, 1])
    assert_same(y.grad, [0.5, 1, 0])

    x = tensor([[3.0, 1.0, 3.0], [2.0, 2.0, 2.0], [0.0, 1.0, 0.0]], requires_grad=True)
    ops.max(x, axis=1).sum().backward()
    assert_close(x.grad, [[0.5, 0, 0.5], [1 / 3] * 3, [0, 1, 0]])

    x = tensor(np.array([[1.0, 2.0], [2.0, 2.0]]).reshape(2, 2, 1, 1), requires_grad=True)
    ops.max_pool2d(x, kernel=2, stride=2).sum().backward()
    assert_same(x.grad.reshape(2, 2), [[0, 1], [0, 0]])  # type: ignore[union-attr]

    x = tensor([0.0, 2.0], requires_grad=True)
    ops.power(x, exponent=0).sum().backward()
    assert_same(x.grad, [0, 0])


# ── The same bits ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def at_threads() -> Iterator[Callable[[int], None]]:
    yield ms.set_threads
    ms.set_threads(None)


def test_runs_are_bit_equal_at_fixed_threads_and_close_between_one_and_two(at_threads: Callable[[int], None]) -> None:
    def gradients(count: int) -> dict[str, Array]:
        at_threads(count)
        model = tiny_simclr()
        views = on_device(np.random.default_rng(1).random((2, 16, 16, 16, 3), np.float32))
        model.loss(*views)[0].backward()
        return {name: host(p.grad) for name, p in model.named_parameters()}

    one, once_more, two, two_more = gradients(1), gradients(1), gradients(2), gradients(2)
    for name in one:
        assert_same(one[name], once_more[name])
        assert_same(two[name], two_more[name])
        scale = np.linalg.norm(one[name])
        assert np.linalg.norm(one[name] - two[name]) <= 1e-6 * scale, name


# ── Small print ───────────────────────────────────────────────────────────────────────────────────


def test_the_tensor_looks_like_its_array() -> None:
    x = leaf(2, 3)
    assert (x.shape, x.ndim, x.dtype, len(x)) == ((2, 3), 2, np.float64, 2)
    assert x.sum().item() == pytest.approx(host(x.data).sum())
    assert repr(tensor([1.0])) == "Tensor(array([1.]))"
    assert repr(tensor([1.0], requires_grad=True) * 1).endswith(", multiply)")
    assert_same(x.reshape((3, 2)).data, x.reshape(3, 2).data)
    assert_same(x.transpose((1, 0)).data, x.T.data)
    assert [row.shape for row in x] == [(3,), (3,)]  # type: ignore[attr-defined]


def test_the_truth_of_a_tensor_is_that_of_its_only_element() -> None:
    assert tensor(2.0)
    assert tensor([[3.0]])
    assert not tensor([0.0])
    for many in (leaf(2), leaf(1, 3), leaf(0)):
        with pytest.raises(ValueError, match="defined for one element only"):
            bool(many)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (np.exp, r"in place of np\.exp\(tensor\) use minisimclr\.ops\.exp"),
        (np.log, "use minisimclr.ops"),
        (np.sum, r"np\.sum\(tensor\) use minisimclr\.ops\.sum"),
        (np.mean, r"use minisimclr\.ops\.mean"),
        (lambda x: np.concatenate([x, x]), r"use minisimclr\.ops\.concatenate"),
        (np.asarray, r"the array, tensor\.data"),
        (np.array, r"the array, tensor\.data"),
        (lambda x: np.add(np.ones(3), x, out=np.ones(3)), "use minisimclr.ops"),
    ],
)
def test_numpys_functions_refuse_a_tensor_and_say_what_to_use(function: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        function(leaf(3))


def test_transposing_may_turn_three_axes_any_way_round() -> None:
    x = tensor(np.arange(24.0).reshape(2, 3, 4))
    for axes in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)):
        assert_same(x.transpose(*axes).data, host(x.data).transpose(axes))
        assert_same(x.transpose(axes).data, host(x.data).transpose(axes))


def test_a_method_that_tensors_do_not_have_points_to_the_functions() -> None:
    x = leaf(3)
    with pytest.raises(AttributeError, match=r"a Tensor has no exp; operations are functions, and minisimclr\.ops has"):
        x.exp()  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"^a Tensor has no __array_interface__$"):
        x.__array_interface__  # noqa: B018
    with pytest.raises(TypeError, match=r"use minisimclr\.ops\.maximum\(tensor, -tensor\)"):
        abs(x)
    assert not hasattr(x, "numpy")


def test_a_vjp_of_too_few_axes_is_reported() -> None:
    @primitive
    def summed(xp: Any, x: Array) -> Any:
        return x.sum(), lambda g: g  # of shape (), for an input (1,)

    x = Tensor([2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match=r"summed: the vjp gave shape \(\) for an input of shape \(1,\)"):
        summed(x).backward()
