"""A model and views of one's own: trained, kept, resumed, loaded; and the head by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minisimclr as ms
from minisimclr import heads, objectives
from minisimclr.cli import main
from minisimclr.module import Module
from minisimclr.nn import Linear
from minisimclr.training.checkpoint import CheckpointError
from minisimclr.training.config import Config, build_model

pytestmark = pytest.mark.host

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
CONFIG = Config(size=16, batch=4, epochs=2, lr=0.1)


class Pixels(Module):
    """An encoder of somebody's own: one linear layer on the pixels."""

    def __init__(self, seed: int = 0) -> None:
        self.features = 8
        self.linear = Linear(16 * 16 * 3, 8, rng=np.random.default_rng(seed))

    def __call__(self, images: Any, train: bool = False) -> ms.Tensor:
        pixels = images.data if isinstance(images, ms.Tensor) else images
        return self.linear(ms.Tensor(pixels.reshape(len(pixels), -1)))


def own_model(seed: int = 0) -> ms.SimCLR:
    return ms.SimCLR(Pixels(seed), ms.ProjectionHead(8, 8, 4))  # type: ignore[arg-type]


def shifted_views(images: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Views of somebody's own: each image moved sideways, twice."""
    x = ms.to_float(images)
    a, b = rng.integers(0, 4, 2)
    return np.roll(x, a, axis=2), np.roll(x, b, axis=2)


def weights(run: ms.Run) -> dict[str, Any]:
    return run.model.state_dict()


# ── A model and views of one's own ────────────────────────────────────────────────────────────────


def test_an_own_model_with_own_views_is_trained_kept_and_loaded(tmp_path: Path) -> None:
    model = own_model()
    before = model.state_dict()
    run = ms.pretrain(CONFIG, IMAGES, folder=tmp_path / "run", model=model, views=shifted_views)
    assert run.model is model
    assert any((before[name] != array).any() for name, array in model.state_dict().items())
    again = ms.load_run(tmp_path / "run", model=own_model(seed=5))
    for name, array in weights(again).items():
        np.testing.assert_array_equal(array, weights(run)[name])
    h, z = ms.embed(again.model, IMAGES)
    assert h.shape == (12, 8)
    assert z.shape == (12, 4)


def test_own_views_are_those_that_the_loss_gets() -> None:
    seen = []

    def views(images: Any, rng: np.random.Generator) -> tuple[Any, Any]:
        a, b = shifted_views(images, rng)
        seen.append((a, b))
        return a, b

    run = ms.pretrain(Config(size=16, batch=4, epochs=1, lr=1e-30), IMAGES, model=own_model(), views=views)
    assert len(seen) == 3
    losses = [line["loss"] for line in run.history]
    expected = [own_model().loss(a, b, CONFIG.temperature)[0].item() for a, b in seen]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_an_own_run_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole = ms.pretrain(CONFIG, IMAGES, model=own_model(), views=shifted_views)

    class Stop(Exception):
        pass

    def stop_after_three(metrics: Any) -> None:
        if metrics["step"] == 2:
            raise Stop

    how: dict[str, Any] = {"folder": tmp_path / "run", "views": shifted_views}
    with pytest.raises(Stop):
        ms.pretrain(CONFIG, IMAGES, model=own_model(), progress=stop_after_three, **how)
    resumed = ms.pretrain(CONFIG, IMAGES, model=own_model(seed=9), resume=True, **how)
    for name, array in weights(resumed).items():
        np.testing.assert_array_equal(array, weights(whole)[name])


@pytest.mark.slow
def test_workers_make_own_views(tmp_path: Path) -> None:
    alone = ms.pretrain(CONFIG, IMAGES, views=shifted_views)
    with_worker = ms.pretrain(CONFIG, IMAGES, views=shifted_views, workers=1)
    for name, array in weights(alone).items():
        np.testing.assert_array_equal(array, weights(with_worker)[name])


def test_what_was_brought_must_be_brought_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ms.pretrain(CONFIG, IMAGES, folder=tmp_path / "run", model=own_model(), views=shifted_views)
    with pytest.raises(CheckpointError, match=r"of a model of one's own: load_run\(folder, model=…\)"):
        ms.load_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"misses model/encoder|has no use for"):
        ms.load_run(tmp_path / "run", model=build_model(CONFIG))
    with pytest.raises(ValueError, match="its caller brought model and views of his own"):
        ms.pretrain(CONFIG, IMAGES, folder=tmp_path / "run", resume=True, model=own_model())
    assert main(["evaluate", str(tmp_path / "run")]) == 4
    assert "load_run(folder, model=…)" in capsys.readouterr().err


