"""The book keeps its word: the code on its pages runs and prints what they say, and its exercises have solutions."""

from __future__ import annotations

import doctest
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minisimclr as ms
from minisimclr import ops
from minisimclr.data.doodles import draw_doodles
from minisimclr.nn import BatchNorm2d
from minisimclr.views.transforms import resize_matrices

pytestmark = pytest.mark.host

DOCS = Path(__file__).resolve().parents[1] / "docs"
GENERATED = re.compile(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->", re.DOTALL)  # written by cog, which has its own check
CELL = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PRINTED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def cells(page: Path) -> list[str]:
    """The Python cells of a page, in order."""
    return CELL.findall(GENERATED.sub("", page.read_text()))


def run(page: Path) -> dict[str, Any]:
    """Run the cells of a page one after the other in one namespace, as a reader would, and return the namespace."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for number, cell in enumerate(cells(page), start=1):
        name = f"{page.name}, cell {number}"
        if not cell.startswith(">>>"):
            exec(compile(cell, name, "exec"), namespace)
            continue
        examples = doctest.DocTestParser().get_doctest(cell, {}, name, str(page), 0)
        examples.globs = namespace
        said: list[str] = []
        result = doctest.DocTestRunner(optionflags=PRINTED).run(examples, out=said.append, clear_globs=False)
        assert not result.failed, "".join(said)
    return namespace


def solutions(chapter: int) -> Any:
    """The module docs/solutions/chapter_NN.py."""
    path = DOCS / "solutions" / f"chapter_{chapter:02}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = [page for page in sorted(DOCS.glob("[0-9][0-9]_*.md")) if "\n>>> " in GENERATED.sub("", page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_cells_of_a_page_run_and_print_what_the_page_says(page):
    run(page)


def test_a_cell_that_prints_something_else_is_refused(tmp_path):
    page = tmp_path / "wrong.md"
    page.write_text("```python\nx = 1\n```\n\n```python\n>>> x + 1\n3\n```\n")
    with pytest.raises(AssertionError, match="cell 2"):
        run(page)


def tags(text: str) -> list[str]:
    return re.findall(r"\\tag\{([^}]*)\}", text)


@pytest.mark.parametrize("page", sorted(DOCS.glob("[0-9][0-9]_*.md")), ids=lambda page: page.stem)
def test_an_equation_has_its_chapters_number_and_no_other_has_the_same(page):
    found = tags(page.read_text())
    assert len(found) == len(set(found))
    assert {tag.partition(".")[0] for tag in found} <= {str(int(page.name[:2]))}


# ── Chapter 1: the engine on the page ─────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def engine():
    return run(DOCS / "01_autograd.md")


def test_the_engine_on_the_page_has_the_length_that_it_claims():
    text = (DOCS / "01_autograd.md").read_text()
    parts = re.findall(r"<!-- engine -->\n\n```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for part in parts for line in part.splitlines() if line.strip()]
    assert f"these {len(lines)} lines" in text


EXPRESSIONS = {
    "arithmetic": lambda o, x, y: o["divide"](o["multiply"](x, o["exp"](y)), o["add"](o["multiply"](x, x), 1.5)),
    "a value used many times": lambda o, x, y: o["multiply"](o["add"](x, x), o["add"](o["multiply"](x, y), x)),
    "broadcast": lambda o, x, y: o["multiply"](o["sum"](x, axis=0, keepdims=True), o["subtract"](y, 2.0)),
    "matrices": lambda o, x, y: o["relu"](o["matmul"](x, o["transpose"](y))),
    "reductions": lambda o, x, y: o["max"](o["add"](x, o["mean"](y, axis=1, keepdims=True)), axis=0),
    "shapes": lambda o, x, y: o["getitem"](o["reshape"](o["concatenate"](x, y), shape=(4, -1)), index=[0, 2, 2]),
}


def on_numpy(op: Any) -> Any:
    """The plain function of an operation, (arrays) -> (value, vjp), computed with NumPy."""
    return lambda *arrays, **settings: op.__wrapped__(np, *arrays, **settings)


@pytest.mark.parametrize("f", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_the_engine_on_the_page_gives_the_gradients_of_minisimclr_bit_for_bit(engine, f):
    names = [op for op in ops.__all__ if re.search(rf'o\["{op}"\]', Path(__file__).read_text())]
    of_the_page = {name: engine["primitive"](on_numpy(getattr(ops, name))) for name in names}
    of_ours = {name: getattr(ops, name) for name in names}
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 3, 4))
    found = []
    for o, tensor in ((of_the_page, engine["Tensor"]), (of_ours, ms.Tensor)):
        leaves = [tensor(x, requires_grad=True), tensor(y, requires_grad=True)]
        value = f(o, *leaves)
        seed = np.random.default_rng(1).standard_normal(value.data.shape)
        engine["backward"](value, seed) if o is of_the_page else value.backward(seed)
        found.append([leaf.grad for leaf in leaves])
    assert all(np.array_equal(a, b) for a, b in zip(*found))


def test_solution_tanh_passes_the_gradient_check_and_keeps_only_its_output():
    tanh = solutions(1).tanh
    x = np.random.default_rng(0).standard_normal((3, 4))
    assert ms.gradcheck(tanh, x)
    assert ms.saved_bytes(tanh(ms.Tensor(x, requires_grad=True))).total == x.nbytes


def test_solution_checkpoint_gives_the_same_gradients_from_less_memory():
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((10, 5, 5))

    def gradients(step: Any) -> tuple[list[Any], int]:
        x = ms.Tensor(np.ones((300, 5)), requires_grad=True)
        weights = [ms.Tensor(w, requires_grad=True) for w in matrices]
        y = x
        for w in weights:
            y = step(lambda t, w=w: solutions(1).tanh(ops.exp(ops.relu(t @ w)) + t), y)
        kept = ms.saved_bytes(y).total
        y.sum().backward()
        return [leaf.grad for leaf in (x, *weights)], kept

    plain, much = gradients(lambda f, x: f(x))
    again, little = gradients(solutions(1).checkpoint)
    assert all(np.array_equal(a, b) for a, b in zip(plain, again))
    assert little < much / 2


# ── Chapter 2 ─────────────────────────────────────────────────────────────────────────────────────


def test_solution_cumsum_sums_and_passes_the_gradient_check():
    x = np.random.default_rng(0).standard_normal((3, 4))
    assert np.array_equal(solutions(2).cumsum(x).data, np.cumsum(x, axis=1))
    assert ms.gradcheck(solutions(2).cumsum, x)


def test_solution_log_softmax_gives_the_cross_entropy_of_the_package():
    rng = np.random.default_rng(0)
    s, labels = rng.standard_normal((4, 5)), np.array([0, 4, 2, 2])
    assert ms.gradcheck(solutions(2).log_softmax, s)
    found = []
    for loss in (lambda t: solutions(2).cross_entropy(t, labels), lambda t: ops.cross_entropy(t, labels=labels)):
        logits = ms.Tensor(s, requires_grad=True)
        value = loss(logits)
        value.backward()
        found.append((value.item(), logits.grad))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-14)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-12, atol=1e-15)


# ── Chapter 4 ─────────────────────────────────────────────────────────────────────────────────────


def test_solution_layer_norm_normalizes_rows_and_passes_the_gradient_check():
    rng = np.random.default_rng(0)
    x, scale, shift = rng.standard_normal((3, 5)) + 4, rng.uniform(1, 2, 5), rng.standard_normal(5)
    value = solutions(4).layer_norm(x, np.ones(5), np.zeros(5)).data
    np.testing.assert_allclose(value.mean(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(value.std(axis=1), 1, rtol=1e-4)
    assert ms.gradcheck(solutions(4).layer_norm, x, scale, shift)


def test_solution_combined_statistics_are_those_of_the_whole():
    x = np.random.default_rng(0).standard_normal((30, 4)) + 100
    parts = [(len(part), part.mean(axis=0), part.var(axis=0)) for part in (x[:7], x[7:])]
    count, mean, variance = solutions(4).combined(*parts)
    assert count == 30
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(variance, x.var(axis=0), rtol=1e-12)


def test_the_gradient_of_batch_norm_has_no_mean_and_no_part_along_what_was_normalized():
    """(4.8), with the ε that the approximation leaves out."""
    rng = np.random.default_rng(0)
    x, g = ms.Tensor(rng.standard_normal((40, 3)), requires_grad=True), rng.standard_normal((40, 3))
    layer = BatchNorm2d(3).astype(np.float64)
    layer(x, train=True).backward(g)
    variance = x.data.var(axis=0) + layer.eps
    xhat = (x.data - x.data.mean(axis=0)) / np.sqrt(variance)
    np.testing.assert_allclose(x.grad.sum(axis=0), 0, atol=1e-13)
    left = (g * xhat).sum(axis=0) / np.sqrt(variance) * layer.eps / variance
    np.testing.assert_allclose((xhat * x.grad).sum(axis=0), left, rtol=1e-7)


# ── Chapter 6 ─────────────────────────────────────────────────────────────────────────────────────


def test_solution_measured_field_agrees_with_the_formula():
    assert solutions(6).measured_field(ms.resnet_small(), 80) == 47
    assert solutions(6).measured_field(ms.resnet_small(), 32) == 32  # more than there is


def test_solution_a_model_without_a_head_trains_on_h_itself():
    images, labels, _ = draw_doodles(32, seed=0)
    model = ms.SimCLR(ms.resnet_small(), solutions(6).NoHead())
    h, z = ms.embed(model, images)
    assert np.array_equal(h, z)
    assert 0 <= solutions(6).probe_of(solutions(6).NoHead(), images, labels, steps=1, batch=8) <= 1


# ── Chapter 8 ─────────────────────────────────────────────────────────────────────────────────────


def test_solution_a_kernel_before_batch_norm_forgets_its_learning_rate():
    for lr in (0.1, 1.0, 10.0):
        np.testing.assert_allclose(solutions(8).proportions(100_000, lr)[-1], 1 / np.sqrt(2 * 100_000), rtol=0.03)


def test_solution_schedules_begin_at_zero_peak_after_the_warm_up_and_end_at_zero():
    for schedule in (solutions(8).warmup_linear, solutions(8).restarts):
        assert [schedule(t, 110, 10, 2.0) for t in (0, 5, 10, 110)] == [0, 1, 2, 0]
    assert solutions(8).warmup_linear(60, 110, 10, 2.0) == 1
    np.testing.assert_allclose([solutions(8).restarts(t, 100, 10, 2.0) for t in (40, 70)], 2)


# ── Chapters 3 and 5 ──────────────────────────────────────────────────────────────────────────────


def test_solution_the_gradient_of_a_convolution_is_a_convolution():
    rng = np.random.default_rng(0)
    x, w = ms.Tensor(rng.standard_normal((5, 6, 2, 3)), requires_grad=True), rng.standard_normal((3, 3, 3, 4))
    g = rng.standard_normal((5, 6, 2, 4))
    ops.conv2d(x, w, stride=1, padding=1, method="plain").backward(g)
    np.testing.assert_allclose(solutions(3).gradient_by_convolution(g, w), x.grad, rtol=1e-12, atol=1e-12)


def test_solution_depthwise_is_a_convolution_with_diagonal_matrices_and_passes_the_gradient_check():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 5, 2, 3)), rng.standard_normal((3, 3, 3))
    whole = ops.conv2d(x, w[..., None] * np.eye(3), stride=1, padding=1, method="plain").data
    np.testing.assert_allclose(solutions(3).depthwise(x, w).data, whole, rtol=1e-12, atol=1e-12)
    assert ms.gradcheck(solutions(3).depthwise, x, w)


def test_solution_the_temperatures_gradient_is_that_of_differences_and_positive_for_good_views():
    rng = np.random.default_rng(0)
    za = rng.standard_normal((6, 4))
    for zb, sign in ((rng.standard_normal((6, 4)), None), (za + 0.1 * rng.standard_normal((6, 4)), 1.0)):
        above, below = (ms.nt_xent_value_and_grad(za, zb, 0.3 + d)[0] for d in (1e-5, -1e-5))
        found = solutions(5).temperature_gradient(za, zb, 0.3)
        np.testing.assert_allclose(found, (above - below) / 2e-5, rtol=1e-6)
        assert sign is None or np.sign(found) == sign


def test_solution_one_role_alone_has_half_the_length_and_nearly_the_same_direction():
    rng = np.random.default_rng(0)
    za, zb = rng.standard_normal((2, 256, 128))
    _, dza, dzb = ms.nt_xent_value_and_grad(za, zb, 0.1)
    right, wrong = np.concatenate([dza, dzb]).ravel(), solutions(5).gradient_of_one_role(za, zb, 0.1).ravel()
    lengths = np.linalg.norm(right), np.linalg.norm(wrong)
    assert 0.45 < lengths[1] / lengths[0] < 0.55
    assert right @ wrong / np.prod(lengths) > 0.999

    @ms.primitive
    def one_role(xp, za, zb):
        dz = solutions(5).gradient_of_one_role(za, zb, 0.1)
        return np.asarray(ms.nt_xent_value_and_grad(za, zb, 0.1)[0]), lambda g: (g * dz[: len(za)], g * dz[len(za) :])

    with pytest.raises(ms.GradcheckError):
        ms.check_direction(one_role, za[:8], zb[:8])


# ── Chapter 11 ────────────────────────────────────────────────────────────────────────────────────


def test_solutions_of_chapter_11_print_what_they_say():
    result = doctest.testmod(solutions(11))
    assert (result.failed, result.attempted) == (0, 3)


def test_solution_paired_differences_are_surer_than_their_lists():
    seeds = np.random.default_rng(0).normal(70, 3, 8)
    mean, error = solutions(11).paired(list(seeds + 1), list(seeds))
    assert np.isclose(mean, 1)
    assert error < 1e-12


# ── Chapter 7 ─────────────────────────────────────────────────────────────────────────────────────


def test_solution_solarize_inverts_what_is_bright_and_nothing_else():
    assert np.allclose(solutions(7).solarize(np.array([0.0, 0.4, 0.6, 1.0])), [0, 0.4, 0.4, 0])


def test_solution_a_flipped_crop_is_the_mirror_times_the_crop():
    straight, flipped, whole = (
        resize_matrices(np, np.array([start]), np.array([length]), 12, 12, np.array([flip]))[0]
        for start, length, flip in ((2, 7, False), (2, 7, True), (0, 12, False))
    )
    np.testing.assert_allclose(flipped, solutions(7).mirror(12) @ straight, atol=1e-6)
    np.testing.assert_allclose(whole, np.eye(12), atol=1e-6)


# ── Chapter 9 ─────────────────────────────────────────────────────────────────────────────────────


def test_solution_verdict_tells_collapse_start_learning_and_the_impossible_apart():
    verdict = solutions(9).verdict
    z = np.ones((64, 8))
    assert verdict(ms.nt_xent(z, z, 0.2).item(), 1 / 127, 64, 0.2) == "collapse"
    assert [verdict(loss, 0.1, 256, 0.2) for loss in (6.5, 6.2, 4.0, 1.0)] == [
        "start",
        "start",
        "learning",
        "impossible",
    ]


def test_solution_duplicates_raise_the_floor_to_the_logarithm_of_their_number():
    z = np.eye(8)
    for copies in (1, 2, 3):
        views = np.tile(z, (copies, 1))
        expected = solutions(9).floor_with_duplicates(copies)
        np.testing.assert_allclose(ms.nt_xent(views, views, 0.01).item(), expected, atol=1e-12)


# ── Chapter 10 ────────────────────────────────────────────────────────────────────────────────────


def test_solution_nearest_mean_tells_directions_apart_whatever_their_length():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    h = np.eye(3)[labels] * rng.uniform(0.1, 10, (60, 1)) + 0.01 * rng.standard_normal((60, 3))
    assert np.array_equal(solutions(10).nearest_mean(h[:30], labels[:30], h[30:]), labels[30:])


def test_solution_confusion_has_the_accuracy_on_its_diagonal():
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert solutions(10).confusion(predicted, labels).tolist() == [[2, 1], [0, 1]]
    np.testing.assert_allclose(solutions(10).per_class(predicted, labels), [2 / 3, 1])


# ── Chapter 12 ────────────────────────────────────────────────────────────────────────────────────


def test_solution_the_path_check_has_a_blind_spot_that_the_elements_do_not_have():
    f = solutions(12).sines_with_a_blind_spot
    assert ms.check_path(f, np.zeros(2), np.ones(2))
    with pytest.raises(ms.GradcheckError):
        ms.gradcheck(f, np.array([0.3, 0.6]))


def test_solution_the_sixth_order_quotient_gains_three_digits_on_the_fourth():
    error = abs(solutions(12).sixth_order(np.sin, 1.0, 0.1) / np.cos(1.0) - 1)
    assert 1e-9 < error < 1e-8


# ── Chapter 13 ────────────────────────────────────────────────────────────────────────────────────


def test_solutions_of_chapter_13_print_what_they_say():
    result = doctest.testmod(solutions(13))
    assert (result.failed, result.attempted) == (0, 4)


def test_solution_a_depthwise_convolution_gains_what_it_saves_only_if_copies_are_free():
    gains = solutions(13).gains_of_depthwise
    products, time = gains(64, ridge=0.0)
    assert np.isclose(time, products)
    assert np.isclose(products, 9 * 64 / (9 + 64))
    assert np.isclose(gains(64, ridge=1e9)[1], 0.5, rtol=1e-3)  # two maps to copy in place of one


@pytest.mark.parametrize(("alone", "shared"), [(0.0, 1.0), (0.3, 0.7), (1.0, 0.0)])
def test_solution_amdahl_finds_what_one_thread_does_alone(alone, shared):
    times = [alone + shared / threads for threads in (1, 2, 8)]
    assert np.isclose(solutions(13).amdahl(*times[:2], threads=8), times[2])


def test_solution_symmetry_pays_where_its_saving_is_worth_the_calls():
    call, products, exponentials = 1.5e-6, 125e9, 3e9

    def floor(images, of_products, of_exponentials, calls):
        n = 2 * images
        return n**2 * (of_products * 128 / products + of_exponentials / exponentials) + calls * call

    N = solutions(13).symmetry_pays_from(call, products, exponentials)
    for images, pays in ((N, True), (N - 1, False)):
        assert (floor(images, 1.5, 0.5, calls=100) <= floor(images, 2, 1, calls=30)) == pays


# ── Chapter 14 ────────────────────────────────────────────────────────────────────────────────────


def test_solution_accumulation_is_exact_for_a_mean_over_rows_if_parts_count_by_their_size():
    rows = np.random.default_rng(0).standard_normal((10, 3))
    parts = [slice(0, 7), slice(7, 9), slice(9, 10)]

    def gradient_of_mean(x: Any) -> Any:
        w = ms.Tensor(np.ones(3), requires_grad=True)
        ops.exp(ms.Tensor(x) @ w).mean().backward()
        return w.grad

    np.testing.assert_allclose(solutions(14).accumulated(gradient_of_mean, rows, parts), gradient_of_mean(rows))


@pytest.mark.parametrize("train", [False, True])
def test_solution_the_gradient_cut_at_h_is_that_of_one_graph_where_the_encoder_sees_the_same(train):
    """With running statistics in any parts, and with those of the batch in one part."""
    a, b = np.random.default_rng(0).random((2, 6, 8, 8, 3))
    encoder = ms.resnet_small(base=4)
    model = ms.SimCLR(encoder, ms.ProjectionHead(16, 16, 8)).astype(np.float64)
    _, z = model(np.concatenate([a, b]), train)
    ms.nt_xent(z[:6], z[6:], 0.5).backward()
    whole = [p.grad for p in model.parameters()]
    model.zero_grad()
    parts = [slice(0, 6)] if train else [slice(0, 2), slice(2, 6)]
    solutions(14).gradient_cut_at_h(model, a, b, parts, 0.5, train)
    for p, expected in zip(model.parameters(), whole):
        np.testing.assert_allclose(p.grad, expected, atol=1e-10 * abs(expected).max())
