"""Encoders: torchvision's names and counts, the shapes of the maps, and what is refused.

That the numbers are torchvision's too is seen by the peers test of whole networks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from devices import assert_close, assert_same, host, on_device, placed, tensor

from minisimclr import resnet as module
from minisimclr.checks.table import conv2d_by_loops, max_pool2d_by_loops
from minisimclr.engine.autograd import Tensor, no_grad
from minisimclr.nn import METHOD
from minisimclr.resnet import ENCODERS, resnet18, resnet34, resnet50, resnet101, resnet152, resnet_small


@pytest.fixture
def hollow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of zeros that cost neither time nor memory, where only names and shapes matter."""

    def zeros(shape: tuple[int, ...]) -> Tensor:
        tensor = Tensor(np.float32(0), requires_grad=True)
        tensor._data = np.broadcast_to(np.float32(0), shape)
        return tensor

    monkeypatch.setattr("minisimclr.nn.he_normal", lambda rng, shape, fan: np.broadcast_to(np.float32(0), shape))
    monkeypatch.setattr("minisimclr.nn.parameter", lambda array: zeros(np.shape(array)))


def count(net: module.ResNet) -> int:
    return sum(p.data.size for p in net.parameters())


def makers() -> tuple[module.Convolution, module.Norm]:
    """The constructors of convolution and batch norm that a block takes."""
    return module._makers(np.random.default_rng(0), METHOD, None, None)


# ── Parameters ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (resnet18, 11_689_512),
        (resnet34, 21_797_672),
        (resnet50, 25_557_032),
        (resnet101, 44_549_160),
        (resnet152, 60_192_808),
    ],
)
@pytest.mark.usefixtures("hollow")
def test_parameter_counts_with_1000_classes_are_torchvisions(make, parameters):
    assert count(make(num_classes=1000)) == parameters


@pytest.mark.usefixtures("hollow")
def test_parameter_counts_without_classifier():
    assert count(resnet18()) == 11_176_512
    assert count(resnet18(stem="cifar")) == 11_168_832
    assert count(resnet50()) == 25_557_032 - 1000 * 2049


def torchvision_names(depths: tuple[int, ...], convolutions: int, first_stage_projects: bool) -> Iterator[str]:
    """The names of a torchvision ResNet with classifier, by rule, in its order."""

    def norm(name: str) -> Iterator[str]:
        yield from (f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var"))

    yield "conv1.weight"
    yield from norm("bn1")
    for stage, depth in enumerate(depths, start=1):
        for k in range(depth):
            block = f"layer{stage}.{k}"
            for c in range(1, convolutions + 1):
                yield f"{block}.conv{c}.weight"
                yield from norm(f"{block}.bn{c}")
            if k == 0 and (stage > 1 or first_stage_projects):
                yield f"{block}.downsample.0.weight"
                yield from norm(f"{block}.downsample.1")
    yield "fc.weight"
    yield "fc.bias"


@pytest.mark.usefixtures("hollow")
@pytest.mark.parametrize(
    ("make", "depths", "convolutions"),
    [(resnet18, (2, 2, 2, 2), 2), (resnet34, (3, 4, 6, 3), 2), (resnet50, (3, 4, 6, 3), 3)],
)
def test_names_are_torchvisions(make, depths, convolutions):
    net = make(num_classes=10)
    assert list(net.state_dict()) == list(torchvision_names(depths, convolutions, convolutions == 3))


@pytest.mark.usefixtures("hollow")
def test_bottlenecks_stride_on_their_3x3_convolution():
    net = resnet50()
    for stage in (2, 3, 4):
        block = vars(getattr(net, f"layer{stage}"))["0"]
        assert [c.weight.shape[0] for c in (block.conv1, block.conv2, block.conv3)] == [1, 3, 1]
        assert [c.stride for c in (block.conv1, block.conv2, block.conv3)] == [1, 2, 1]


@pytest.mark.usefixtures("hollow")
def test_width_multiplies_every_channel():
    one, two = resnet50(base=8), resnet50(base=8, width=2)
    assert (one.features, two.features) == (256, 512)
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items()):
        inputs = 1 if name == "conv1.weight" else 2  # the image keeps its three channels
        assert b.shape == tuple(size * factor for size, factor in zip(a.shape, (2, inputs, 1, 1)))


