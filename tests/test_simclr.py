"""The projection head, and one step of Algorithm 1: what the loss is made of and where its gradient goes."""

from __future__ import annotations

import math

import devices
import numpy as np
import pytest
from devices import assert_close, assert_same, host, on_device, placed, tensor

from minisimclr.checks.gradcheck import check_path
from minisimclr.engine.autograd import Tensor
from minisimclr.ntxent import contrastive_accuracy, nt_xent
from minisimclr.resnet import resnet_small
from minisimclr.simclr import ProjectionHead, SimCLR

Array = np.ndarray


def tiny(dtype: type = np.float64, base: int = 4, dim: int = 8) -> SimCLR:
    encoder = resnet_small(base=base)
    head = ProjectionHead(encoder.features, encoder.features, dim)
    return placed(SimCLR(encoder, head).astype(dtype))


def two(n: int = 4, side: int = 8, seed: int = 0) -> tuple[Array, Array]:
    """Two noisy views of n random images, float64."""
    rng = np.random.default_rng(seed)
    images = rng.random((n, side, side, 3))
    a, b = (np.clip(images + 0.1 * rng.standard_normal(images.shape), 0, 1) for _ in "ab")
    return on_device((a, b))


def gradient(model: SimCLR, loss: Tensor) -> Array:
    """All parameters' gradients as one row, and zero again afterwards."""
    loss.backward()
    row = np.concatenate([host(p.grad).ravel() for p in model.parameters()])
    model.zero_grad()
    return row


def cosine(x: Array, y: Array) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


# ── The head ──────────────────────────────────────────────────────────────────────────────────────


def test_the_head_of_googles_first_code():
    """Two linear layers without bias, each with batch norm, the last batch norm without shift."""
    assert {name: a.shape for name, a in ProjectionHead(6, 5, 4).state_dict().items()} == {
        "linear1.weight": (5, 6),
        "bn1.weight": (5,),
        "bn1.bias": (5,),
        "bn1.running_mean": (5,),
        "bn1.running_var": (5,),
        "linear2.weight": (4, 5),
        "bn2.weight": (4,),
        "bn2.running_mean": (4,),
        "bn2.running_var": (4,),
    }


def test_the_head_of_the_papers_text_has_biases_and_no_norm():
    assert {name: a.shape for name, a in ProjectionHead(6, 5, 4, batch_norm=False).state_dict().items()} == {
        "linear1.weight": (5, 6),
        "linear1.bias": (5,),
        "linear2.weight": (4, 5),
        "linear2.bias": (4,),
    }


@pytest.mark.parametrize(("layers", "shapes"), [(1, [(4, 6)]), (2, [(5, 6), (4, 5)]), (3, [(5, 6), (5, 5), (4, 5)])])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_head_of_any_number_of_layers(layers, shapes, batch_norm):
    head = ProjectionHead(6, 5, 4, layers, batch_norm)
    state = head.state_dict()
    assert [a.shape for name, a in state.items() if "linear" in name and "weight" in name] == shapes
    assert [name for name in state if name.startswith("bn") and name.endswith(".bias")] == (
        [f"bn{k}.bias" for k in range(1, layers)] if batch_norm else []
    )
    assert placed(head)(tensor(np.ones((3, 6), np.float32)), train=True).shape == (3, 4)


def test_between_the_layers_stands_a_relu_and_none_after_the_last():
    head = placed(ProjectionHead(3, 4, 2, batch_norm=False).astype(np.float64))
    h = np.random.default_rng(0).standard_normal((20, 3))
    w1, b1, w2, b2 = head.state_dict().values()
    expected = np.maximum(h @ w1.T + b1, 0) @ w2.T + b2
    assert_close(head(tensor(h)).data, expected, rtol=1e-12)
    assert (expected < 0).any()


def test_the_heads_output_is_centred_in_training():
    """The last batch norm without shift: each dimension of z has mean 0 over the batch."""
    head = placed(ProjectionHead(6, 5, 4).astype(np.float64))
    z = head(tensor(np.random.default_rng(0).random((10, 6))), train=True)
    assert_close(z.data.mean(axis=0), np.zeros(4), atol=1e-12)


def test_a_head_without_layers_is_refused():
    with pytest.raises(ValueError, match="layers must be at least 1, not 0"):
        ProjectionHead(6, 5, 4, layers=0)


# ── The model ─────────────────────────────────────────────────────────────────────────────────────


def test_model_answers_with_h_and_z():
    model, (images, _) = tiny(), two()
    h, z = model(images)
    assert (h.shape, z.shape) == ((4, 16), (4, 8))
    assert_same(h.data, model.encoder(images).data)
    assert_same(z.data, model.head(h).data)


def test_names_tell_encoder_from_head():
    names = list(tiny().state_dict())
    assert {name.partition(".")[0] for name in names} == {"encoder", "head"}
    assert names[0] == "encoder.conv1.weight"


# ── The loss ──────────────────────────────────────────────────────────────────────────────────────


def test_loss_is_nt_xent_of_one_batch_of_both_views(xp):
    """Value, embeddings and gradient are those of an explicit batch [views a; views b]."""
    model, (a, b) = tiny(), two()
    loss, za, zb = model.loss(a, b, 0.2)
    _, z = tiny()(xp.concatenate([a, b]), train=True)
    explicit = nt_xent(z[:4], z[4:], 0.2)
    assert loss.item() == explicit.item()
    assert_same(xp.concatenate([za, zb]), z.data)
    # the parameters must be those of the model that computed it
    np.testing.assert_allclose(gradient(model, loss), gradient_of_explicit_batch(a, b), rtol=1e-12, atol=1e-14)


