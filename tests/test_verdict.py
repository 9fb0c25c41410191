from __future__ import annotations

from rpxy_l4.verdict import NO_MATCH, TRANSPORT_OF, Match, NeedMore, NoMatch, Protocol


def test_every_protocol_has_a_transport() -> None:
    assert set(TRANSPORT_OF) == set(Protocol)


def test_equal_verdicts_are_equal() -> None:
    assert NoMatch() == NO_MATCH
    assert NeedMore(5) != NeedMore(6)
    assert Match(Protocol.TLS, "a.example") != Match(Protocol.TLS)