@pytest.mark.usefixtures("hollow")
@pytest.mark.parametrize("name", ENCODERS)
def test_features_are_as_announced(name):
    net = ENCODERS[name]()
    assert net.features == {"small": 128, "resnet18": 512, "resnet34": 512}.get(name, 2048)


# ── Maps ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stem", "pixels", "sides"),
    [("cifar", 32, [32, 32, 16, 8, 4]), ("imagenet", 64, [32, 16, 8, 4, 2]), ("small", 32, [16, 16, 8, 4, 2])],
)
def test_sides_of_the_maps(stem, pixels, sides, monkeypatch):
    """After the stem's convolution and after each of the four stages; inside, maps are (H,W,N,C)."""
    seen = []
    for kind in (module.BatchNorm2d, module.Sequential):
        original = kind.__call__

        def spy(self, x, *args, original=original, **options):
            y = original(self, x, *args, **options)
            if self is net.bn1 or any(self is getattr(net, f"layer{k}") for k in (1, 2, 3, 4)):
                seen.append(y.shape)
            return y

        monkeypatch.setattr(kind, "__call__", spy)
    net = placed(resnet18(base=2, stem=stem))
    with no_grad():
        h = net(on_device(np.zeros((1, pixels, pixels, 3), np.float32)))
    assert seen == [(side, side, 1, channels) for side, channels in zip(sides, (2, 2, 4, 8, 16))]
    assert h.shape == (1, 16)


def test_h_is_the_mean_of_the_last_map_and_classes_stand_on_it():
    images = on_device(np.random.default_rng(0).random((2, 8, 8, 3), np.float32))
    h = placed(resnet_small(base=4))(images)
    net = placed(resnet_small(base=4, num_classes=7))
    state = {**net.state_dict(), **placed(resnet_small(base=4)).state_dict()}
    net.load_state_dict(state)
    assert h.shape == (2, 16)
    assert_close(net(images).data, host(h.data) @ state["fc.weight"].T + state["fc.bias"], rtol=1e-5)


def test_images_need_not_be_square_and_may_be_a_tensor():
    images = on_device(np.random.default_rng(0).random((2, 16, 8, 3), np.float32))
    net = placed(resnet_small(base=4))
    assert_same(net(images).data, net(Tensor(images)).data)


def test_the_gradient_reaches_the_pixels_of_a_tensor():
    images = tensor(np.random.default_rng(0).random((2, 8, 8, 3), np.float32), requires_grad=True)
    placed(resnet_small(base=4))(images).sum().backward()
    assert images.grad.shape == (2, 8, 8, 3)
    assert np.abs(host(images.grad)).max() > 0


def test_a_basic_block_is_the_papers_formula():
    """relu(x + bn(conv(relu(bn(conv x))))), with batch norm an identity here and one-pixel kernels that scale."""
    block = placed(module.BasicBlock(2, 2, 1, *makers())).astype(np.float64)
    for conv, factor in ((block.conv1, 3.0), (block.conv2, -2.0)):
        kernel = np.zeros((3, 3, 2, 2))
        kernel[1, 1] = factor * np.eye(2)
        conv.weight.data = on_device(kernel)
    x = np.random.default_rng(1).standard_normal((2, 2, 3, 2))
    scale = 1 / np.sqrt(1 + 1e-5)
    expected = np.maximum(x - 2 * scale * np.maximum(3 * scale * x, 0), 0)
    assert_close(block(tensor(x)).data, expected, rtol=1e-12)