def gradient_of_explicit_batch(a: Array, b: Array) -> Array:
    model = tiny()
    _, z = model(devices.xp().concatenate([a, b]), train=True)
    return gradient(model, nt_xent(z[: len(a)], z[len(a) :], 0.2))


def test_views_forwarded_apart_would_give_another_gradient():
    """Batch norm must see both views together: the mistake of lightly#2031."""
    model, (a, b) = tiny(), two()
    together = gradient(model, model.loss(a, b, 0.2)[0])
    apart = gradient(model, nt_xent(model(a, train=True)[1], model(b, train=True)[1], 0.2))
    assert cosine(together, apart) < 0.9


def test_loss_trains_with_the_batchs_statistics_and_moves_the_running_ones():
    model, (a, b) = tiny(), two()
    before = model.state_dict()
    model.loss(a, b)
    moved = [name for name, array in model.state_dict().items() if not np.array_equal(array, before[name])]
    assert moved == [name for name in before if "running" in name]


def test_in_training_the_loss_does_not_depend_on_the_running_statistics():
    """No layer uses them, neither in the encoder nor in the head."""
    model, (a, b) = tiny(), two()
    before = model.loss(a, b)[0].item()
    state = model.state_dict()
    model.load_state_dict({name: array + 0.5 * ("running" in name) for name, array in state.items()})
    assert model.loss(a, b)[0].item() == before


def test_loss_of_random_images_starts_near_chance():
    """Chance is log(2N−1): the embeddings of random images carry no information on which views belong together."""
    rng = np.random.default_rng(0)
    a, b = on_device(rng.random((2, 32, 8, 8, 3), np.float32))
    loss, za, zb = tiny(np.float32).loss(a, b, temperature=1.0)
    assert loss.item() == pytest.approx(math.log(63), rel=0.1)
    assert contrastive_accuracy(za, zb) < 0.2


def test_the_form_of_the_loss_is_the_one_that_the_model_was_told(monkeypatch):
    asked = []

    def spy(*args, method="auto"):
        asked.append(method)
        return nt_xent(*args, method=method)

    monkeypatch.setattr("minisimclr.simclr.nt_xent", spy)
    encoder, views = resnet_small(base=4), two()
    for method in ("plain", "ntxent=exact", "conv=slabs"):
        placed(SimCLR(encoder, ProjectionHead(16, 16, 8), method=method)).loss(*views)
    assert asked == ["plain", "exact", "auto"]


def test_swapping_the_views_or_permuting_the_images_changes_nothing():
    a, b = two()
    order = [2, 0, 3, 1]
    loss = tiny().loss(a, b)[0].item()
    assert tiny().loss(b, a)[0].item() == pytest.approx(loss, rel=1e-9)
    assert tiny().loss(a[order], b[order])[0].item() == pytest.approx(loss, rel=1e-9)


def test_every_parameter_gets_a_gradient():
    model = tiny()
    model.loss(*two())[0].backward()
    assert all(p.grad is not None and abs(p.grad).max() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "encoder.conv1.weight",
        "encoder.bn1.bias",
        "encoder.layer2.0.conv2.weight",
        "encoder.layer3.0.downsample.1.weight",
        "head.linear1.weight",
        "head.bn2.weight",
    ],
)
def test_gradient_of_the_whole_model_integrates_to_the_change_of_its_loss(name):
    """f(w + v) − f(w) = ∫⟨∇f, v⟩ along a segment of one parameter, short enough to meet no ReLU's kink."""
    model, (a, b) = tiny(), two()
    before = host(dict(model.named_parameters())[name].data).copy()
    owner = model
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)

    def loss(w: Tensor) -> Tensor:
        setattr(owner, last, w)
        return model.loss(a, b, 0.5)[0]

    step = 1e-6 * np.random.default_rng(3).standard_normal(before.shape)
    check_path(loss, on_device(before), on_device(before + step), nodes=3, tolerance=1e-7)


def test_the_first_weights_of_encoder_and_head_are_told_apart() -> None:
    """Both come from a generator of their own; from one seed the head would begin as a copy of the encoder's draws."""
    first = np.random.default_rng(0).uniform(-1, 1, (4, 4)).ravel()
    drawn = ProjectionHead(4, 4, 4).linear1.weight.data.ravel() * 2  # uniform in ±1/√4
    assert abs(np.corrcoef(first, drawn)[0, 1]) < 0.9


def test_the_loss_of_a_network_has_the_same_bits_as_the_form_that_was_asked_for():
    encoder, views = resnet_small(base=2), on_device(np.random.default_rng(0).random((2, 6, 8, 8, 3), np.float32))
    head = ProjectionHead(encoder.features, 8, 4)
    found = set()
    for method in ("composed", "exact", "auto"):
        loss, za, zb = placed(SimCLR(encoder, head, method=f"ntxent={method}")).loss(*views, 0.05)
        assert host(loss.data).tobytes() == host(nt_xent(za, zb, 0.05, method=method).data).tobytes()
        found.add(host(loss.data).tobytes())
    assert len(found) > 1  # the forms round differently here: else the test could not fail
