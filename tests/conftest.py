from __future__ import annotations

from hypothesis import settings

# Deterministic, so that a red run is red again; and a busy machine must not fail a test by being slow.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")
