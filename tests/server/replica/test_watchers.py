"""The shortest failure without each rule of the model's watcher table (`watch2.cpp`), acted out: none of them happens.

The world, with its naive watchers and revoker, is that of the state machine beside this file.
"""

from __future__ import annotations

import asyncio

import pytest

from doorward_server.catalog.load import builtin_text, load_catalog
from doorward_server.errors import Exhausted, InvalidArgument, Unavailable
from doorward_server.replica.watch_messages import Evict, Grant, UnrecognizedSnapshot
from doorward_server.replica.watch_session import MOST_NAMED, MOST_QUEUED, Session
from doorward_server.replica.watchers import MOST_ENDED
from tests.server.replica.test_watchers_machine import HOLD_MS, WatchedReplica
from tests.support.stepped import settled

X, Y, ACCOUNT = "token:x", "token:y", "account:a"


class World(WatchedReplica):
    """The same, with what the tests ask about; the verdict is taken after every step."""

    def __init__(self, *, has_lease: bool = True) -> None:
        super().__init__()
        self.begin(begins_late=not has_lease)
        self.model = self.models[0]

    def act(self, *steps: tuple[object, ...]) -> None:
        """Does these steps."""
        for name, *arguments in steps:
            getattr(self, str(name))(*arguments)
            self.nobody_says_yes_from_before_a_change_that_returned()

    def take_all(self, which: int = 0) -> list[object]:
        """Everything that waits, written and delivered."""
        bodies: list[object] = []
        model = self.models[which]
        while model.session.waiting:
            self.write(which)
            bodies.append(model.coming[-1].body)
        while model.coming:
            self.deliver(which)
        return bodies

    @property
    def reported(self) -> int:
        """What the row shows by now."""
        self.nobody_says_yes_from_before_a_change_that_returned()
        return self.rows[-1].reported

    def change(self, subject: str) -> None:
        """A change, applied at once."""
        self.act(("commit", subject), ("apply",))


@pytest.fixture
def world() -> World:
    """A session that holds x, y and x's account under a sub-lease, everything acknowledged."""
    return World()


# ---- what is reported, and when


def test_a_change_of_what_is_held_is_reported_once_it_is_acknowledged(world: World) -> None:
    world.change(X)
    assert world.reported == 0
    world.write(0)
    assert world.reported == 0
    world.deliver(0)
    assert world.reported == 1


def test_a_change_of_what_is_not_held_is_reported_at_once(world: World) -> None:
    world.change("token:z")
    assert world.reported == 1


def test_a_later_change_does_not_acknowledge_an_earlier_one(world: World) -> None:
    world.change(X)
    world.change("token:z")
    assert world.reported == 0


def test_acknowledgements_are_cumulative(world: World) -> None:
    world.change(X)
    world.resolve(0, "x")
    world.change(Y)
    bodies = world.take_all()
    assert [type(body) for body in bodies] == [Evict, UnrecognizedSnapshot, Evict]
    assert world.reported == 2


def test_the_acknowledgement_of_the_last_message_stands_for_all_before_it(world: World) -> None:
    world.change(X)
    world.resolve(0, "x")
    world.change(Y)
    session, taken = world.model.session, []
    while message := world.watchers.take(session):
        taken.append(message.number)
    assert (taken, world.watchers.reportable()) == ([1, 1, 2], 0)

    world.watchers.acknowledge(session, 1, taken[-1])

    assert world.watchers.reportable() == 2


@pytest.mark.parametrize("subject", [X, ACCOUNT, Y])
def test_a_cut_off_watcher_is_waited_for_until_its_count_is_past(world: World, subject: str) -> None:
    world.end(0, "the replica")
    world.change(subject)
    left_ns = world.model.session.counted_until_ns - world.clock.now_ns()
    world.clock.reading_ns += left_ns - 1
    assert world.watchers.reportable() == 0
    world.clock.reading_ns += 1
    assert world.watchers.reportable() == 1


