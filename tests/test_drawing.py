"""The promises of the drawing of a graph."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import minisimclr as ms
from minisimclr.engine.drawing import MOST, draw

pytestmark = pytest.mark.host

SVG = "{http://www.w3.org/2000/svg}"


def boxes(picture):
    """The boxes of a drawing: (kind, x, y, width, height, the two lines of text)."""
    root = ElementTree.fromstring(picture)
    rects = [r for r in root.iter(f"{SVG}rect") if r.get("class") != "ground"]
    texts = [t.text for t in root.iter(f"{SVG}text")]
    return [
        (r.get("class"), *(float(r.get(name)) for name in ("x", "y", "width", "height")), *texts[2 * k : 2 * k + 2])
        for k, r in enumerate(rects)
    ]


@pytest.fixture
def loss():
    rng = np.random.default_rng(0)
    za, zb = (ms.Tensor(rng.standard_normal((2, 3)), requires_grad=True) for _ in range(2))
    return ms.nt_xent(za, zb, 0.5, method="composed"), za, zb


def test_every_operation_and_leaf_has_a_box_with_its_shape(loss):
    value, za, zb = loss
    found = boxes(ms.draw(value, za=za, zb=zb))
    assert [box[5] for box in found if box[0] == "leaf"] == ["za", "zb"]
    assert [box[6] for box in found if box[0] == "leaf"] == ["2×3", "2×3"]
    (last,) = [box for box in found if box[0] == "loss"]
    assert last[5] == "cross_entropy"
    assert last[6].startswith("scalar")
    assert {"matmul", "transpose", "l2_normalize", "concatenate"} <= {box[5] for box in found}


def test_boxes_do_not_overlap_and_lie_within_the_drawing(loss):
    picture = ms.draw(loss[0])
    left, top, width, height = map(float, ElementTree.fromstring(picture).get("viewBox").split())
    found = boxes(picture)
    for k, (_, x, y, w, h, *_) in enumerate(found):
        assert left <= x
        assert x + w <= left + width
        assert top <= y
        assert y + h <= top + height
        for _, x2, y2, w2, h2, *_ in found[k + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_a_value_stands_below_all_that_it_was_computed_from():
    w = ms.Tensor(np.ones((2, 2)), requires_grad=True)
    y = ms.ops.exp(w)
    total = (y @ y + w * y).sum()
    rows = {box[5]: box[2] for box in boxes(draw(total, w=w, y=y))}
    assert rows["w"] < rows["y = exp"] < rows["matmul"] < rows["add"] < rows["sum"]
    assert rows["y = exp"] < rows["multiply"] < rows["add"]


def test_there_is_a_link_for_each_pair_of_boxes_that_depend_on_one_another():
    x = ms.Tensor([1.0, 2.0], requires_grad=True)
    root = ElementTree.fromstring(draw((x * x).sum()))
    heads = [path for path in root.iter(f"{SVG}path") if path.get("class") == "head"]
    assert len(heads) == 2  # x to its square, although twice; the square to the sum


def test_the_bytes_that_an_operation_keeps_are_those_of_the_ledger():
    x = ms.Tensor(np.ones(1000), requires_grad=True)
    y = ms.ops.exp(x * 2.0)
    assert ms.saved_bytes(y) == {"exp": 8000}
    (last,) = [box for box in boxes(draw(y)) if box[0] == "loss"]
    assert last[6] == "1000, keeps 8,000 B"


def test_drawing_changes_nothing_and_a_notebook_shows_it(loss):
    value, za, _ = loss
    picture = draw(value)
    assert picture._repr_svg_() == picture == draw(value)
    value.backward()
    assert za.grad is not None


def test_names_are_text():
    x = ms.Tensor(1.0, requires_grad=True)
    assert next(box[5] for box in boxes(draw(x * x, **{"<&>": x}))) == "<&>"
    assert [box[5] for box in boxes(draw(x))] == ["leaf"]


def test_what_cannot_be_drawn_is_refused_in_a_line():
    x = ms.Tensor(1.0, requires_grad=True)
    with pytest.raises(TypeError, match="takes a Tensor"):
        draw(1.0)
    with pytest.raises(TypeError, match="takes a Tensor"):
        draw(x * x, x=1.0)
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        draw(ms.Tensor(1.0))
    y = x * x
    y.backward()
    with pytest.raises(RuntimeError, match="freed it"):
        draw(y)
    for _ in range(MOST + 1):
        x = x * 1.0
    with pytest.raises(ValueError, match="more than 150 operations"):
        draw(x)
