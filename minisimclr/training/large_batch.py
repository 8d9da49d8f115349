"""Gradient caching: the loss of a whole batch, and a graph of one chunk of it at a time.

What one graph lacks is room: it keeps the activations of all 2N views until the backward pass. But the loss needs all
embeddings together, and the encoder does not. So a step has three parts (Gao et al. 2021; Algorithm 1 is unchanged):

    1.  z of all views, chunk by chunk, without a graph                     kept: (2N,D) numbers
    2.  the loss of all z and its gradient ∂L/∂z, once                      kept: (2N,D) numbers
    3.  z of each chunk again, with a graph, and its backward pass, which begins with the chunk's rows of ∂L/∂z

By the chain rule the sum of part 3 over the chunks is the gradient of the whole batch (14.2), because a row of z
depends on its own image alone. That holds without batch norm, and where batch norm uses its running statistics.

In training, batch norm mixes the images of a batch. Here it takes its statistics from each chunk, both views of its
images together, and gradient flows through these. So what is computed is the exact gradient of another function:
the NT-Xent loss of all embeddings, of a network that normalizes chunk by chunk. Measured on doodles with the small
encoder after 100 steps, its cosine with the gradient of the whole batch of 256 images is 0.97 in chunks of 128, 0.84 of
32, and 0.35 of 4 (chapter 14). The running statistics move once for each chunk.

A step costs one forward pass more: about a third of its time, measured in benchmarks/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from ..backend import Array, array_module
from ..collective import Ranks
from ..engine.autograd import Tensor, Vjp, no_grad, primitive
from ..simclr import SimCLR
from ..values import whole
from ..views import two_views
from .config import Config

KEPT = 2**30  # bytes of the views of a batch up to which they are kept from part 1 to part 3; a constant, because with
# the memory that happens to be free, a resumed run could differ in its last bits


# ── The loss ──────────────────────────────────────────────────────────────────────────────────────


def loss_by_chunks(
    model: SimCLR, views_a: Any, views_b: Any, temperature: float = 0.1, *, chunk: int, train: bool = True
) -> tuple[Tensor, Array, Array]:
    """Compute what `model.loss` computes, chunk by chunk: the loss, z of the views a, z of the views b.

    `backward` of this loss runs part 3. To the engine, the whole network is one operation on its parameters.

    chunk   most images in a chunk; the network sees both views of each, so twice as many
    train   False: batch norm uses its running statistics, and the gradient is that of the whole batch

    Shapes: views_a, views_b float (N,H,W,3) -> scalar, (N,out_dim), (N,out_dim)
    Raises: ValueError for a chunk below 1, and what the objective raises.
    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", §3.2.

    >>> import numpy as np, minisimclr as ms
    >>> encoder = ms.resnet_small(base=4)
    >>> model = ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, 16, 8)).astype(np.float64)
    >>> a, b = np.random.default_rng(0).random((2, 6, 16, 16, 3))
    >>> loss, za, zb = loss_by_chunks(model, a, b, chunk=2)
    >>> loss.backward()
    >>> za.shape, all(p.grad is not None for p in model.parameters())
    ((6, 8), True)
    """
    parts = even_parts(len(views_a), chunk)

    def embed(part: slice) -> Tensor:
        a, b = views_a[part], views_b[part]  # (c,H,W,3) each: batch norm must see both views of an image together
        _, z = model(array_module(a).concatenate([a, b]), train)  # (2c,D)
        return z

    with no_grad(), statistics_kept(model):  # part 3 moves the running statistics: they must not move twice
        rows = [embed(part).data for part in parts]  # (2c,D) each
    xp = array_module(*rows)
    # z as leaves: the graph of the loss ends here, and ∂L/∂z is what collects in them.
    za = Tensor(xp.concatenate([z[: len(z) // 2] for z in rows]), requires_grad=True)  # (N,D)
    zb = Tensor(xp.concatenate([z[len(z) // 2 :] for z in rows]), requires_grad=True)  # (N,D)
    loss = model.objective(za, zb, temperature)  # scalar, of all 2N anchors
    loss.backward()  # (14.1)
    dz: list[Array] = [za.grad, zb.grad]  # (N,D) each
    parameters = model.parameters()

    @primitive
    def by_chunks(xp: Any, *weights: Array) -> tuple[Array, Vjp]:
        def vjp(g: Array) -> tuple[Array | None, ...]:  # g is 1, or the loss scale of float16
            with gradients_apart(parameters):
                for part in parts:
                    seed = g * xp.concatenate([d[part] for d in dz])  # (2c,D)
                    embed(part).backward(seed)  # (14.2): adds this chunk's share to each parameter's gradient
                return tuple(p.grad for p in parameters)

        return loss.data, vjp

    return by_chunks(*parameters), za.data, zb.data


def even_parts(count: int, chunk: int) -> list[slice]:
    """Cut range(count) into as few slices of at most `chunk` as there can be, of equal length to within one.

    With a short last one, batch norm would take a few images' statistics for as good as the others'.

    >>> [part.stop - part.start for part in even_parts(10, 4)]
    [4, 3, 3]
    """
    number = -(-count // whole("chunk", chunk, 1))
    edges = [-(-count * k // number) for k in range(number + 1)]  # rounded up, so that the first are the longer ones
    return [slice(*pair) for pair in pairwise(edges)]


@contextmanager
def statistics_kept(model: SimCLR) -> Iterator[None]:
    """Put the running statistics back at the end. They are replaced and never overwritten: to keep them is enough."""
    kept = [(owner, name, array) for _, owner, name, value, array in model._arrays() if not isinstance(value, Tensor)]
    try:
        yield
    finally:
        for owner, name, array in kept:
            setattr(owner, name, array)


@contextmanager
def gradients_apart(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Set the gradients of parameters aside, begin with none, and put them back at the end."""
    aside = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in zip(parameters, aside):
            p.grad = gradient