def test_a_block_whose_convolutions_are_silent_hands_gradients_through():
    """relu(x + 0): the shortcut carries the gradient wherever x > 0."""
    block = placed(module.BasicBlock(2, 2, 1, *makers())).astype(np.float64)
    block.bn2.weight.data = on_device(np.zeros(2))
    x = tensor(np.random.default_rng(1).standard_normal((2, 2, 3, 2)), requires_grad=True)
    block(x).sum().backward()
    assert_same(x.grad, x.data > 0)


# ── The stem of large images ──────────────────────────────────────────────────────────────────────


def stem_alone(base: int) -> module.ResNet:
    """An encoder without stages: h is the mean of what the stem gives."""
    net = placed(resnet18(base=base, stem="imagenet")).astype(np.float64)
    net.stages = 0
    return net


@pytest.mark.parametrize("side", [(16, 16), (17, 14)])
def test_the_stem_of_large_images_is_its_loops(side):
    """A 7×7 convolution of stride 2, batch norm, ReLU, and the largest of each 3×3 window, again of stride 2."""
    net = stem_alone(3)
    net.bn1.bias.data = on_device(np.array([0.3, -0.2, 0.0]))
    images = np.random.default_rng(0).random((2, *side, 3))
    maps = conv2d_by_loops(images.transpose(1, 2, 0, 3), host(net.conv1.weight.data), stride=2, padding=3)
    maps = np.maximum(maps / np.sqrt(1 + 1e-5) + host(net.bn1.bias.data), 0)
    pooled = max_pool2d_by_loops(maps, kernel=3, stride=2, padding=1)
    assert_close(net(on_device(images)).data, pooled.mean(axis=(0, 1)), rtol=1e-12)


def test_closed_values_of_one_bright_pixel_that_four_windows_of_the_stem_see():
    """The kernel copies its centre. Pixel (2,2) becomes pixel (1,1) of 8×8, which 4 of the 4×4 windows hold."""
    net = stem_alone(1)
    kernel, images = np.zeros((7, 7, 3, 1)), np.zeros((1, 16, 16, 3))
    kernel[3, 3, 0, 0], images[0, 2, 2, 0] = 1, 8
    net.conv1.weight.data = on_device(kernel)
    assert_close(net(on_device(images)).data, [[8 / np.sqrt(1 + 1e-5) * 4 / 16]], rtol=1e-12)


# ── A bottleneck ──────────────────────────────────────────────────────────────────────────────────


def bottleneck(*factors):
    """A block of 4 channels, 1 inside, whose kernels scale: the sum of the channels, then one number, then all four."""
    block = placed(module.Bottleneck(4, 1, 1, *makers())).astype(np.float64)
    for conv, factor in zip((block.conv1, block.conv2, block.conv3), factors):
        kernel = np.zeros(conv.weight.shape)
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = factor
        conv.weight.data = on_device(kernel)
    return block


def test_a_bottleneck_is_the_papers_formula():
    """relu(x + bn(conv3(relu(bn(conv2(relu(bn(conv1 x)))))))), with batch norm an identity here."""
    x, scale = np.random.default_rng(1).standard_normal((2, 2, 30, 4)), 1 / np.sqrt(1 + 1e-5)
    for a, b, c in ((1.0, -2.0, 3.0), (1.0, 2.0, 3.0), (-1.0, 2.0, -3.0)):
        first = np.maximum(a * scale * x.sum(axis=3, keepdims=True), 0)
        second = np.maximum(b * scale * first, 0)
        assert_close(bottleneck(a, b, c)(tensor(x)).data, np.maximum(x + c * scale * second, 0), rtol=1e-12)


def test_a_bottleneck_whose_second_convolution_is_silent_under_its_relu_is_its_shortcut():
    """The second convolution turns all numbers negative that the first ReLU lets through."""
    x = np.random.default_rng(1).standard_normal((2, 2, 30, 4))
    assert_same(bottleneck(1.0, -1.0, 1.0)(tensor(x)).data, np.maximum(x, 0))


