"""Durations as people write them in a configuration."""

from __future__ import annotations

import re
from typing import Final

from rpxy_l4.errors import quote

# The widest that rust-rpxy-l4 has in a file (u32 seconds, 136 years); small enough for every clock and timer below us.
MAX_SECONDS: Final = 2**32 - 1

_SECOND: Final = 1000
UNITS: Final = {
    "ms": 1,
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), _SECOND),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60 * _SECOND),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600 * _SECOND),
}
"""Milliseconds per unit. Case does not matter."""

_FORM: Final = re.compile(r"([0-9]+)([A-Za-z]+)", re.ASCII)
# More digits than any duration in range has, in milliseconds too.
_MAX_DIGITS: Final = 14


def parse_duration(value: str | int) -> float:
    """Return seconds: of ``"250ms"``, ``"30s"``, ``"5min"``, ``"1h"``, or of a whole number of seconds.

    Raises ValueError whose message is for the author of the file.
    """
    if isinstance(value, str):
        match = _FORM.fullmatch(value)
        unit = UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise ValueError(f'{quote(value)} is not a duration; write "250ms", "30s", "5m", "1h" or whole seconds')
        seconds = int(match[1]) * unit / _SECOND if len(match[1]) <= _MAX_DIGITS else -1.0
    else:
        seconds = value
    if not 0 <= seconds <= MAX_SECONDS:
        raise ValueError(f"a duration is from 0 to {MAX_SECONDS} seconds")
    return float(seconds)
