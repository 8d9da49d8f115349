"""How many random cases hypothesis tries: few while editing, always the same hundred in CI, many at night."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("dev", max_examples=10, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("nightly", max_examples=2000, deadline=None)
# `pytest --hypothesis-profile=nightly` chooses one by name and wins over this line
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")
