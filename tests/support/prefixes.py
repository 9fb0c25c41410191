"""Properties of everything that judges a growing buffer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from hypothesis import strategies as st

from rpxy_l4.verdict import NO_MATCH, NeedMore, Verdict

Probe = Callable[[bytes | bytearray, bool], Verdict]


def at_every_length(probe: Probe, data: bytes) -> list[Verdict]:
    """The verdict for each prefix, from the empty one to the whole.

    A decision never changes, NeedMore is honest, the end of the client's direction decides what was undecided and
    nothing else, and a bytearray is judged like bytes.
    """
    verdicts = [probe(data[:length], False) for length in range(len(data) + 1)]
    assert_honest(verdicts)
    for length, verdict in enumerate(verdicts):
        expected = NO_MATCH if isinstance(verdict, NeedMore) else verdict
        assert probe(data[:length], True) == expected
        assert probe(bytearray(data[:length]), False) == verdict
    return verdicts


def assert_honest(answers: Sequence[object]) -> None:
    """Answer *n* was given to the first *n* bytes."""
    promised = 0
    for length, answer in enumerate(answers):
        if isinstance(answer, NeedMore):
            assert answer.total > length
            promised = max(promised, answer.total)
        else:
            assert length >= promised
            assert answer == answers[-1]
    decided = decided_at(answers)
    assert not any(isinstance(answer, NeedMore) for answer in answers[decided:])


def decided_at(verdicts: Sequence[object]) -> int:
    """How many bytes the decision took; the number of verdicts when there was none."""
    return next((length for length, verdict in enumerate(verdicts) if not isinstance(verdict, NeedMore)), len(verdicts))


def pieces(data: bytes) -> st.SearchStrategy[list[bytes]]:
    """Every way to cut the data into pieces that are not empty."""
    cuts = st.sets(st.integers(1, max(1, len(data) - 1)), max_size=12)
    return cuts.map(lambda at: [data[start:stop] for start, stop in pairwise([0, *sorted(at), len(data)])])


def mutated(originals: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of the originals with some bytes replaced, removed or put in, and cut off somewhere."""
    edit = st.tuples(st.integers(0, 4096), st.integers(0, 3), st.binary(max_size=4))

    def apply(original: bytes, edits: list[tuple[int, int, bytes]], length: int) -> bytes:
        data = bytearray(original)
        for at, removed, added in edits:
            place = at % (len(data) + 1)
            data[place : place + removed] = added
        return bytes(data[:length]) if length else bytes(data)

    return st.builds(apply, st.sampled_from(originals), st.lists(edit, max_size=4), st.integers(0, 600))
