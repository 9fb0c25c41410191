"""Where built programs, recorded packets and peers installed beside the system's are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rpxy-l4-bench"
PROGRAMS: Final = CACHE / "bin"
"""Looked into before PATH."""
