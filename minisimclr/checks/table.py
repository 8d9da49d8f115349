"""Every operation beside a reference: sample inputs, and inputs that it must refuse.

The tests and `minisimclr gradcheck` are made from this one table. A reference is written from the formula,
by loops or with SciPy, in float64, and shares no code with the operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from .. import ntxent, objectives, ops
from ..backend import array_module
from ..engine.autograd import Tensor

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional inputs, settings


@dataclass(frozen=True)
class Entry:
    """An operation, the reference that it is compared with, and the inputs at which it is compared."""

    op: Callable[..., Tensor]
    reference: Callable[..., Any]  # the inputs and settings of the op -> its value
    samples: list[Call]
    refused: Sequence[tuple[Call, type[Exception]]]  # a call, and the error it must raise
    domain: str = "all numbers"  # the inputs for which the operation is defined
    kinks: str = "none"  # the choice of a slope where there is no derivative
    reach: float = 0.3  # distance from a sample within which the path check meets no kink
    tolerance: float = 1e-12  # largest error of the value, relative to its largest element
    derived: Callable[..., dict[str, Any]] = field(default=lambda *inputs: {})  # settings that follow from the inputs
    only_on_host: str = ""  # the reason why the op takes no CuPy arrays; "": it takes them
    beyond_plain: Sequence[
        tuple[str, Call]
    ] = ()  # a reason, and float32 inputs where the op is right and "plain" fails
    method: str = ""  # the form to run, as the op names it; "": its default

    @property
    def name(self) -> str:
        return f"{self.op.__name__.lstrip('_')} {self.method}".strip()

    def function(self, settings: dict[str, Any]) -> Callable[..., Tensor]:
        """The op as a function of its inputs alone."""

        def f(*inputs: Any) -> Tensor:
            arrays = [x.data if isinstance(x, Tensor) else x for x in inputs]
            form = {"method": self.method} if self.method else {}
            return self.op(*inputs, **settings, **self.derived(*arrays), **form)

        return f

    def expected(self, inputs: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        return self.reference(*inputs, **settings)


# ── Sample inputs ─────────────────────────────────────────────────────────────────────────────────


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def positive(*shape: int, seed: int = 0) -> Any:
    """Numbers in [1, 2], away from the pole of 1/x and log x at 0."""
    return np.random.default_rng([seed, *shape]).uniform(1, 2, shape)


def spaced(*shape: int, seed: int = 0) -> Any:
    """Multiples of 0.1 in random order, none twice, none 0: no element is near a kink or a tie."""
    size = int(np.prod(shape))
    steps = np.random.default_rng([seed, *shape]).permutation(size) - size // 2 + 0.5 + 0.2 * seed
    return (0.1 * steps).reshape(shape)


def call(*inputs: Any, **settings: Any) -> Call:
    return inputs, settings


# ── References ────────────────────────────────────────────────────────────────────────────────────


def conv2d_by_loops(x: Any, w: Any, *, stride: int = 1, padding: int = 0) -> Any:
    """Convolve by (3.1), pixel by pixel, on a map that really is surrounded by zeros."""
    k = len(w)
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0), (0, 0)))
    height, width = ((side - k) // stride + 1 for side in x.shape[:2])
    y = np.zeros((height, width, x.shape[2], w.shape[3]))
    for r, s, i, j in np.ndindex(height, width, k, k):
        y[r, s] += np.einsum("nc,cd->nd", x[r * stride + i, s * stride + j], w[i, j])
    return y


def max_pool2d_by_loops(x: Any, *, kernel: int, stride: int, padding: int = 0) -> Any:
    x = np.pad(x, ((padding, padding), (padding, padding), (0, 0), (0, 0)), constant_values=-np.inf)
    height, width = ((side - kernel) // stride + 1 for side in x.shape[:2])
    y = np.zeros((height, width, *x.shape[2:]))
    for r, s, n, c in np.ndindex(*y.shape):
        y[r, s, n, c] = max(x[r * stride + i, s * stride + j, n, c] for i in range(kernel) for j in range(kernel))
    return y


def batch_norm_by_loops(
    x: Any,
    scale: Any,
    shift: Any,
    *shortcut: Any,
    batch: bool,
    relu: bool = False,
    mean: Any = None,
    variance: Any = None,
    eps: float = 1e-5,
) -> Any:
    y = np.zeros(x.shape)
    for c in range(x.shape[-1]):
        channel = x[..., c]
        m = channel.mean() if batch else mean[c]
        v = ((channel - m) ** 2).mean() if batch else variance[c]
        y[..., c] = scale[c] * (channel - m) / np.sqrt(v + eps) + shift[c]
    for a in shortcut:
        y = y + a
    return np.where(y > 0, y, 0) if relu else y


def cross_entropy_by_loops(logits: Any, *, labels: Any) -> float:
    return float(np.mean([special.logsumexp(row) - row[label] for row, label in zip(logits, labels)]))


def l2_normalize_by_loops(x: Any) -> Any:
    return np.array([row / np.sqrt(sum(v * v for v in row)) if row.any() else row for row in x])


def nt_xent_by_loops(za: Any, zb: Any, *, temperature: float) -> float:
    """Eq. 1 of the paper for each anchor, then the mean of Algorithm 1."""
    u = l2_normalize_by_loops(np.concatenate([za, zb]))
    n = len(za)
    losses = []
    for i in range(2 * n):
        similarities = np.array([u[i] @ u[k] / temperature for k in range(2 * n)])
        losses.append(special.logsumexp(np.delete(similarities, i)) - similarities[(i + n) % (2 * n)])
    return float(np.mean(losses))


def pairs_by_loops(za: Any, zb: Any, semi_hard: bool) -> list[tuple[float, list[float]]]:
    """For each anchor the cosine of its positive, and those of its negatives, or of its semi-hard one alone."""
    u = l2_normalize_by_loops(np.concatenate([za, zb]))
    n, found = len(za), []
    for i in range(2 * n):
        p = i + n if i < n else i - n
        positive, negatives = u[i] @ u[p], [u[i] @ u[k] for k in range(2 * n) if k not in (i, p)]
        farther = [c for c in negatives if c < positive]
        found.append((positive, ([max(farther)] if farther else []) if semi_hard else negatives))
    return found


def nt_logistic_by_loops(za: Any, zb: Any, *, temperature: float, semi_hard: bool = False) -> float:
    """Table 2 of the paper, the negatives of an anchor averaged."""
    losses = []
    for positive, negatives in pairs_by_loops(za, zb, semi_hard):
        of_negatives = [-np.log(special.expit(-c / temperature)) for c in negatives]
        losses.append(-np.log(special.expit(positive / temperature)) + (np.mean(of_negatives) if negatives else 0))
    return float(np.mean(losses))


def triplet_by_loops(za: Any, zb: Any, *, margin: float = 0.4, semi_hard: bool = False) -> float:
    """Table 2 of the paper, the negatives of an anchor averaged."""
    pairs = pairs_by_loops(za, zb, semi_hard)
    return float(np.mean([np.mean([max(c - p + margin, 0.0) for c in cs]) if cs else 0 for p, cs in pairs]))


def decoupled_by_loops(za: Any, zb: Any, *, temperature: float) -> float:
    pairs = pairs_by_loops(za, zb, semi_hard=False)
    return float(np.mean([special.logsumexp(np.divide(cs, temperature)) - p / temperature for p, cs in pairs]))


def supcon_by_loops(z: Any, *, labels: Any, temperature: float = 0.1) -> float:
    """Eq. 2 of Khosla et al. 2020 for each row that has a positive."""
    u, losses = l2_normalize_by_loops(z), []
    for i, label in enumerate(labels):
        others = [k for k in range(len(u)) if k != i]
        total = special.logsumexp([u[i] @ u[k] / temperature for k in others])
        terms = [total - u[i] @ u[k] / temperature for k in others if labels[k] == label]
        losses += [np.mean(terms)] if terms else []
    return float(np.mean(losses))


def statistics(x: Any, *others: Any) -> dict[str, Any]:
    """The statistics that batch norm takes from its own input in training."""
    mean, variance = ops.moments(array_module(x), x)
    return {"mean": mean, "variance": variance}


# ── The table ─────────────────────────────────────────────────────────────────────────────────────

_pair = [
    call(normal(3, 4), normal(3, 4, seed=1)),
    call(normal(2, 1, 4), normal(3, 1, seed=1)),
    call(normal(), normal(2)),
]
_fractions = [call(normal(3, 4), positive(3, 4)), call(normal(4), positive(3, 1)), call(2.0, positive(3))]
_unequal = [(call(np.ones((2, 3)), np.ones(2)), ValueError), (call(np.ones(2), "text"), TypeError)]
_text = [(call("text"), TypeError), (call(None), TypeError)]
_axes = [
    call(spaced(3, 4)),
    call(spaced(3, 4), axis=0),
    call(spaced(2, 3, 4), axis=(0, -1)),
    call(spaced(3, 4), axis=-1, keepdims=True),
    call(spaced(2, 3), keepdims=True),
    call(spaced()),
    call(spaced(3, 2), axis=()),
]
_no_axis = [(call(np.ones((2, 3)), axis=2), ValueError), (call(np.ones((2, 3)), axis=(0, 0)), ValueError)]
_map, _kernel = np.ones((4, 4, 1, 2)), np.ones((3, 3, 2, 1))
_flat = np.ones(2)
_no_loss = [
    (call(np.ones((2, 3)), np.ones((3, 3)), temperature=0.1), ValueError),
    (call(np.ones((2, 3)), np.ones((2, 3)), temperature=0.0), ValueError),
    (call(np.ones((2, 3)), np.ones((2, 3)), temperature=np.nan), ValueError),
    (call(np.ones((2, 3), int), np.ones((2, 3), int), temperature=0.1), TypeError),
]
_small, _apart = normal(4, 5).astype(np.float32), np.eye(4, 5, dtype=np.float32)
_beyond_plain = [
    ("a row of zeros has no direction", call(_small * (_small[:, :1] > 0), _small[::-1], temperature=0.5)),
    ("squares of 1e-30 vanish", call(np.float32(1e-30) * _small, _small[::-1], temperature=0.5)),
    ("squares of 1e30 overflow", call(np.float32(1e30) * _small, _small[::-1], temperature=0.5)),
    ("the loss of views that agree is a difference of large numbers", call(_apart, _apart, temperature=0.05)),
]


def _batch_norm(method: str) -> list[Entry]:
    """Batch norm in training without and with a ReLU, which has a kink, and in evaluation."""
    of_the_batch: dict[str, Any] = {"tolerance": 1e-11, "derived": statistics, "method": method}
    kinked: dict[str, Any] = {"kinks": "relu′(0) = 0", "reach": 1e-4, "tolerance": 1e-11, "method": method}
    training = [
        call(normal(3, 2, 4, 3), positive(3), normal(3), batch=True),
        call(normal(12, 3), positive(3), normal(3), normal(12, 3, seed=1), batch=True),
    ]
    training_relu = [
        call(normal(3, 2, 4, 3), positive(3), normal(3), batch=True, relu=True),
        call(normal(2, 3, 4), positive(4), normal(4), spaced(2, 3, 4), batch=True, relu=True),
    ]
    running = {"batch": False, "mean": normal(3, seed=1), "variance": positive(3)}
    evaluation = [
        call(normal(5, 3), positive(3), normal(3), **running),
        call(normal(2, 5, 3), positive(3), normal(3), normal(2, 5, 3, seed=1), relu=True, eps=1e-3, **running),
    ]
    rows, channels = np.ones((4, 3)), np.ones(3)
    return [
        Entry(
            ops.batch_norm,
            batch_norm_by_loops,
            training,
            [
                (call(rows, np.ones(2), channels, batch=True), ValueError),
                (call(rows, channels, np.ones(1), batch=True), ValueError),
                (call(rows, channels, channels, np.ones((3, 4)), batch=True), ValueError),
            ],
            **of_the_batch,
        ),
        Entry(ops.batch_norm, batch_norm_by_loops, training_relu, [], derived=statistics, **kinked),
        Entry(
            ops.batch_norm,
            batch_norm_by_loops,
            evaluation,
            [(call(rows, channels, channels, batch=False, mean=np.ones(1), variance=channels), ValueError)],
            **kinked,
        ),
    ]


def _objectives() -> list[Entry]:
    """The objectives of Table 4, the decoupled loss and SupCon; where a choice may jump, paths are short."""
    two = normal(4, 5), normal(4, 5, seed=1)
    similar = normal(5, 3), normal(5, 3) + 0.6 * normal(5, 3, seed=1)
    refused = [(call(np.ones((2, 3)), np.ones((3, 3))), ValueError), (call(np.ones((2, 3)), "text"), TypeError)]
    direction: dict[str, Any] = {"domain": "rows ≠ 0 (gradient 0 at a row of zeros)"}
    entries = []
    for semi_hard in (False, True):
        chosen = {"semi_hard": True} if semi_hard else {}
        single = [] if semi_hard else [call(normal(1, 3), normal(1, 3, seed=1), temperature=0.1)]
        jumps = "the semi-hard negative may change: the loss jumps"
        how = direction | ({"kinks": jumps, "reach": 1e-4} if semi_hard else {"reach": 0.1})
        samples = [call(*two, temperature=0.5, **chosen), call(*similar, temperature=0.1, **chosen), *single]
        entries.append(Entry(objectives.nt_logistic, nt_logistic_by_loops, samples, [*_no_loss, *refused], **how))
        samples = [call(*two, **chosen), call(*similar, margin=0.8, **chosen)]
        how |= {"kinks": "a hinge at 0 is closed", "reach": 1e-4}
        bad = [(call(*two, margin=-1.0), ValueError), (call(*two, semi_hard=1), TypeError)]
        entries.append(Entry(objectives.triplet, triplet_by_loops, samples, [*refused, *bad], **how))
    samples = [call(*two, temperature=0.5), call(*similar, temperature=0.1)]
    lonely = (call(np.ones((1, 3)), np.ones((1, 3))), ValueError)
    entries.append(Entry(objectives.decoupled, decoupled_by_loops, samples, [*_no_loss, lonely], **direction))
    samples = [
        call(normal(6, 4), labels=np.array([0, 1, 0, 2, 0, 1]), temperature=0.5),
        call(normal(6, 4), labels=np.array([7, 7, 7, 7, 7, 7], np.uint8), temperature=0.1),
    ]
    bad = [
        (call(np.ones((2, 3)), labels=np.array([0, 1])), ValueError),
        (call(np.ones((2, 3)), labels=np.array([0.0, 0.0])), ValueError),
        (call(np.ones((2, 3)), labels=np.array([0])), ValueError),
        (call("text", labels=np.array([0, 0])), TypeError),
    ]
    return [*entries, Entry(objectives.supcon, supcon_by_loops, samples, bad, **direction)]


TABLE = [
    Entry(ops.add, np.add, _pair, _unequal),
    Entry(ops.subtract, np.subtract, _pair, _unequal),
    Entry(ops.multiply, np.multiply, _pair, _unequal),
    Entry(ops.divide, np.true_divide, _fractions, _unequal, domain="y ≠ 0"),
    Entry(ops.negative, np.negative, [call(normal(3, 4)), call(normal())], _text),
    Entry(
        ops.power,
        lambda x, exponent: np.array([np.float64(v) ** exponent for v in x.flat]).reshape(x.shape),
        [call(positive(3, 4), exponent=e) for e in (2, 3, 0.5, -1, -0.5, 1)],
        [(call(_flat, exponent=_flat), TypeError), (call("text", exponent=2), TypeError)],
        domain="x > 0 unless the exponent is whole",
    ),
    Entry(ops.exp, np.exp, [call(normal(3, 4)), call(normal())], _text),
    Entry(ops.log, np.log, [call(positive(3, 4)), call(positive())], _text, domain="x > 0"),
    Entry(
        ops.matmul,
        lambda x, y: np.einsum(
            "...nk,...km->...nm" if min(x.ndim, y.ndim) > 1 else "k,...km->...m" if y.ndim > 1 else "...k,k->...", x, y
        ),
        [
            call(normal(3, 4), normal(4, 2)),
            call(normal(4), normal(4, seed=1)),
            call(normal(4), normal(4, 3)),
            call(normal(2, 3, 4), normal(4)),
            call(normal(4), normal(2, 4, 3)),
            call(normal(2, 3, 4), normal(4, 5)),
            call(normal(3, 4), normal(2, 4, 2)),
            call(normal(5, 1, 2, 3), normal(2, 3, 4)),
        ],
        [
            (call(np.ones((2, 3)), np.ones((2, 3))), ValueError),
            (call(np.ones((2, 3)), 2.0), ValueError),
            (call(np.ones(2), np.array(1.0)), ValueError),
        ],
    ),
    Entry(
        ops.cast,
        lambda x, dtype: x,
        [call(normal(3, 4), dtype="float64"), call(normal(), dtype="float64")],
        [(call(_flat, dtype="int64"), TypeError), (call("text", dtype="float64"), TypeError)],
    ),
    Entry(
        ops.relu,
        lambda x: np.where(x > 0, x, 0),
        [call(spaced(3, 4)), call(spaced(5))],
        _text,
        kinks="relu′(0) = 0",
        reach=0.02,
    ),
    Entry(
        ops.maximum,
        lambda x, y: np.where(x > y, x, y),
        [call(spaced(3, 4), spaced(3, 4, seed=1)), call(spaced(4), spaced(3, 1, seed=1)), call(spaced(4), 0.0)],
        _unequal,
        kinks="a tie is shared half and half",
        reach=0.005,
    ),
    Entry(ops.sum, np.sum, _axes, _no_axis),
    Entry(ops.mean, np.mean, _axes, _no_axis),
    Entry(
        ops.max,
        np.max,
        _axes,
        [*_no_axis, (call(np.ones((0, 2)), axis=0), ValueError)],
        kinks="entries that tie share equally",
        reach=0.02,
    ),
    Entry(
        ops.reshape,
        lambda x, shape: np.reshape(x, shape),
        [call(normal(3, 4), shape=(2, 6)), call(normal(6), shape=(2, -1, 1)), call(normal(1), shape=())],
        [(call(np.ones(6), shape=(4, 2)), ValueError), (call(np.ones(6), shape=(-1, -1)), ValueError)],
    ),
    Entry(
        ops.transpose,
        np.transpose,
        [
            call(normal(3, 4)),
            call(normal(2, 3, 4), axes=(1, 2, 0)),
            call(normal()),
            call(normal(2, 3, 4), axes=(-1, 0, 1)),
        ],
        [(call(np.ones((2, 3)), axes=(0,)), ValueError), (call(np.ones((2, 3)), axes=(0, 0)), ValueError)],
    ),
    Entry(
        ops.getitem,
        lambda x, index: x[index],
        [
            call(normal(4, 3), index=index)
            for index in (
                1,
                -1,
                slice(1, 3),
                (slice(None, None, -2), 1),
                (..., None, 0),
                np.array([0, 2, 2, 0]),
                [3, 3],
                (np.array([0, 0]), np.array([1, 1])),
                np.arange(12).reshape(4, 3) % 5 > 1,
                slice(2, 2),
                (),
            )
        ],
        [(call(np.ones(3), index=3), IndexError), (call(np.ones(3), index=(0, 0)), IndexError)],
    ),
    Entry(
        ops.concatenate,
        lambda *xs, axis=0: np.concatenate(xs, axis),
        [
            call(normal(2, 3), normal(1, 3), normal(2, 3, seed=1)),
            call(normal(2, 1), normal(2, 2), axis=-1),
            call(normal(2, 3)),
        ],
        [(call(np.ones((2, 3)), np.ones((2, 2))), ValueError), (call(np.ones(3), np.ones((1, 3))), ValueError)],
    ),
    *(
        Entry(
            ops.conv2d,
            conv2d_by_loops,
            [
                call(normal(5, 6, 2, 2), normal(3, 3, 2, 3), padding=1),
                call(normal(6, 5, 2, 2), normal(3, 3, 2, 2), stride=2, padding=1),
                call(normal(4, 4, 1, 3), normal(1, 1, 3, 2), stride=2),
                call(normal(6, 5, 1, 1), normal(7, 7, 1, 1), stride=2, padding=3),
                call(normal(3, 2, 1, 18), normal(3, 3, 18, 1), stride=2, padding=1),
            ],
            [
                (call(_map, np.ones((3, 3, 1, 1))), ValueError),
                (call(_map, np.ones((3, 2, 2, 1))), ValueError),
                (call(_map, np.ones((5, 5, 2, 1))), ValueError),
                (call(_map[0], _kernel), ValueError),
                (call(_map, _kernel, stride=0), ValueError),
                (call(_map, _kernel, padding=-1), ValueError),
            ],
            method=method,
        )
        for method in ("plain", "slabs", "padded")  # Winograd's form computes in float32 only: tests/test_winograd.py
    ),
    *(
        Entry(
            ops.max_pool2d,
            max_pool2d_by_loops,
            [
                call(spaced(6, 5, 2, 1), kernel=3, stride=2, padding=1),
                call(spaced(4, 4, 1, 2), kernel=2, stride=2),
                call(spaced(4, 3, 1, 2), kernel=2, stride=1, padding=1),
            ],
            [
                (call(_map, kernel=5, stride=1), ValueError),
                (call(_map, kernel=2, stride=1, padding=2), ValueError),
                (call(_map, kernel=2, stride=0), ValueError),
                (call(_map[0], kernel=2, stride=2), ValueError),
            ],
            kinks="a tie goes to the first in reading order",
            reach=0.02,
            method=method,
        )
        for method in ("plain", "threaded")
    ),
    *(entry for method in ("plain", "fused") for entry in _batch_norm(method)),
    Entry(
        ops.l2_normalize,
        l2_normalize_by_loops,
        [call(normal(4, 5)), call(1e-30 * normal(3, 2)), call(80 * normal(3, 6)), call(normal(1, 1))],
        [(call(np.ones(3)), ValueError), (call("text"), TypeError)],
        domain="x ≠ 0 (gradient 0 at a row of zeros)",
    ),
    Entry(
        ops.cross_entropy,
        cross_entropy_by_loops,
        [
            call(normal(4, 3), labels=np.array([0, 2, 2, 1])),
            call(5 * normal(2, 6), labels=np.array([5, 0], np.uint8)),
            call(normal(1, 1), labels=np.array([0])),
        ],
        [
            (call(np.ones((2, 3)), labels=np.array([0.0, 1.0])), TypeError),
            (call(np.ones((2, 3)), labels=np.array([0, 3])), ValueError),
            (call(np.ones((2, 3)), labels=np.array([0, -1])), ValueError),
            (call(np.ones((2, 3)), labels=np.array([0])), ValueError),
            (call(np.ones(3), labels=np.array([0, 1, 2])), ValueError),
            (call(np.ones((0, 3)), labels=np.zeros(0, int)), ValueError),
        ],
    ),
    *(
        Entry(
            ntxent.nt_xent,
            nt_xent_by_loops,
            [
                call(normal(4, 5), normal(4, 5, seed=1), temperature=0.5),
                call(normal(2, 3), normal(2, 3, seed=1), temperature=0.1),
                call(80 * normal(3, 4), normal(3, 4, seed=1), temperature=1.0),
                call(normal(1, 3), normal(1, 3, seed=1), temperature=0.1),
                call(normal(3, 4), normal(3, 4, seed=1), temperature=5.0),
            ],
            _no_loss,
            domain="rows ≠ 0 (gradient 0 at a row of zeros)",
            reach=0.1,
            only_on_host="its tiles are cut for a processor's cache" if method == "tiled" else "",
            beyond_plain=_beyond_plain if method in ("exact", "tiled") else (),
            method=method,
        )
        for method in ("composed", "plain", "exact", "tiled")
    ),
    *sorted(_objectives(), key=lambda entry: entry.name),  # those of one name beside each other
]
