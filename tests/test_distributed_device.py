"""Ranks whose arrays are on a device: they compute there, and tell each other through the host."""

from __future__ import annotations

import dataclasses
from typing import Any

import devices
import numpy as np
import pytest
from devices import host, on_device, placed
from ranks import on_ranks

import minisimclr as ms
from minisimclr import objectives
from minisimclr.collective import add_up, share
from minisimclr.ntxent import contrastive_accuracy_on_device
from minisimclr.training.config import Config


def test_ranks_on_a_device_agree_with_one_process_there() -> None:
    views = np.random.default_rng(0).random((2, 5, 8, 8, 3))

    def step(ranks: Any) -> Any:
        part = slice(0, 5) if ranks is None else share(5, ranks)
        how = {"ranks": ranks, "rng": np.random.default_rng(1)}
        encoder = ms.resnet_small(base=2, **how)
        head = ms.ProjectionHead(encoder.features, 8, 6, **how)
        model = placed(ms.SimCLR(encoder, head, objective=objectives.named("nt_xent", ranks=ranks)).astype(np.float64))
        loss, za, zb = model.loss(*(on_device(view[part]) for view in views), 0.2)
        loss.backward()
        gradients = [p.grad for p in model.parameters()]
        if ranks is not None:
            add_up(ranks, gradients)
        top1 = contrastive_accuracy_on_device(za, zb, ranks)
        return host(loss.data), np.concatenate([host(g).ravel() for g in gradients]), host(top1)

    loss, gradient, top1 = step(None)
    for got in on_ranks(2, step):
        assert got[0] == pytest.approx(loss, rel=1e-11)
        np.testing.assert_allclose(got[1], gradient, rtol=0, atol=1e-11 * np.abs(gradient).max())
        assert got[2] == pytest.approx(top1)


def test_a_run_of_two_ranks_on_a_device_agrees_with_that_of_one_process_there() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 10, 10, 3), np.uint8)
    config = Config(size=8, batch=4, epochs=1, head_dim=8, device=devices.DEVICE, temperature=0.5)
    one = ms.pretrain(config, images)
    first, second = on_ranks(2, lambda ranks: ms.pretrain(dataclasses.replace(config), images, ranks=ranks))
    a, b, other = (run.model.state_dict() for run in (first, second, one))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert max(float(np.abs(a[name] - other[name]).max()) for name in a) < 1e-3
