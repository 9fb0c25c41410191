"""Which workers there are to be: who leaves, and which seats are opened and closed. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple


class Post(NamedTuple):
    """A worker's seat, as far as it matters here."""

    number: int
    has_process: bool
    is_leaving: bool
    is_old: bool
    """Its process runs the program that was there before an upgrade. One that follows in the seat does not."""


class Staffing(NamedTuple):
    """What to do, each by number."""

    leave: Sequence[int] = ()
    """These give up their slots and end."""
    stay: Sequence[int] = ()
    """These were leaving, and keep their slots after all, or are followed by one that does."""
    close: Sequence[int] = ()
    """Seats that nobody needs any more."""
    open: Sequence[int] = ()
    """New seats, to be filled."""
    waits: bool = False
    """Old workers are not replaced yet, because those who left have not ended and no row is free."""


def plan_staff(
    posts: Collection[Post], owners: Collection[int], wanted: int, rows: int, *, is_settled: bool
) -> Staffing:
    """Return what brings the workers to the number that is wanted, and replaces old ones one after another.

    ``owners``: who has slots. ``rows``: how many workers there may be at once, those that leave included. While not
    ``is_settled``, because slots move, no other old one begins to leave.

    Whatever is wanted and whoever dies, there is, or will be, a worker that takes the slots of those who leave: old
    ones leave before new ones, for they can be given nothing, and one more than wanted is added where all are old.
    """
    closed = [post.number for post in posts if post.is_leaving and not post.has_process and post.number not in owners]
    taken = {post.number for post in posts} - set(closed)
    free = [number for number in range(rows) if number not in taken]
    kept = sorted((post for post in posts if not post.is_leaving), key=lambda post: (post.is_old, post.number))
    leaving = [post for post in posts if post.is_leaving]

    if not free and all(post.is_old for post in kept):
        # Nobody can be given slots before somebody has ended: those who have some keep them until then.
        return Staffing(
            leave=[post.number for post in kept if post.number not in owners],
            stay=[post.number for post in leaving if post.number in owners],
            close=closed,
            waits=True,
        )

    kept, leave = kept[:wanted], [post.number for post in kept[wanted:]]
    away = {*leave, *(post.number for post in leaving)}
    waits = False
    if kept and kept[-1].is_old and is_settled and away.isdisjoint(owners):
        waits = wanted - (len(kept) - 1) > len(free)
        if not waits:
            number = min(post.number for post in kept if post.is_old)
            kept = [post for post in kept if post.number != number]
            leave.append(number)
            away.add(number)
    missing = wanted - len(kept)
    if missing <= 0 and not away.isdisjoint(owners) and all(post.is_old for post in kept):
        missing = 1
    return Staffing(leave, (), closed, free[: max(0, missing)], waits)