# ── The views ─────────────────────────────────────────────────────────────────────────────────────


class LateViews:
    """One of the two views of each image of a batch, made each time that some of them are asked for: `views[part]`."""

    def __init__(self, made: Callable[[int, int], tuple[Array, Array]], count: int, which: int) -> None:
        self.made, self.count, self.which = made, count, which

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, part: slice) -> Array:
        start, stop, _ = part.indices(self.count)
        return self.made(start, stop)[self.which]  # (c,size,size,3)


def two_views_late(
    images: Array,
    rng: np.random.Generator,
    size: int,
    strength: float,
    blur: bool,
    min_area: float,
    method: str = "auto",
    within: tuple[int, int] | None = None,
    names: str = "auto",
) -> tuple[LateViews, LateViews]:
    """Return what `two_views` returns, up to rounding, with the pixels left for later; `rng` stays as it is."""
    first, total = within or (0, len(images))

    @lru_cache(maxsize=1)  # a chunk asks for its views a, then for its views b
    def made(start: int, stop: int) -> tuple[Array, Array]:
        here = first + start, total
        return two_views(
            images[start:stop], deepcopy(rng), size, strength, blur, min_area, method, here, names
        )  # (c,size,size,3) each

    return LateViews(made, len(images), 0), LateViews(made, len(images), 1)


# ── What a configuration asks for ─────────────────────────────────────────────────────────────────


def in_chunks(config: Config) -> bool:
    """Return True if a batch goes through the network in chunks; a chunk as large as the batch is the whole batch."""
    return 0 < config.chunk < config.batch


def made_late(config: Config) -> bool:
    """Return True if the views of a batch do not fit, and are made chunk by chunk: once for part 1, once for part 3."""
    return in_chunks(config) and bytes_of_views(config) > KEPT


def bytes_of_views(config: Config) -> int:
    return 2 * config.batch * config.size**2 * 3 * 4  # two views, three colours, float32


def require_room(config: Config, workers: int, own: Any = None, ranks: Ranks | None = None) -> None:
    """Refuse what does not go with chunks: ranks, and workers for views that do not fit.

    own     a function that makes all views at once, in place of ours
    ranks   the processes that share each batch

    Raises: ValueError, in one line.
    """
    if ranks is not None and ranks.size > 1 and in_chunks(config):
        # Batch norm exchanges its statistics once a layer and chunk, and ranks may have another number of chunks.
        raise ValueError("chunk must be 0 with --distributed: each rank has its share of the batch; use more ranks")
    if workers and own is None and made_late(config):  # a worker holds two whole batches
        raise ValueError(
            f"workers must be 0 here: the views of a batch, {bytes_of_views(config) / 2**30:.1f} GiB, are too many to "
            "keep, and the training process makes them chunk by chunk"
        )


def remarks(config: Config) -> list[str]:
    """Return what the user should know of batch norm in a run with chunks: one line, and nothing without chunks."""
    if not in_chunks(config):
        return []
    return [
        f"batch norm takes its statistics from each chunk of {config.chunk:,} images, not from all "
        f"{config.batch:,}; measured with 256, their gradients have cosine 0.97 in chunks of 128, 0.84 of 32"
    ]
