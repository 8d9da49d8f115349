"""The project in seven promises: read them first, then the package. They run in about a second."""

import numpy as np
import pytest

import minisimclr as ms

pytestmark = pytest.mark.host  # the other files of tests repeat all this on device arrays
DOODLES = ms.load_dataset("doodles", limit=16).images  # uint8 (16,32,32,3): drawings of sixteen things


def test_autograd_finds_the_gradient_that_one_finds_by_hand() -> None:
    x = ms.Tensor(np.array([0.5, -1.0, 2.0]), requires_grad=True)
    ms.ops.log(ms.ops.exp(x).sum()).backward()  # log Σ eˣ, whose gradient is the softmax
    np.testing.assert_allclose(x.grad, np.exp(x.data) / np.exp(x.data).sum(), rtol=1e-14)


def test_a_loss_that_knows_nothing_is_at_chance() -> None:
    same = np.ones((8, 5))  # 16 embeddings that all point the same way: the positive is one of 15 equal choices
    assert ms.nt_xent(same, same).item() == pytest.approx(np.log(2 * 8 - 1), rel=1e-14)


def test_every_form_of_the_loss_gives_the_same_value_and_gradient() -> None:
    za, zb = np.random.default_rng(0).standard_normal((2, 8, 5))
    plain = ms.nt_xent_value_and_grad(za, zb, method="plain")
    for method in ("composed", "exact", "tiled"):
        for ours, theirs in zip(plain, ms.nt_xent_value_and_grad(za, zb, method=method)):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-15, err_msg=method)


def test_two_views_of_an_image_differ_and_the_same_seed_draws_them_again() -> None:
    a, b = ms.two_views(DOODLES, np.random.default_rng(0), size=24)
    assert a.shape == b.shape == (16, 24, 24, 3)
    assert all(0 <= view.min() < view.max() <= 1 for view in (a, b))
    assert all(np.abs(one - other).mean() > 0.01 for one, other in zip(a, b))
    assert np.array_equal((a, b), ms.two_views(DOODLES, np.random.default_rng(0), size=24))


def network() -> ms.SimCLR:
    encoder = ms.resnet_small(rng=np.random.default_rng(1))
    return ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, encoder.features, 32))


def test_one_step_of_training_lowers_the_loss() -> None:
    model, (a, b) = network(), ms.two_views(DOODLES, np.random.default_rng(0))
    loss, _, _ = model.loss(a, b, temperature=0.2)
    loss.backward()
    ms.SGD(model.parameters(), lr=0.05).step()
    assert model.loss(a, b, temperature=0.2)[0].item() < loss.item() - 0.1


def test_the_representation_of_an_image_does_not_depend_on_its_neighbours() -> None:
    together, _ = ms.embed(network(), DOODLES)
    alone, _ = ms.embed(network(), DOODLES[:1])
    np.testing.assert_allclose(alone, together[:1], rtol=1e-4, atol=1e-6)


def test_even_an_untrained_encoder_puts_an_image_beside_its_mirror_image() -> None:
    h, _ = ms.embed(network(), np.concatenate([DOODLES, DOODLES[:, :, ::-1]]))  # (32,features)
    assert ms.knn_accuracy(h[:16], np.arange(16), h[16:], np.arange(16), 1) > 0.25  # chance: 1/16