def test_a_sub_lease_is_counted_longer_than_the_slowest_clock_shows_it_good(world: World) -> None:
    length_ms = 0.8 * HOLD_MS
    assert world.model.session.counted_until_ns - world.clock.now_ns() == int(1.25 * length_ms * 1e6)


def test_a_goodbye_ends_the_count(world: World) -> None:
    world.end(0, "goodbye")
    world.change(X)
    assert world.reported == 1
    assert world.watchers.counted() == 0


def test_the_goodbye_of_another_session_ends_nothing(world: World) -> None:
    world.open()
    other, this = world.models[0].session, world.model.session
    with pytest.raises(InvalidArgument):
        world.watchers.goodbye(other, this.session_id)
    world.watchers.goodbye(other, other.session_id)
    world.change(X)
    assert world.reported == 0


def test_a_session_without_a_sub_lease_delays_nothing() -> None:
    world = World(has_lease=False)
    world.change(X)
    assert world.reported == 1
    # Its evict waits all the same, and a grant stands behind it.
    world.ask(0)
    assert [type(body) for body in world.take_all()] == [Evict, Grant]


# ---- the order of the queue


def test_a_snapshot_and_a_grant_stand_behind_the_evict_that_waits(world: World) -> None:
    world.change(X)
    world.act(("renew", 0), ("resolve", 0, "y"), ("ask", 0))
    bodies = world.take_all()
    assert [type(body) for body in bodies] == [Evict, UnrecognizedSnapshot, Grant]


def test_changes_gather_in_the_evict_that_waits_last(world: World) -> None:
    world.change(X)
    world.change(Y)
    (evict,) = world.take_all()
    assert isinstance(evict, Evict)
    assert set(evict.keys) == {X, Y}


def test_a_change_does_not_enter_an_evict_that_something_stands_behind(world: World) -> None:
    world.change(X)
    world.resolve(0, "x")
    world.change(X)
    world.write(0)
    world.write(0)
    # Evict and snapshot came, and were acknowledged; the second change is still owed.
    world.deliver(0)
    world.deliver(0)
    assert world.reported == 1
    assert world.model.entries[X] == 1


def test_positions_never_go_back_and_numbers_have_no_gap(world: World) -> None:
    for subject in (X, Y, "token:z", ACCOUNT):
        world.change(subject)
        world.act(("renew", 0), ("ask", 0), ("resolve", 0, "x"), ("ask", 0), ("ask", 0))
    session, taken = world.model.session, []
    while message := world.watchers.take(session):
        taken.append(message)
    assert [message.number for message in taken] == sorted(message.number for message in taken)
    first = world.model.sequence + 1
    assert [message.sequence for message in taken] == list(range(first, first + len(taken)))
    # Of the asks that waited, the newest is answered.
    assert [message.body.ask for message in taken if isinstance(message.body, Grant)] == [world.asked]


def test_a_position_is_acknowledged_only_once_it_was_sent(world: World) -> None:
    world.change(X)
    with pytest.raises(InvalidArgument):
        world.watchers.acknowledge(world.model.session, 1, 1)
    world.write(0)
    with pytest.raises(InvalidArgument):
        world.watchers.acknowledge(world.model.session, 2, 1)
    world.watchers.acknowledge(world.model.session, 1, 1)
    assert world.watchers.reportable() == 1


def test_a_forget_that_crossed_a_snapshot_leaves_it_held(world: World) -> None:
    world.resolve(0, "x")
    world.write(0)
    world.forget(0, "x")
    world.deliver(0)
    assert X in world.model.entries
    world.change(X)
    assert world.reported == 0


def test_what_was_forgotten_is_not_owed(world: World) -> None:
    world.forget(0, "x")
    world.change(X)
    assert world.reported == 1
    assert not world.model.session.waiting


# ---- grants


