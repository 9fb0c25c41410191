"""``python -m rpxy_l4``."""

from __future__ import annotations

import sys

from rpxy_l4.cli import main

sys.exit(main())
