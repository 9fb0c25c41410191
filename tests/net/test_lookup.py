from __future__ import annotations

from rpxy_l4.net.lookup import why_unresolved


def test_a_name_with_an_address_is_fine() -> None:
    assert why_unresolved("localhost") is None


def test_a_name_without_one_has_a_reason() -> None:
    # A label of more than 63 bytes cannot exist (RFC 1035 section 2.3.4), so no resolver is asked.
    assert why_unresolved("x" * 64 + ".invalid")