def test_a_renewal_that_is_not_applied_gives_no_longer_sub_lease(world: World) -> None:
    world.act(("pass_time", 100), ("commit", X), ("renew", 0), ("ask", 0))
    (grant,) = world.take_all()
    assert isinstance(grant, Grant)
    usable_ns = world.holding.lease.capture(world.clock.now_ns())
    assert usable_ns is not None
    assert grant.length_ns == usable_ns - world.clock.now_ns()
    world.act(("pass_time", 500), ("pass_time", 300), ("pass_time", 240))


def test_without_a_usable_lease_nothing_is_granted_or_looked_up(world: World) -> None:
    world.holding.lease.drop()
    assert not world.watchers.grant(world.model.session, 9)
    with pytest.raises(Unavailable):
        world.watchers.snapshot(world.model.session, UnrecognizedSnapshot(1, "y"), (Y,))


def test_whoever_has_acknowledged_nothing_is_granted_nothing(world: World) -> None:
    """It comes back each time that it is ended for its silence: each time a change of what it holds would wait for it."""
    session = world.watchers.open("operator:o")
    start = world.watchers.take(session)
    assert start is not None
    assert not world.watchers.grant(session, 1)
    world.watchers.acknowledge(session, 1, start.number)
    assert world.watchers.grant(session, 2)


def test_whoever_does_not_acknowledge_is_granted_nothing_and_ended(world: World) -> None:
    world.act(("ask", 0), ("write", 0))
    session, quarter_ms = world.model.session, HOLD_MS / 4
    world.change(X)
    world.write(0)
    world.clock.advance(quarter_ms - 1)
    world.watchers.look()
    assert session.is_open
    world.clock.advance(1)
    world.renew(0)
    assert not world.watchers.grant(session, 99)
    world.watchers.look()
    assert isinstance(session.refused, Exhausted)
    # It may still decide, so it is still waited for.
    assert world.reported == 0


# ---- ends of sessions


def test_registering_anew_ends_every_session_and_leaves_its_count_to_the_old_row(world: World) -> None:
    world.act(("commit", X), ("register_anew",), ("renew", 0))
    assert not world.model.session.is_open
    assert not world.watchers.grant(world.model.session, 99)
    assert world.watchers.reportable() == 1
    # Whoever deletes the rows of this process must still know of it.
    assert world.watchers.counted() == 1
    world.act(("ask", 0), ("pass_time", 500), ("pass_time", 300), ("pass_time", 240))
    assert world.watchers.counted() == 0


def test_a_change_that_nobody_here_knows_evicts_everything(world: World) -> None:
    world.change("colour:blue")
    (evict,) = world.take_all()
    assert evict == Evict((), True, True)
    assert not world.model.session.held


def test_a_change_of_the_catalog_is_owed_by_everyone_who_has_it(world: World) -> None:
    session = world.model.session
    world.watchers.catalog(session, load_catalog(builtin_text(), 1))
    assert not session.needs_catalog
    world.take_all()
    world.change("catalog:")
    assert world.reported == 0
    (evict,) = world.take_all()
    assert evict == Evict((), True, False)
    assert session.needs_catalog


def test_a_change_of_a_caller_is_looked_at_and_not_waited_for(world: World) -> None:
    world.change("operator:o")
    assert world.model.session.must_verify
    assert world.reported == 1


# ---- bounds


def test_an_evict_that_would_name_too_much_names_everything() -> None:
    session = Session("s", "operator:o")
    keys = [f"token:{number}" for number in range(MOST_NAMED + 1)]
    session.put(1, UnrecognizedSnapshot(0, ""), (*keys, ACCOUNT))
    session.take(0)
    assert len(session.evict(2, keys, 0)) == len(keys) + 1
    taken = session.take(0)
    assert taken is not None
    assert taken.body == Evict((), True, True)


