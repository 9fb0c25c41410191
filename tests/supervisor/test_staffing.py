from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from rpxy_l4.supervisor.slots import deal, plan_moves
from rpxy_l4.supervisor.staffing import Post, Staffing, plan_staff

ENOUGH = 40


def post(number: int, *, dead: bool = False, leaving: bool = False, old: bool = False) -> Post:
    return Post(number, has_process=not dead, is_leaving=leaving, is_old=old)


def test_what_is_as_wanted_stays_as_it_is() -> None:
    assert plan_staff([post(0), post(1)], {0, 1}, 2, 4, is_settled=True) == Staffing([], (), [], [])


def test_workers_are_added_on_the_lowest_free_rows() -> None:
    assert plan_staff([post(0), post(2, leaving=True)], {0, 2}, 3, 8, is_settled=False).open == [1, 3]


def test_of_too_many_the_last_ones_leave() -> None:
    assert plan_staff([post(0), post(1), post(2)], {0, 1, 2}, 1, 8, is_settled=True).leave == [1, 2]


def test_the_seat_of_one_that_left_is_closed_once_its_slots_are_with_others() -> None:
    left = post(1, leaving=True, dead=True)

    assert plan_staff([post(0), left], {0, 1}, 1, 4, is_settled=True).close == []
    assert plan_staff([post(0), left], {0}, 1, 4, is_settled=True).close == [1]


def test_old_workers_are_replaced_one_after_another() -> None:
    old = [post(0, old=True), post(1, old=True)]

    first = plan_staff(old, {0, 1}, 2, 4, is_settled=True)
    assert (first.leave, first.open) == ([0], [2])
    leaving = [post(0, old=True, leaving=True), post(1, old=True), post(2)]
    assert plan_staff(leaving, {0, 1}, 2, 4, is_settled=True).leave == []
    assert plan_staff(leaving, {2, 1}, 2, 4, is_settled=False).leave == []
    then = plan_staff(leaving, {2, 1}, 2, 4, is_settled=True)
    assert (then.leave, then.open) == ([1], [3])


def test_with_fewer_workers_during_an_upgrade_the_old_ones_leave_and_not_the_one_that_takes_their_slots() -> None:
    posts = [post(0, old=True, leaving=True), post(1, old=True), post(2)]

    assert plan_staff(posts, {0, 1}, 1, 4, is_settled=True).leave == [1]


def test_one_more_than_wanted_is_added_where_only_old_ones_stay() -> None:
    posts = [post(0, old=True, leaving=True), post(1, old=True)]

    assert plan_staff(posts, {0, 1}, 1, 4, is_settled=True).open == [2]


def test_where_all_are_old_and_no_row_is_free_those_with_slots_keep_them_and_the_others_leave() -> None:
    posts = [post(0, old=True, leaving=True), post(1, old=True)]

    plan = plan_staff(posts, {0}, 1, 2, is_settled=True)
    assert plan.waits
    assert (plan.stay, plan.leave, plan.open) == ([0], [1], ())


def test_the_next_old_one_stays_while_no_row_is_free_for_who_follows() -> None:
    posts = [post(0, old=True), post(1), post(2, leaving=True), post(3, leaving=True)]

    plan = plan_staff(posts, {0, 1}, 2, 4, is_settled=True)
    assert plan.waits
    assert plan.leave == []
    assert plan_staff(posts[:3], {0, 1}, 2, 4, is_settled=True).leave == [0]


@dataclass
class Model:
    """What the supervisor does with the plans, without processes."""

    slots: int
    wanted: int
    owners: dict[int, int] = field(default_factory=dict)
    posts: dict[int, Post] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.owners = deal(self.slots, range(self.wanted))
        self.posts = {number: post(number) for number in range(self.wanted)}

    def act(self) -> None:
        plan = plan_staff(
            [*self.posts.values()], set(self.owners.values()), self.wanted, 2 * self.slots, is_settled=True
        )
        for number in plan.leave:
            self.posts[number] = self.posts[number]._replace(is_leaving=True)
        for number in plan.stay:
            self.posts[number] = self.posts[number]._replace(is_leaving=False)
        for number in plan.close:
            del self.posts[number]
        for number in plan.open:
            assert number not in self.posts
            self.posts[number] = post(number, dead=True)

    def spawn(self) -> None:
        for number, each in self.posts.items():
            if not each.has_process and not each.is_leaving:
                self.posts[number] = post(number)

    def move(self) -> None:
        kept = [number for number, each in self.posts.items() if not each.is_leaving]
        able = [number for number in kept if self.posts[number].has_process and not self.posts[number].is_old]
        for move in plan_moves(self.owners, kept, able):
            self.owners[move.slot] = move.taker

    def kill(self, index: int) -> None:
        if living := [number for number, each in sorted(self.posts.items()) if each.has_process]:
            number = living[index % len(living)]
            # Nobody follows with the old program.
            self.posts[number] = self.posts[number]._replace(has_process=False, is_old=False)

    def upgrade(self) -> None:
        self.posts = {number: each._replace(is_old=each.has_process) for number, each in self.posts.items()}

    def drained(self) -> None:
        for number, each in self.posts.items():
            if each.is_leaving and number not in self.owners.values():
                self.posts[number] = each._replace(has_process=False)


@given(
    slots=st.integers(1, 6),
    start=st.integers(1, 6),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["act", "spawn", "move", "kill", "upgrade", "drained", "want"]),
            st.integers(0, 11),
        ),
        max_size=60,
    ),
)
def test_whatever_happens_every_slot_ends_with_a_new_worker_that_stays(
    slots: int, start: int, steps: list[tuple[str, int]]
) -> None:
    model = Model(slots, min(start, slots))
    for step, number in steps:
        match step:
            case "kill":
                model.kill(number)
            case "want":
                model.wanted = max(1, min(number, slots))
            case _:
                getattr(model, step)()
        assert len(model.posts) <= 2 * slots
    for _ in range(ENOUGH):
        model.act()
        model.spawn()
        model.move()
        model.drained()

    assert len(model.posts) == model.wanted
    assert all(each == post(number) for number, each in model.posts.items())
    assert set(model.owners.values()) == set(model.posts)
