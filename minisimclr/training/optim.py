"""SGD and LARS with momentum, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..backend import Array, array_module
from ..engine.autograd import Tensor
from ..engine.guard import writing
from ..processor import keep_freed_memory, parallel, pieces


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, peak: float) -> float:
    """The learning rate of step t = 0, 1, …: up a straight line, then down half a cosine (paper §2.1, App. B.6).

    t < W:   peak · t/W
    t ≥ W:   peak · ½(1 + cos π(t−W)/(T−W)),   0 from T on
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps must lie in 0…total_steps = {total_steps}, not {warmup_steps}")
    if step < warmup_steps:
        return peak * step / warmup_steps
    if step >= total_steps:
        return 0.0
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


class Optimizer:
    """What both share: the parameters, one momentum buffer each, and the step over all of them."""

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        keep_freed_memory()  # whoever makes an optimiser is about to repeat a step
        self.params = list(params)
        if not self.params:
            raise ValueError("the optimizer got no parameters")
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number ≥ 0, not {value}")
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.velocity: list[Array] = [array_module(p.data).zeros_like(p.data) for p in self.params]

    def step(self, lr: float | None = None) -> None:
        """Update every parameter that has a gradient; `lr` overrides the constructor's for this step.

        An older graph may still be alive; its backward pass then raises, because its parameters have changed.
        """

        def update(some: slice) -> None:
            for p, v in zip(self.params[some], self.velocity[some]):
                if p.grad is not None:
                    self._update(p, p.grad, v, self.lr if lr is None else lr)

        parallel(update, pieces(array_module(self.velocity[0]), len(self.params), 1))

    def zero_grad(self) -> None:
        for p in self.params:
            p.grad = None

    def _update(self, p: Tensor, g: Array, v: Array, lr: float) -> None:
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as in torch:

    g ← g + λw;   v ← μv + g;   w ← w − lr·v        (Nesterov: w ← w − lr·(g + μv))
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay)
        self.nesterov = nesterov

    def _update(self, p: Tensor, g: Array, v: Array, lr: float) -> None:
        w = p.data
        if self.weight_decay:
            g = g + self.weight_decay * w
        v *= self.momentum
        v += g
        with writing(p) as w:
            w -= lr * (g + self.momentum * v if self.nesterov else v)


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), by the rule of Google's SimCLR code and optax:

        g ← g + λw;   trust = η‖w‖/‖g‖, or 1 if either norm is 0;   v ← μv + lr·trust·g;   w ← w − v

    so that one step moves each layer by about the same share of its norm, at any batch size. Parameters
    with ndim ≤ 1 (biases, batch norm) get neither decay nor trust. The learning rate is inside the momentum:
    outside it is another optimiser as soon as the rate changes.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 1e-3,
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay)
        self.trust_coefficient = trust_coefficient

    def _update(self, p: Tensor, g: Array, v: Array, lr: float) -> None:
        w, trust = p.data, 1.0
        if p.ndim > 1:
            xp = array_module(w)
            g = g + self.weight_decay * w
            weight_norm, gradient_norm = xp.linalg.norm(w.ravel()), xp.linalg.norm(g.ravel())
            both = (weight_norm > 0) & (gradient_norm > 0)
            trust = xp.where(both, self.trust_coefficient * weight_norm / xp.where(both, gradient_norm, 1), 1)
            trust = trust.astype(p.dtype)
        v *= self.momentum
        v += lr * trust * g
        with writing(p) as w:
            w -= v