def test_a_watcher_that_takes_nothing_is_ended(world: World) -> None:
    for _ in range(MOST_QUEUED + 1):
        world.resolve(0, "y")
    assert isinstance(world.model.session.refused, Exhausted)
    assert world.watchers.counted() == 1


def test_sessions_are_bounded(world: World) -> None:
    world.open()
    world.open()
    with pytest.raises(Exhausted):
        world.watchers.open("operator:o")


def test_those_that_ended_and_are_still_counted_are_bounded_too(world: World) -> None:
    for _ in range(MOST_ENDED * 3):
        session = world.watchers.open("operator:o")
        start = world.watchers.take(session)
        assert start is not None
        world.watchers.acknowledge(session, 1, start.number)
        assert world.watchers.grant(session, 1)
        world.watchers.end(session, None)
    with pytest.raises(Exhausted):
        world.watchers.open("operator:o")


def test_nothing_is_kept_of_sessions_that_are_past(world: World) -> None:
    world.end(0, "the replica")
    world.act(("pass_time", 500), ("pass_time", 500))
    assert world.watchers.held == 0
    assert world.watchers.counted() == 0


# ---- the parent of a worker


def told_by(world: World) -> list[bool]:
    """What the parent is told, which listens."""
    told: list[bool] = []

    def tell(some: bool) -> bool:
        told.append(some)
        return True

    world.watchers.parent.tell = tell
    return told


async def test_a_worker_grants_nothing_before_its_parent_has_heard(world: World) -> None:
    told = told_by(world)
    assert not world.watchers.grant(world.model.session, 9)

    ready = [asyncio.ensure_future(world.watchers.parent.ready()) for _ in range(3)]
    await settled()
    assert told == [True]
    assert not any(waiting.done() for waiting in ready)
    assert not world.watchers.grant(world.model.session, 9)

    world.watchers.parent.heard()
    await asyncio.gather(*ready)
    world.watchers.look()
    assert world.watchers.grant(world.model.session, 9)
    assert told == [True]


async def test_a_worker_says_when_none_is_counted_and_asks_again_before_the_next(world: World) -> None:
    told = told_by(world)
    ready = asyncio.ensure_future(world.watchers.parent.ready())
    await settled()
    world.watchers.parent.heard()
    await ready
    assert world.watchers.grant(world.model.session, 9)

    world.end(0, "goodbye")
    world.watchers.look()
    assert told == [True, False]
    world.open()
    assert not world.watchers.grant(world.models[0].session, 10)
    world.watchers.parent.heard()
    assert not world.watchers.grant(world.models[0].session, 10)


async def test_a_parent_that_did_not_listen_is_told_again(world: World) -> None:
    world.watchers.parent.tell = lambda _some: False
    with pytest.raises(Unavailable):
        await world.watchers.parent.ready()
    told = told_by(world)
    ready = asyncio.ensure_future(world.watchers.parent.ready())
    await settled()
    assert told == [True]
    world.watchers.parent.heard()
    await ready


# ---- shutdown


async def test_a_shutdown_asks_to_go_and_waits_for_goodbyes(world: World) -> None:
    world.holding.lease.drop()
    world.watchers.reset()
    leaving = asyncio.ensure_future(world.watchers.left(world.clock.now_ns() + HOLD_MS * 1_000_000))
    await settled()
    assert not leaving.done()
    with pytest.raises(Unavailable):
        world.watchers.open("operator:o")
    world.take_all()
    await settled()
    assert not leaving.done()
    world.end(0, "goodbye")
    await leaving


async def test_a_shutdown_waits_no_longer_than_any_sub_lease(world: World) -> None:
    world.holding.lease.drop()
    world.watchers.reset()
    leaving = asyncio.ensure_future(world.watchers.left(world.clock.now_ns() + HOLD_MS * 1_000_000))
    await settled()
    world.clock.advance(HOLD_MS - 1)
    await settled()
    assert not leaving.done()
    world.clock.advance(1)
    await leaving
    assert not world.model.session.is_open
