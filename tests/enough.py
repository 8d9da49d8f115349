"""A plugin of pytest for plant_faults.py: the run ends as soon as tests of enough kinds have failed.

Which further tests would notice a fault is not asked then, and a pass over all faults takes a third of the time.
"""

from __future__ import annotations

import os
from typing import Any

from faults import kind_of

_kinds: set[str] = set()
_session: list[Any] = []


def pytest_sessionstart(session: Any) -> None:
    _session.append(session)


def pytest_runtest_logreport(report: Any) -> None:
    if report.failed:
        _kinds.add(kind_of(report.nodeid))
        if len(_kinds) >= int(os.environ["ENOUGH_KINDS"]):
            _session[0].shouldstop = "tests of enough kinds have failed"