def test_a_run_of_a_configuration_is_not_resumed_with_a_model_of_ones_own(tmp_path: Path) -> None:
    ms.pretrain(CONFIG, IMAGES, folder=tmp_path / "run")
    with pytest.raises((ValueError, CheckpointError)):
        ms.pretrain(CONFIG, IMAGES, folder=tmp_path / "run", resume=True, model=own_model())


def test_own_things_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="model must be a SimCLR"):
        ms.pretrain(CONFIG, IMAGES, model=Pixels())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="precision must be float32 or tf32 for a model of one's own"):
        ms.pretrain(Config(size=16, batch=4, precision="float16"), IMAGES, model=own_model())


@pytest.mark.parametrize("views", [
    lambda images, rng: (np.zeros((4, 16, 16, 3), np.float32),),
    lambda images, rng: [np.zeros((2, 16, 16, 3), np.float32)] * 2,  # a batch of half the size
    lambda images, rng: (np.zeros((4, 16, 16, 3), np.float32), np.zeros((4, 8, 8, 3), np.float32)),
    lambda images, rng: (np.zeros((4, 3, 16, 16), np.float32),) * 2,
    lambda images, rng: np.zeros((2, 4, 16, 16, 3), np.float32),
    lambda images, rng: None,
])  # fmt: skip
def test_views_that_are_not_two_of_each_image_are_refused(views: Any) -> None:
    with pytest.raises(ValueError, match=r"views must return two float arrays \(4,H,W,3\), one view of each image"):
        ms.pretrain(Config(size=16, batch=4, epochs=1), IMAGES, views=views)


@pytest.mark.parametrize("thing", ["views", "progress", "monitor"])
def test_what_is_called_must_be_a_function(thing: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"{thing} must be a function, not 3"):
        ms.pretrain(Config(size=16, batch=4, epochs=1), IMAGES, folder=tmp_path / "run", **{thing: 3})
    assert not (tmp_path / "run").exists()  # nothing was begun, and nothing is locked


def test_a_folder_must_be_a_path() -> None:
    for call in (lambda: ms.pretrain(CONFIG, IMAGES, folder=3), lambda: ms.load_run(3)):
        with pytest.raises(TypeError, match="the folder of the run must be a path, not 3"):
            call()
    with pytest.raises(ValueError, match="empty name"):
        ms.load_run("")


def test_a_run_without_own_things_says_nothing_of_them(tmp_path: Path) -> None:
    """Its checkpoint has the entries that it had before: older versions read it."""
    from minisimclr.training.checkpoint import load_meta

    ms.pretrain(CONFIG, IMAGES, folder=tmp_path / "run")
    assert "own" not in load_meta(tmp_path / "run" / "checkpoint.npz")


# ── Heads ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "layers", "has_norm"),
    [("auto", 2, True), ("linear", 1, True), ("mlp2", 2, True), ("mlp3", 3, True), ("linear-text", 1, False),
     ("mlp2-text", 2, False), ("mlp3-text", 3, False)],
)  # fmt: skip
def test_a_head_is_what_its_name_says(name: str, layers: int, has_norm: bool) -> None:
    head = build_model(Config(head=name)).head
    names = [key for key, _ in head.named_parameters()]
    assert head.layers == layers
    assert [key for key in names if key.startswith("linear") and key.endswith("weight")] == [
        f"linear{k + 1}.weight" for k in range(layers)
    ]
    assert any(key.startswith("bn") for key in names) == has_norm
    assert ("linear1.bias" in names) != has_norm  # batch norm would remove a bias
    assert f"bn{layers}.bias" not in names  # the last norm has no shift


