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
    """Compute the learning rate of step t = 0, 1, …: it rises along a straight line, then falls along half a cosine.

    t < W:   peak · t/W                                        with W = warmup_steps, T = total_steps
    t ≥ W:   peak · ½(1 + cos π(t−W)/(T−W)),   and 0 from t = T on

    Raises: ValueError unless 0 ≤ warmup_steps ≤ total_steps.
    Source: §2.3 of the paper, "Default setting"; the formula is that of Google's code and of optax.

    >>> [round(warmup_cosine(t, total_steps=6, warmup_steps=2, peak=0.4), 3) for t in range(7)]
    [0.0, 0.2, 0.4, 0.341, 0.2, 0.059, 0.0]
    """
    step, total_steps, warmup_steps, peak = numbers(step=step, total=total_steps, warmup=warmup_steps, peak=peak)
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps must lie in 0…total_steps = {total_steps}, not {warmup_steps}")
    if step < warmup_steps:  # the first weights are random: large steps would follow a gradient that means little
        return peak * step / warmup_steps
    if step >= total_steps:  # beyond its end the cosine would rise again
        return 0.0
    # Half a cosine is flat at both ends. So it stays near the peak for a while, and ends in many small steps.
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


class Optimizer:
    """The part that SGD and LARS share: the parameters, one momentum buffer each, and the step over all of them.

    `loss_scale` is None except in float16, where gradients would vanish without it: see precision.LossScale.
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
        # One buffer per parameter, of its shape and on its device. It starts at 0: there is no earlier gradient.
        self.velocity: list[Array] = [array_module(p.data).zeros_like(p.data) for p in self.params]

    @by_default
    def backward(self, loss: Tensor, add_up: Any = lambda gradients: None) -> Array:
        """Run the backward pass of a loss, and return the size of the gradient: Σ max|g| over the parameters.

        The size is finite exactly if every gradient is. (The squares of the usual norm would overflow float32.)
        With a loss scale the backward pass begins with a large number instead of 1, because float16 would turn small
        gradients into 0. The gradients are divided by that number afterwards.

        Raises: ValueError if the loss depends on none of the parameters.
        """
        scale = self.loss_scale
        loss.backward(None if scale is None else scale.seed(loss.data))  # None: begin with ∂L/∂L = 1
        # A parameter on which the loss does not depend has no gradient.
        gradients = [p.grad for p in self.params if p.grad is not None]
        if not gradients:  # most likely the loss is that of another model
            raise ValueError("the loss depends on none of the optimizer's parameters")
        add_up(gradients)  # other processes may have a share of the batch: then in place, over all of them
        if scale is not None:  # the gradients are float32, in which dividing loses nothing
            scale.unscale(gradients)
        xp = array_module(gradients[0])
        size = xp.stack([abs(g).max() for g in gradients]).sum(dtype=xp.float64)  # 0-d, and stays on its device
        return size if scale is None else scale.judge(size)  # 0 for a step that the scale will leave out

    @by_default
    def step(self, lr: float | None = None) -> None:
        """Update every parameter that has a gradient; `lr` overrides the constructor's for this step.

        With a loss scale, a step whose gradient overflowed changes nothing but the scale. An older graph may still be
        alive; its backward pass then raises, because its parameters have changed.
        """
        rate = self.lr if lr is None else not_negative("lr", lr)
        with ExitStack() as opened:  # makes the weights writable, although an older graph may still need them
            rows = [
                (opened.enter_context(writing(p)), p.grad, v)  # w, g, v: arrays of one shape
                for p, v in zip(self.params, self.velocity)
                if p.grad is not None
            ]

            def update_some(some: slice) -> None:
                for w, g, v in rows[some]:
                    self._update(w, g, v, rate)

            def update() -> None:  # one parameter is too little work to share out, so each thread takes whole ones
                parallel(update_some, pieces(array_module(self.velocity[0]), len(rows), 1))

            if self.loss_scale is None:
                update()
            else:  # only the device knows whether a gradient overflowed; if so, the scale takes the update back
                changed = [w for w, _, _ in rows] + [v for _, _, v in rows]
                self.loss_scale.step(changed, [g for _, g, _ in rows], update)

    def zero_grad(self) -> None:
        """Forget all gradients. Without this, those of the next backward pass would be added to them."""
        for p in self.params:
            p.grad = None  # and not a zero: the first part that arrives then needs no addition

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as NumPy arrays: "momentum/0", "momentum/1" … and "scale/…"."""
        state = {f"momentum/{k}": to_numpy(v) for k, v in enumerate(self.velocity)}  # a run resumes on any device
        scale = {} if self.loss_scale is None else self.loss_scale.state_dict()
        # Checkpoints have these names; another spelling could not read the older ones.
        return state | {f"scale/{name}": value for name, value in scale.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state. Raises: ValueError if a momentum buffer is missing or has another shape."""
        stored = [state.get(f"momentum/{k}") for k in range(len(self.velocity))]  # by position, as in `parameters()`
        for k, (velocity, found) in enumerate(zip(self.velocity, stored)):
            if found is None or found.shape != velocity.shape:  # all are checked before one is changed
                raise ValueError(f"momentum/{k} is missing or does not have the shape {velocity.shape}")
        for velocity, found in zip(self.velocity, stored):
            velocity[...] = to_device(found, device_of(velocity))
        if self.loss_scale is not None:  # if the run had another precision so far, the state has no scale
            prefix = "scale/"
            scale = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            self.loss_scale.load_state_dict(scale)

    def _update(self, w: Array, g: Array, v: Array, lr: float) -> None:
        """Change the weights w and the velocity v, in place, by the gradient g."""
        raise NotImplementedError  # the rule: all that SGD and LARS do differently


class SGD(Optimizer):
    """Stochastic gradient descent with momentum μ and weight decay λ, as in torch:

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
        self.nesterov = truth("nesterov", nesterov)  # SimCLR trains without it; linear probes of the paper use it

    def _update(self, w: Array, g: Array, v: Array, lr: float) -> None:
        if self.weight_decay:
            g = g + self.weight_decay * w  # a new array, because p.grad belongs to the caller
        v *= self.momentum  # in place, because v is the buffer itself
        v += g
        w -= lr * (g + self.momentum * v if self.nesterov else v)  # Nesterov looks one step ahead


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), by the rule of Google's SimCLR code and optax:

        g ← g + λw;   trust = η‖w‖/‖g‖, or 1 if either norm is 0;   v ← μv + lr·trust·g;   w ← w − v

    with weight decay λ, momentum μ and trust coefficient η. So one step moves each layer by about the same share of
    its norm, at any batch size. Parameters with ndim ≤ 1 (biases, batch norm) get neither decay nor trust.

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
        trust = 1.0  # plain SGD with momentum, for biases and batch norm
        if w.ndim > 1:  # biases and batch norm start at 0 or 1, so a share of their norm means nothing
            xp = array_module(w)
            g = g + self.weight_decay * w  # before the norms, so that trust holds for gradient and decay together
            weight_norm, gradient_norm = xp.linalg.norm(w.ravel()), xp.linalg.norm(g.ravel())  # 0-d each
            both = (weight_norm > 0) & (gradient_norm > 0)  # an array, not a bool: Python does not wait for the GPU
            trust = xp.where(both, self.trust_coefficient * weight_norm / xp.where(both, gradient_norm, 1), 1)
            trust = trust.astype(w.dtype)  # else float32 weights would be computed in float64
        v *= self.momentum
        v += lr * trust * g  # lr is inside the buffer: outside, a falling rate would also shrink older gradients
        w -= v
