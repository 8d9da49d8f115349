"""SGD and LARS with momentum, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from ..backend import Array, array_module, device_of, to_device, to_numpy
from ..engine.autograd import Tensor
from ..engine.guard import trained, writing
from ..processor import parallel, pieces
from ..values import by_default, not_negative, numbers, truth


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """Compute the learning rate of step t = 0, 1, …: up a straight line, then down half a cosine.

    t < W:   peak · t/W
    t ≥ W:   peak · ½(1 + cos π(t−W)/(T−W)),   0 from T on

    Raises: ValueError unless 0 ≤ warmup_steps ≤ total_steps.
    Source: paper §2.1 and appendix B.6; the formula is that of Google's code and of optax.

    >>> [round(warmup_cosine(t, total_steps=6, warmup_steps=2, peak=0.4), 3) for t in range(7)]
    [0.0, 0.2, 0.4, 0.341, 0.2, 0.059, 0.0]
    """
    step, total_steps, warmup_steps, peak = numbers(step=step, total=total_steps, warmup=warmup_steps, peak=peak)
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps must lie in 0…total_steps = {total_steps}, not {warmup_steps}")
    if step < warmup_steps:  # first weights are random: large steps would follow a gradient that means little
        return peak * step / warmup_steps
    if step >= total_steps:
        return 0.0
    # half a cosine: flat at both ends, so neither the peak nor the last steps are cut short
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


class Optimizer:
    """The part that SGD and LARS share: the parameters, one momentum buffer each, and the step over all of them.

    `loss_scale` is None but in float16, whose gradients would vanish without one: see precision.LossScale.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float, loss_scale: Any = None
    ) -> None:
        self.params = trained(params)  # a list: it may be a generator, and is needed more than once
        if not self.params:
            raise ValueError("the optimizer got no parameters")
        # plain floats: a np.float64 would have float32 weights computed in float64
        self.lr, self.momentum = not_negative("lr", lr), not_negative("momentum", momentum)
        self.weight_decay = not_negative("weight_decay", weight_decay)
        self.loss_scale = loss_scale
        # one buffer per parameter, of its shape and on its device
        self.velocity: list[Array] = [array_module(p.data).zeros_like(p.data) for p in self.params]

    @by_default
    def backward(self, loss: Tensor) -> Array:
        """Run the backward pass of a loss, and return the size of the gradient: Σ max|g| over the parameters.

        The size is finite exactly if every gradient is. (The squares of the usual norm would overflow float32.)
        With a loss scale the pass begins with a large number in the place of 1, because float16 would turn small
        gradients into 0; the gradients that it leaves are divided by that number again.

        Raises: ValueError if the loss depends on none of the parameters.
        """
        scale = self.loss_scale
        loss.backward(None if scale is None else scale.seed(loss.data))
        # a parameter that the loss does not depend on has none
        gradients = [p.grad for p in self.params if p.grad is not None]
        if not gradients:
            raise ValueError("the loss depends on none of the optimizer's parameters")
        if scale is not None:  # in float32, where nothing is lost any more
            scale.unscale(gradients)
        xp = array_module(gradients[0])
        size = xp.stack([abs(g).max() for g in gradients]).sum(dtype=xp.float64)  # 0-d, and stays on its device
        return size if scale is None else scale.judge(size)

    @by_default
    def step(self, lr: float | None = None) -> None:
        """Update every parameter that has a gradient; `lr` overrides the constructor's for this step.

        With a loss scale, a step whose gradient overflowed changes nothing but the scale. An older graph may still be
        alive; its backward pass then raises, because its parameters have changed.
        """
        rate = self.lr if lr is None else not_negative("lr", lr)
        with ExitStack() as opened:  # lets us write to the weights, although an older graph may still need them
            rows = [
                (opened.enter_context(writing(p)), p.grad, v)  # w, g, v: arrays of one shape
                for p, v in zip(self.params, self.velocity)
                if p.grad is not None
            ]

            def update_some(some: slice) -> None:
                for w, g, v in rows[some]:
                    self._update(w, g, v, rate)

            def update() -> None:  # a single parameter is little work: so each thread takes whole ones
                parallel(update_some, pieces(array_module(self.velocity[0]), len(rows), 1))

            if self.loss_scale is None:
                update()
            else:  # only the device knows whether the gradient overflowed: the scale takes the update back
                changed = [w for w, _, _ in rows] + [v for _, _, v in rows]
                self.loss_scale.step(changed, [g for _, g, _ in rows], update)

    def zero_grad(self) -> None:
        """Forget all gradients. Without this, those of the next backward pass would be added to them."""
        for p in self.params:
            p.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as NumPy arrays: "momentum/0", "momentum/1" … and "scale/…"."""
        state = {f"momentum/{k}": to_numpy(v) for k, v in enumerate(self.velocity)}
        scale = {} if self.loss_scale is None else self.loss_scale.state_dict()
        # the names are those of the checkpoint
        return state | {f"scale/{name}": value for name, value in scale.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state. Raises: ValueError if a momentum buffer is missing or has another shape."""
        for k, velocity in enumerate(self.velocity):
            stored = state.get(f"momentum/{k}")  # by position: the order of the parameters is that of their names
            if stored is None or stored.shape != velocity.shape:
                raise ValueError(f"momentum/{k} is missing or does not have the shape {velocity.shape}")
            velocity[...] = to_device(stored, device_of(velocity))
        if self.loss_scale is not None:  # a run that had none, in another precision, begins with a fresh one
            prefix = "scale/"
            scale = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            self.loss_scale.load_state_dict(scale)

    def _update(self, w: Array, g: Array, v: Array, lr: float) -> None:
        """Change the weights w and the velocity v, in place, by the gradient g."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as in torch:

    g ← g + λw;   v ← μv + g;   w ← w − lr·v        (Nesterov: w ← w − lr·(g + μv))

    Raises: ValueError if there are no parameters, or for a setting that is negative or not finite.

    >>> import numpy as np, minisimclr as ms
    >>> w = ms.Tensor(np.array([3.0, 4.0]), requires_grad=True)
    >>> optimizer = ms.SGD([w], lr=0.1)
    >>> for step in range(200):
    ...     (w * w).sum().backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> bool(abs(w.data).max() < 1e-3)
    True
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        loss_scale: Any = None,
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay, loss_scale)
        self.nesterov = truth("nesterov", nesterov)

    def _update(self, w: Array, g: Array, v: Array, lr: float) -> None:
        if self.weight_decay:
            g = g + self.weight_decay * w  # not in place: the gradient is the caller's
        v *= self.momentum  # in place: v is what the checkpoint keeps
        v += g
        w -= lr * (g + self.momentum * v if self.nesterov else v)  # Nesterov looks one step ahead


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), by the rule of Google's SimCLR code and optax:

        g ← g + λw;   trust = η‖w‖/‖g‖, or 1 if either norm is 0;   v ← μv + lr·trust·g;   w ← w − v

    so that one step moves each layer by about the same share of its norm, at any batch size. Parameters
    with ndim ≤ 1 (biases, batch norm) get neither decay nor trust.

    Raises: ValueError if there are no parameters, or for a setting that is negative or not finite.

    >>> import numpy as np, minisimclr as ms
    >>> w = ms.Tensor(np.ones((2, 2)), requires_grad=True)
    >>> optimizer = ms.LARS([w], lr=1.0, weight_decay=0.0, trust_coefficient=0.01)
    >>> (w * 1000).sum().backward()
    >>> optimizer.step()  # however large the gradient is, w moves by a hundredth of its norm
    >>> w.data.tolist()
    [[0.99, 0.99], [0.99, 0.99]]
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 1e-3,
        *,
        loss_scale: Any = None,
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay, loss_scale)
        self.trust_coefficient = not_negative("trust_coefficient", trust_coefficient)

    def _update(self, w: Array, g: Array, v: Array, lr: float) -> None:
        trust = 1.0
        if w.ndim > 1:  # biases and batch norm start at 0 or 1: a share of their norm means nothing
            xp = array_module(w)
            g = g + self.weight_decay * w  # before the norms: decay is trusted as the gradient is
            weight_norm, gradient_norm = xp.linalg.norm(w.ravel()), xp.linalg.norm(g.ravel())
            both = (weight_norm > 0) & (gradient_norm > 0)  # stays on the device: nothing waits for it
            trust = xp.where(both, self.trust_coefficient * weight_norm / xp.where(both, gradient_norm, 1), 1)
            trust = trust.astype(w.dtype)  # else float32 weights would be computed in float64
        v *= self.momentum
        v += lr * trust * g  # the rate is inside: outside it is another optimizer as soon as the rate changes
        w -= v
