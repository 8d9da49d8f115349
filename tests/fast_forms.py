"""The doors of the fast forms, for tests that assert that only plain forms run.

forbid_fast_forms(monkeypatch)    # from now on a fast form that is entered fails the test
"""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

import pytest

# module: the function that everything fast in it goes through
FAST_FORMS = {
    "minisimclr.ops.conv.slabs": "convolution",
    "minisimclr.ops.conv.padded": "convolution",
    "minisimclr.ops.conv.winograd": "convolution",
    "minisimclr.ops.norm.fused": "_chunks",  # moments, the value and the gradient all ask it for their chunks
    "minisimclr.ops.pool": "_threaded",
}


class FastFormEntered(AssertionError):
    """A fast form ran where only plain forms should."""


def forbid_fast_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace every fast form by a function that raises FastFormEntered."""
    for module, function in FAST_FORMS.items():
        monkeypatch.setattr(importlib.import_module(module), function, _alarm(f"{module}.{function}"))


def _alarm(name: str) -> Any:
    def alarm(*_: Any, **__: Any) -> NoReturn:
        raise FastFormEntered(name)

    return alarm
