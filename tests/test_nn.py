"""Layers: names and layout of what is stored, loading, dtypes, and what batch norm promises."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from devices import assert_close, assert_same, host, on_device, placed, tensor

from minisimclr import ops
from minisimclr.engine.autograd import Tensor, no_grad
from minisimclr.nn import BatchNorm2d, Conv2d, Linear, Module, Sequential
from minisimclr.resnet import resnet_small


class ReLU(Module):
    """A layer without parameters."""

    def __call__(self, x: Tensor, train: bool = False) -> Tensor:
        return ops.relu(x)


class Network(Module):
    """A convolution, a batch norm and a classifier, under the names that torchvision would give them."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.conv1 = Conv2d(3, 4, 3, padding=1, rng=rng)
        self.bn1 = BatchNorm2d(4)
        self.block = Sequential(Conv2d(4, 4, 1, rng=rng), ReLU())
        self.fc = Linear(4, 5, rng=rng)

    def __call__(self, x: Tensor, train: bool = False) -> Tensor:
        return self.fc(self.block(self.bn1(self.conv1(x), train)).mean(axis=(0, 1)))


def Net(seed: int = 0) -> Network:
    return placed(Network(seed))


NAMES = [
    "conv1.weight",
    "bn1.weight",
    "bn1.bias",
    "bn1.running_mean",
    "bn1.running_var",
    "block.0.weight",
    "fc.weight",
    "fc.bias",
]


def maps(n: int = 4, side: int = 5, channels: int = 3, seed: int = 0, dtype: type = np.float32) -> Tensor:
    """Random feature maps (H,W,N,C)."""
    return tensor(np.random.default_rng(seed).standard_normal((side, side, n, channels)).astype(dtype))


# ── What is stored ────────────────────────────────────────────────────────────────────────────────


def test_state_names_are_the_attributes_joined_by_dots_in_order_of_assignment():
    assert list(Net().state_dict()) == NAMES


def test_state_has_torchvisions_layout():
    """Convolutions have the shape (D,C,K,K), matrices (out,in), and all arrays are contiguous."""
    net = Net()
    state = net.state_dict()
    assert state["conv1.weight"].shape == (4, 3, 3, 3)
    assert state["fc.weight"].shape == (5, 4)
    assert np.array_equal(state["conv1.weight"], host(net.conv1.weight.data).transpose(3, 2, 0, 1))
    assert np.array_equal(state["fc.weight"], host(net.fc.weight.data).T)
    assert all(array.flags.c_contiguous for array in state.values())


def test_state_is_a_copy():
    net = Net()
    before = net.state_dict()
    for array in net.state_dict().values():
        array[...] = 7
    assert same(net.state_dict(), before)


def test_parameters_are_the_state_without_the_running_statistics_in_the_same_order():
    net = Net()
    names = [name for name, _ in net.named_parameters()]
    assert names == [name for name in NAMES if "running" not in name]
    assert all(a is b for a, (_, b) in zip(net.parameters(), net.named_parameters()))
    assert all(a is b for a, b in zip(net.parameters(), net.parameters()))


def test_initial_weights_follow_torchvisions_distributions_and_come_from_the_generator_alone():
    rng = np.random.default_rng(0)
    conv = Conv2d(16, 64, 3, rng=rng).weight.data
    assert conv.std() == pytest.approx(np.sqrt(2 / (64 * 9)), rel=0.03)  # He, by the fan-out
    linear = Linear(25, 400, rng=rng)
    for array in (linear.weight.data, linear.bias.data):  # uniform in ±1/√in
        assert 0.19 < np.abs(array).max() <= 0.2
        assert array.std() == pytest.approx(0.2 / np.sqrt(3), rel=0.06)
    assert same(Net(3).state_dict(), Net(3).state_dict())
    assert not same(Net(3).state_dict(), Net(4).state_dict())


