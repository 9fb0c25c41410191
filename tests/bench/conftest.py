"""The benchmark is not part of the installed package: it is found in the repository only."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent))