def last_map(net, images):
    x = net.bn1(net.conv1(Tensor(images.transpose(1, 2, 0, 3))), relu=True)
    return net.layer3(net.layer2(net.layer1(x))).data


def test_h_is_the_mean_over_the_pixels_of_the_last_map_written_out():
    images = on_device(np.random.default_rng(0).random((2, 32, 24, 3), np.float32))
    net = placed(resnet_small(base=4))
    maps = last_map(net, images)
    assert maps.shape == (4, 3, 2, 16)
    assert_close(net(images).data, maps.sum(axis=(0, 1)) / 12, rtol=1e-5)


def test_logits_agree_with_the_mean_of_every_pixels_own_logits():
    images = on_device(np.random.default_rng(0).random((2, 32, 24, 3), np.float32))
    net = placed(resnet_small(base=4, num_classes=7))
    state = net.state_dict()
    each = host(last_map(net, images)) @ state["fc.weight"].T + state["fc.bias"]
    assert_close(net(images).data, each.mean(axis=(0, 1)), rtol=1e-4, atol=1e-5)


def test_the_same_generator_draws_the_same_network():
    a, b, c = (resnet_small(base=4, rng=np.random.default_rng(seed)).state_dict() for seed in (5, 5, 6))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["conv1.weight"], c["conv1.weight"])


@pytest.mark.usefixtures("hollow")
@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_every_layer_of_an_encoder_has_the_form_and_the_dtype_that_it_was_told(make):
    net = make(method="conv=winograd,norm=plain,pool=plain", product_dtype=np.dtype(np.float16))
    layers = [layer for _, layer in net.modules()]
    convolutions = [layer for layer in layers if isinstance(layer, module.Conv2d)]
    assert {(layer.method, layer.product_dtype) for layer in convolutions} == {("winograd", np.dtype(np.float16))}
    assert {layer.method for layer in layers if isinstance(layer, module.BatchNorm2d)} == {"plain"}
    assert net.pool == "plain"


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="kinds conv, norm, pool, ntxent, views; not 'loss=plain'"):
        resnet_small(method="loss=plain")


@pytest.mark.parametrize("method", ["conv=fused", "norm=slabs", "pool=", "ntxent=tile", "views=fast"])
def test_a_form_that_its_kind_lacks_is_refused_when_the_network_is_made(method):
    """The operations would refuse it, too, but only in the first step of training."""
    with pytest.raises(ValueError, match=f"for {method.partition('=')[0]}; not"):
        resnet_small(method=method)


# ── What is refused ───────────────────────────────────────────────────────────────────────────────


def test_an_unknown_stem_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"imagenet, cifar, small; not 'cifar10'"):
        placed(resnet_small(stem="cifar10"))


@pytest.mark.parametrize("wrap", [on_device, tensor])
@pytest.mark.parametrize("shape", [(8, 8, 3), (2, 8, 8, 1), (2, 3, 8, 8), (2, 8, 8, 4)])
def test_images_of_another_shape_are_refused(shape, wrap):
    with pytest.raises(ValueError, match=r"\(N,H,W,3\), not \(") as error:
        placed(resnet_small(base=4))(wrap(np.zeros(shape, np.float32)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrap", [on_device, tensor])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.bool_])
def test_images_that_are_not_float_are_refused(dtype, wrap):
    with pytest.raises(TypeError, match="float images"):
        placed(resnet_small(base=4))(wrap(np.zeros((2, 8, 8, 3), dtype)))


def test_a_tensor_of_pixels_is_computed_in_the_dtype_of_the_weights() -> None:
    encoder = resnet_small(base=4)
    images = Tensor(np.full((2, 16, 16, 3), 0.5), requires_grad=True)  # float64
    h = encoder(images)
    h.backward(np.ones(h.shape))
    assert (h.dtype, images.grad.dtype) == (np.float32, np.float64)