# ── Loading ───────────────────────────────────────────────────────────────────────────────────────


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Equal names, in order, and equal bits."""
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_was_saved_loads_bit_for_bit_and_computes_the_same(dtype):
    one, other = Net(1).astype(dtype), Net(2).astype(dtype)
    one(maps(dtype=dtype), train=True)  # moves the running statistics
    other.load_state_dict(one.state_dict())
    assert same(one.state_dict(), other.state_dict())
    assert_same(one(maps(dtype=dtype)).data, other(maps(dtype=dtype)).data)


def test_a_loaded_parameter_is_still_the_tensor_that_the_optimizer_holds():
    net = Net()
    held = net.parameters()
    net.load_state_dict(Net(1).state_dict())
    assert all(a is b for a, b in zip(held, net.parameters()))
    assert all(p.requires_grad for p in held)


def test_loading_copies():
    net, state = Net(), Net(1).state_dict()
    net.load_state_dict(state)
    for array in state.values():
        array[...] = 7
    assert same(net.state_dict(), Net(1).state_dict())


def test_num_batches_tracked_is_accepted_and_ignored():
    net = Net()
    net.load_state_dict({**Net(1).state_dict(), "bn1.num_batches_tracked": np.int64(7)})
    assert list(net.state_dict()) == NAMES


@pytest.mark.parametrize(
    "turn",
    [
        np.asfortranarray,
        lambda a: np.ascontiguousarray(a.transpose()).transpose(),
        lambda a: np.repeat(a, 2, axis=0)[::2],  # a view with gaps
        lambda a: a.astype(np.float64),
        lambda a: a.astype(a.dtype.newbyteorder(">")),
    ],
)
def test_how_an_array_lies_in_memory_does_not_matter(turn):
    net = Net()
    net.load_state_dict({name: turn(array) for name, array in Net(1).state_dict().items()})
    assert same(net.state_dict(), Net(1).state_dict())
    assert_same(net(maps()).data, Net(1)(maps()).data)


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: without(s, "fc.bias"), "misses fc.bias"),
        (lambda s: {**s, "fc.scale": np.ones(5)}, "unknown fc.scale"),
        (lambda s: {**s, "fc.weight": s["fc.weight"].T}, r"fc.weight has shape \(4, 5\), expected \(5, 4\)"),
        (lambda s: {**s, "bn1.running_var": np.ones(1)}, "bn1.running_var has shape"),
        (lambda s: {}, "block.0.weight, bn1.bias, bn1.running_mean and 5 more"),
        (lambda s: {**s, "fc.bias": np.array(["a"] * 5)}, "fc.bias"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_one_line_and_changes_nothing(change, says):
    net = Net()
    before = net.state_dict()
    with pytest.raises(ValueError, match=says) as error:
        net.load_state_dict(change(Net(1).state_dict()))
    assert "\n" not in str(error.value)
    assert same(net.state_dict(), before)


# ── Dtype ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_model_is_float32():
    assert {array.dtype for array in Net().state_dict().values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("train", [False, True])
def test_a_model_computes_in_its_dtype_throughout(dtype, train):
    """Every parameter, buffer, output and gradient; images are converted at the door."""
    net = placed(resnet_small(base=4, num_classes=3)).astype(dtype)
    out = net(on_device(np.random.default_rng(0).random((4, 8, 8, 3), np.float32)), train=train)
    (out * out).sum().backward()
    assert out.dtype == dtype
    assert {a.dtype for a in net.state_dict().values()} == {np.dtype(dtype)}
    assert {p.grad.dtype for p in net.parameters()} == {np.dtype(dtype)}


def test_float64_is_not_float32_in_disguise():
    """No array passes through float32 on its way: the two answers differ by float32's rounding, not by more."""
    images = on_device(np.random.default_rng(0).random((4, 8, 8, 3)))
    with no_grad():
        exact = host(placed(resnet_small(base=4)).astype(np.float64)(images, train=True).data)
        moved = host(placed(resnet_small(base=4)).astype(np.float64)(images + 1e-12, train=True).data)
        rough = host(placed(resnet_small(base=4))(images, train=True).data)
    assert 1e-14 < np.abs(exact - moved).max() < 1e-9  # a change that float32 cannot see
    assert 1e-9 < np.abs(exact - rough).max() < 1e-4


# ── Layers ────────────────────────────────────────────────────────────────────────────────────────


def test_linear_is_x_times_w_plus_b_and_may_do_without_b():
    x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    layer = placed(Linear(3, 2, rng=np.random.default_rng(1)))
    w, b = host((layer.weight.data, layer.bias.data))
    assert_close(host(layer(tensor(x)).data), x @ w + b, rtol=1e-6)
    assert list(placed(Linear(3, 2, bias=False, rng=np.random.default_rng(1))).state_dict()) == ["weight"]