def test_without_a_head_z_is_h() -> None:
    model = build_model(Config(head="none"))
    h, z = model(np.random.default_rng(0).random((3, 32, 32, 3), np.float32))
    np.testing.assert_array_equal(h.data, z.data)
    assert not model.head.parameters()


def test_the_default_head_has_the_weights_that_it_always_had() -> None:
    """`auto` and `mlp2` draw the same numbers in the same order."""
    a, b = (build_model(Config(head=name)).state_dict() for name in ("auto", "mlp2"))
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name])
    three = build_model(Config(head_layers=3)).head
    assert three.layers == 3


@pytest.mark.parametrize("name", ["mlp3", "mlp2-text"])
def test_h_comes_from_any_layer_of_the_head(name: str) -> None:
    model = build_model(Config(head=name))
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    h, z = model(images)
    x = h.data
    for layer in range(model.head.layers + 1):
        if layer:  # the layer written out, with running statistics
            linear = getattr(model.head, f"linear{layer}")
            x = x @ linear.weight.data + (linear.bias.data if hasattr(linear, "bias") else 0)
            if hasattr(model.head, f"bn{layer}"):
                norm = getattr(model.head, f"bn{layer}")
                shift = norm.bias.data if hasattr(norm, "bias") else 0
                x = (x - norm.running_mean) / np.sqrt(norm.running_var + norm.eps) * norm.weight.data + shift
            x = np.maximum(x, 0) if layer < model.head.layers else x
        found, same_z = heads.h_from(model, layer)(images)
        np.testing.assert_allclose(found.data, x, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(same_z.data, z.data)


def test_a_layer_that_the_head_does_not_have_is_refused() -> None:
    model = build_model(Config())
    with pytest.raises(ValueError, match="layer must be at most 2"):
        heads.h_from(model, 3)
    with pytest.raises(ValueError, match="layer must be at least 0"):
        heads.h_from(model, -1)
    with pytest.raises(TypeError, match="needs a ProjectionHead"):
        heads.h_from(ms.SimCLR(Pixels(), Linear(8, 4, rng=np.random.default_rng(0))), 1)  # type: ignore[arg-type]
    assert heads.h_from(model, 0) is model


@pytest.mark.parametrize("encoder", ["small", "resnet50"])
def test_a_block_whose_last_scale_is_zero_begins_as_its_shortcut(encoder: str) -> None:
    from minisimclr.resnet import BasicBlock, Bottleneck

    make = {"small": ms.resnet_small, "resnet50": ms.resnet50}[encoder]
    network = make(base=4)
    heads.zero_last_scales(network)
    blocks = [b for _, b in network.modules() if isinstance(b, (BasicBlock, Bottleneck))]
    assert len(blocks) == {"small": 3, "resnet50": 16}[encoder]
    plain = [b for b in blocks if not hasattr(b, "downsample")]
    assert plain
    for block in plain:
        x = ms.Tensor(np.random.default_rng(0).standard_normal((4, 4, 2, block.conv1.weight.shape[2]), np.float32))
        np.testing.assert_array_equal(block(x, train=True).data, np.maximum(x.data, 0))
    made = build_model(Config(zero_init=True)).encoder.state_dict()
    assert not made["layer2.0.bn2.weight"].any()
    assert made["layer2.0.bn1.weight"].all()


# ── Objectives ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_a_run_trains_by_the_objective_that_its_configuration_names(name: str) -> None:
    config = Config(size=16, batch=4, epochs=1, objective=name, temperature=0.3, margin=0.7)
    run = ms.pretrain(config, IMAGES)
    model = build_model(config)
    a, b = ms.two_views(IMAGES[config.rng(2, 0).permutation(12)[:4]], config.rng(3, 0), size=16)
    _, z = model(np.concatenate([a, b]), train=True)
    expected = {
        "nt_xent": lambda: ms.nt_xent(z[:4], z[4:], 0.3),
        "decoupled": lambda: objectives.decoupled(z[:4], z[4:], 0.3),
        "nt_logistic": lambda: objectives.nt_logistic(z[:4], z[4:], 0.3),
        "nt_logistic_semi_hard": lambda: objectives.nt_logistic(z[:4], z[4:], 0.3, semi_hard=True),
        "triplet": lambda: objectives.triplet(z[:4], z[4:], 0.7),
        "triplet_semi_hard": lambda: objectives.triplet(z[:4], z[4:], 0.7, semi_hard=True),
    }[name]()
    assert run.history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert run.history[0]["chance"] == objectives.chance(name, 4, 0.7)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_chance_is_the_closed_form_of_orthogonal_embeddings(name: str) -> None:
    """All cosines are 0, the positives' too: 2N rows of one large identity."""
    n = 5
    eye = np.eye(2 * n)
    value = objectives.named(name, margin=0.3)(eye[:n], eye[n:], 0.1).item()
    # no negative is farther than the positive, so a semi-hard objective has no push
    missing = {"nt_logistic_semi_hard": np.log(2), "triplet_semi_hard": 0.3}.get(name, 0)
    assert value + missing == pytest.approx(objectives.chance(name, n, 0.3), rel=1e-12)


def test_supcon_of_two_views_a_class_is_nt_xent_value_and_gradient() -> None:
    rng = np.random.default_rng(0)
    za, zb = rng.standard_normal((2, 6, 5))
    loss, dza, dzb = ms.nt_xent_value_and_grad(za, zb, 0.2)
    z = ms.Tensor(np.concatenate([za, zb]), requires_grad=True)
    value = objectives.supcon(z, labels=np.tile(rng.permutation(6), 2), temperature=0.2)
    value.backward()
    assert value.item() == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(z.grad, np.concatenate([dza, dzb]), rtol=1e-9, atol=1e-12)


def test_supcon_of_one_class_alone_is_the_closed_form() -> None:
    """All rows equal and of one label: the others share the probability alike."""
    assert objectives.supcon(np.ones((5, 3)), labels=np.zeros(5, int)).item() == pytest.approx(np.log(4))


def test_supcon_leaves_a_row_without_positive_among_the_negatives_only() -> None:
    z = np.random.default_rng(0).standard_normal((5, 4))
    u = z / np.linalg.norm(z, axis=1, keepdims=True)
    e = np.exp(u @ u.T / 0.5)
    np.fill_diagonal(e, 0)
    expected = np.mean([-np.log(e[i, k] / e[i].sum()) for i, k in ((0, 2), (2, 0), (1, 4), (4, 1))])
    found = objectives.supcon(z, labels=np.array([3, 8, 3, 5, 8]), temperature=0.5).item()
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_semi_hard_negative_is_the_nearest_that_is_farther_than_the_positive() -> None:
    """Four directions in a plane; the cosines of anchor 0 are 0.5 to its positive, 0.9 and 0.3 to the others."""
    angles = np.arccos([1.0, 0.9, 0.5, 0.3])  # za[0], za[1], zb[0], zb[1]
    z = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cosines = z @ z.T
    from minisimclr.objectives.pairs import shares

    chosen = shares(np, cosines, semi_hard=True)
    assert chosen[0].tolist() == [0, 0, 0, 1]
    assert chosen.sum(axis=1).max() == 1
    angles = np.arccos([1.0, 0.3, 0.9, 0.5, 0.1, -0.2])  # the positive of row 0 is row 3, at 0.5
    z = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert shares(np, z @ z.T, semi_hard=True)[0].tolist() == [0, 1, 0, 0, 0, 0]  # 0.3, and neither 0.1 nor 0.9
    everyone = shares(np, cosines, semi_hard=False)
    np.testing.assert_array_equal(everyone[0], [0, 0.5, 0, 0.5])


def test_the_decoupled_gradient_does_not_fade_when_the_positive_is_easy() -> None:
    """NT-Xent's positive is chosen almost surely, so its negatives are pushed no more; the decoupled loss pushes on."""
    za = np.eye(4) + 0.01
    sizes = []
    for objective in (ms.nt_xent, objectives.decoupled):
        a = ms.Tensor(za, requires_grad=True)
        objective(a, za + 0.001 * np.arange(16).reshape(4, 4), 0.05).backward()
        assert a.grad is not None
        sizes.append(float(np.abs(a.grad).sum()))
    assert sizes[1] > 1000 * sizes[0]


def test_an_objective_is_kept_with_its_run(tmp_path: Path) -> None:
    ms.pretrain(Config(size=16, batch=4, epochs=1, objective="triplet", head="none"), IMAGES, folder=tmp_path / "run")
    run = ms.load_run(tmp_path / "run")
    assert (run.config.objective, run.model.head.layers) == ("triplet", 0)
    with pytest.raises(ValueError, match="it was made with another objective"):
        ms.pretrain(Config(size=16, batch=4, epochs=1, head="none"), IMAGES, folder=tmp_path / "run", resume=True)


def test_the_gradient_of_the_triplet_is_the_closed_form_of_two_planes() -> None:
    """Each image has a plane of its own, its views at an angle there: negatives have cosine 0, all hinges are open."""
    c, s = np.cos(0.6), np.sin(0.6)
    za = ms.Tensor(np.array([[1.0, 0, 0, 0], [0, 0, 1, 0]]), requires_grad=True)
    zb = np.array([[c, s, 0, 0], [0, 0, c, s]])
    loss = objectives.triplet(za, zb, margin=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(1 - c)
    # the pull of the positive, in two of four anchors; the pushes of two negatives, of share 1/2 each, in two anchors
    expected = [0, -s / 2, (1 + c) / 4, s / 4]
    assert za.grad is not None
    np.testing.assert_allclose(za.grad[0], expected, atol=1e-12)


def test_the_gradient_of_nt_logistic_is_the_closed_form_of_two_planes() -> None:
    c, s, tau = np.cos(0.6), np.sin(0.6), 0.5
    za = ms.Tensor(np.array([[1.0, 0, 0, 0], [0, 0, 1, 0]]), requires_grad=True)
    loss = objectives.nt_logistic(za, np.array([[c, s, 0, 0], [0, 0, c, s]]), tau)
    loss.backward()
    pull = 1 / (1 + np.exp(c / tau)) / tau  # σ(−s⁺)/τ
    push = 0.5 / tau  # σ(0)/τ
    assert loss.item() == pytest.approx(np.log1p(np.exp(-c / tau)) + np.log(2))
    assert za.grad is not None
    np.testing.assert_allclose(za.grad[0], [0, -pull * s / 2, push * (1 + c) / 4, push * s / 4], atol=1e-12)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_a_turn_of_all_embeddings_has_no_gradient_for_any_input(name: str) -> None:
    """To turn all embeddings together changes no cosine, so the gradient has no part along a turn."""
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((2, 5, 4))
    za, zb = ms.Tensor(a, requires_grad=True), ms.Tensor(a + 0.5 * b, requires_grad=True)
    objectives.named(name, margin=0.8)(za, zb, 0.3).backward()
    turn = za.data.T @ za.grad + zb.data.T @ zb.grad  # (D,D)
    assert np.abs(turn).max() > 1e-3
    np.testing.assert_allclose(turn, turn.T, atol=1e-12)


def test_a_head_of_the_papers_text_is_its_formula() -> None:
    """z = W₂ max(W₁h + b₁, 0) + b₂, also in training: no row depends on the others."""
    head = heads.named("mlp2-text", 6, 3)
    h = np.random.default_rng(0).standard_normal((4, 6), np.float32)
    w1, b1, w2, b2 = (parameter.data for parameter in head.parameters())
    expected = np.maximum(h @ w1 + b1, 0) @ w2 + b2
    for train in (False, True):
        np.testing.assert_allclose(head(ms.Tensor(h), train).data, expected, rtol=1e-5, atol=1e-6)


def test_a_row_without_positive_is_moved_by_the_others_alone_in_closed_form() -> None:
    """Rows 0 and 1 share a label. Row 2 is only pushed by these two, each by the probability that it gives to row 2."""
    u = np.linalg.qr(np.random.default_rng(1).standard_normal((4, 4)))[0][:3]  # orthogonal, so all logits are 0
    z = ms.Tensor(u.copy(), requires_grad=True)
    objectives.supcon(z, labels=np.array([4, 4, 9]), temperature=0.5).backward()
    assert z.grad is not None
    np.testing.assert_allclose(z.grad[2], (0.5 * u[0] + 0.5 * u[1]) / (2 * 0.5), atol=1e-12)