def test_sequential_is_one_after_the_other():
    rng = np.random.default_rng(0)
    first, second = placed(Linear(3, 4, rng=rng)), placed(Linear(4, 2, rng=rng))
    x = tensor(np.ones((5, 3), np.float32))
    chain = placed(Sequential(first, ReLU(), second))
    assert list(chain.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert_same(chain(x).data, second(ops.relu(first(x))).data)


def test_zero_grad_forgets_every_gradient():
    net = Net()
    net(maps()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net: net.fc(tensor(np.ones((2, 3), np.float32))), r"Network\.fc takes \(N,4\), got \(2,3\)"),
        (lambda net: net.conv1(maps(channels=4)), r"Network\.conv1 takes \(H,W,N,3\), got \(5,5,4,4\)"),
        (lambda net: net.conv1(tensor(np.ones((2, 3), np.float32))), r"Network\.conv1 takes \(H,W,N,3\), got \(2,3\)"),
        (lambda net: net.bn1(maps(channels=3)), r"Network\.bn1 takes \(…,4\), got \(5,5,4,3\)"),
        (lambda net: net(maps(channels=1)), r"Network\.conv1 takes"),
        (
            lambda net: placed(Linear(4, 5, rng=np.random.default_rng(0)))(tensor(np.ones((2, 3), np.float32))),
            r"^Linear takes \(N,4\), got \(2,3\)$",
        ),
    ],
)
def test_an_input_of_the_wrong_size_is_refused_with_the_layers_name_and_both_shapes(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call(Net())
    assert "\n" not in str(error.value)


# ── What is shown ─────────────────────────────────────────────────────────────────────────────────


def test_a_module_shows_its_tree_with_shapes_and_numbers_of_parameters():
    assert repr(Network()).splitlines() == [
        "Network                                      157 parameters",
        "  conv1: Conv2d      weight (3,3,3,4)        108",
        "  bn1: BatchNorm2d   weight (4), bias (4)      8",
        "  block: Sequential                           16",
        "    0: Conv2d        weight (1,1,4,4)         16",
        "    1: ReLU                                    0",
        "  fc: Linear         weight (4,5), bias (5)   25",
    ]


def test_the_number_beside_a_module_is_that_of_all_parameters_below_it():
    net = resnet_small(base=4)
    total = sum(int(np.prod(p.shape)) for p in net.parameters())
    assert repr(net).splitlines()[0].split() == ["ResNet", f"{total:,}", "parameters"]


def test_a_copy_of_a_module_is_a_module_of_its_own():
    """The label that an error shows does not stand among the attributes, and survives a copy."""
    net = Network()
    other = copy.deepcopy(net)
    assert list(vars(net.fc)) == ["product_dtype", "weight", "bias"]
    assert same(net.state_dict(), other.state_dict())
    assert not any(a is b for a, b in zip(net.parameters(), other.parameters()))
    with pytest.raises(ValueError, match=r"Network\.fc takes"):
        other.fc(Tensor(np.ones((2, 3), np.float32)))


# ── Batch norm ────────────────────────────────────────────────────────────────────────────────────


def test_training_normalizes_by_the_batchs_own_statistics():
    x = maps(channels=2, dtype=np.float64)
    y = host(placed(BatchNorm2d(2)).astype(np.float64)(x, train=True).data)
    assert_close(y.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    variance = host(x.data).var(axis=(0, 1, 2))
    assert_close(y.var(axis=(0, 1, 2)), variance / (variance + 1e-5), rtol=1e-12)


def test_running_statistics_move_a_tenth_of_the_way_and_the_variance_is_unbiased():
    layer = placed(BatchNorm2d(2)).astype(np.float64)
    mean, variance = np.zeros(2), np.ones(2)
    for seed in range(3):
        x = maps(n=2, side=2, channels=2, seed=seed, dtype=np.float64)
        layer(x, train=True)
        mean = 0.9 * mean + 0.1 * host(x.data).mean(axis=(0, 1, 2))
        variance = 0.9 * variance + 0.1 * host(x.data).var(axis=(0, 1, 2), ddof=1)
    assert_close(layer.running_mean, mean, rtol=1e-12)
    assert_close(layer.running_var, variance, rtol=1e-12)


def test_evaluation_uses_the_running_statistics_and_leaves_them_alone():
    layer = placed(BatchNorm2d(2)).astype(np.float64)
    layer.weight.data, layer.bias.data = on_device((np.array([2.0, 3.0]), np.array([-1.0, 1.0])))
    layer.running_mean, layer.running_var = on_device((np.array([0.5, -2.0]), np.array([4.0, 0.25])))
    before = layer.state_dict()
    x = maps(channels=2, dtype=np.float64)
    expected = (host(x.data) - [0.5, -2.0]) / np.sqrt([4.0 + 1e-5, 0.25 + 1e-5]) * [2, 3] + [-1, 1]
    assert_close(layer(x).data, expected, rtol=1e-12)
    assert same(layer.state_dict(), before)


def test_evaluation_of_an_image_does_not_depend_on_its_batch():
    """The running statistics are not the initial ones, and the results agree to float32's rounding."""
    net = placed(resnet_small(base=4))
    images = on_device(np.random.default_rng(0).random((6, 16, 16, 3), np.float32))
    net(images, train=True)
    together = net(images).data
    for k in range(6):
        assert_close(net(images[k : k + 1]).data[0], together[k], rtol=1e-4, atol=1e-6)


def test_training_on_one_value_per_channel_is_refused_and_moves_nothing():
    layer = placed(BatchNorm2d(2))
    before = layer.state_dict()
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer(tensor(np.ones((1, 2), np.float32)), train=True)
    assert same(layer.state_dict(), before)
    assert layer(tensor(np.ones((1, 2), np.float32))).shape == (1, 2)  # evaluation may


def test_gradient_of_training_is_tangent_to_a_common_shift_of_the_batch():
    """The batch's mean is taken out, so moving all of a channel changes nothing: its gradients sum to 0."""
    x = Tensor(maps(channels=2, dtype=np.float64).data, requires_grad=True)
    y = placed(BatchNorm2d(2)).astype(np.float64)(x, train=True)
    (y * y * y).sum().backward()
    assert_close(x.grad.sum(axis=(0, 1, 2)), 0, atol=1e-10)
    assert np.abs(host(x.grad)).max() > 0.01


def test_far_from_zero_float32_agrees_with_float64():
    x = host((maps(channels=2, dtype=np.float64).data + 3000).astype(np.float32))
    y = placed(BatchNorm2d(2))(tensor(x), train=True).data
    z = placed(BatchNorm2d(2)).astype(np.float64)(tensor(x.astype(np.float64)), train=True).data
    assert_close(y, z, atol=3e-3)


def test_after_a_hundred_steps_on_one_batch_evaluation_agrees_with_training():
    """Only 0.9¹⁰⁰ of the initial statistics is left, and the running variance is the unbiased one."""
    layer, x = placed(BatchNorm2d(2)).astype(np.float64), maps(channels=2, dtype=np.float64)
    for _ in range(100):
        trained = layer(x, train=True).data
    count, left = x.data[..., 0].size, 0.9**100
    mean, variance = host(x.data).mean(axis=(0, 1, 2)), host(x.data).var(axis=(0, 1, 2))
    biased = (host(layer.running_var) - left) / (1 - left) * (count - 1) / count
    assert_close(layer.running_mean, mean * (1 - left), rtol=1e-9)
    assert_close(biased, variance, rtol=1e-9)
    assert_close(layer(x).data, trained, atol=0.1)


def test_without_shift_there_is_no_bias_and_nothing_is_added():
    layer = placed(BatchNorm2d(2, shift=False)).astype(np.float64)
    assert list(layer.state_dict()) == ["weight", "running_mean", "running_var"]
    y = layer(maps(channels=2, dtype=np.float64), train=True)
    assert_close(y.data.mean(axis=(0, 1, 2)), 0, atol=1e-12)


def test_what_follows_batch_norm_in_a_block_may_be_done_along_with_it():
    """Shortcut and ReLU in one pass over memory are the addition and the ReLU after it."""
    x, shortcut = maps(seed=1), maps(seed=2)
    along = placed(BatchNorm2d(3))(x, train=True, shortcut=shortcut, relu=True)
    after = ops.relu(placed(BatchNorm2d(3))(x, train=True) + shortcut)
    assert_close(along.data, after.data, rtol=1e-6, atol=1e-6)
