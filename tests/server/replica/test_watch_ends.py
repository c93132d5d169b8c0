"""How sessions end, and what an end leaves behind: those that owe, are cut off, have lasted, or whose caller has expired.
Besides, how much one may hold.

The world is that of `test_watchers.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from doorward_server.errors import Exhausted, Unavailable
from doorward_server.replica import watchers
from doorward_server.replica.watch_messages import Reset, UnrecognizedSnapshot
from doorward_server.replica.watchers import LONGEST_SESSION_NS
from tests.server.replica.test_watchers import World, X, Y
from tests.server.replica.test_watchers_machine import HOLD_MS

if TYPE_CHECKING:
    from doorward_server.replica.watch_session import Session

QUARTER_MS = HOLD_MS / 4


@pytest.fixture
def world() -> World:
    """A session that holds x, y and x's account under a sub-lease, everything acknowledged."""
    return World()


def acknowledged_late(world: World) -> Session:
    """The replica has ended the session, which owed a change, and only then comes the acknowledgement."""
    world.change(X)
    world.write(0)
    session = world.model.session
    world.watchers.end(session, None)
    world.watchers.acknowledge(session, 1, 1)
    return session


def test_an_acknowledgement_behind_the_end_reports_nothing(world: World) -> None:
    acknowledged_late(world)
    assert world.reported == 0


def test_a_change_behind_a_late_acknowledgement_waits_for_the_count(world: World) -> None:
    acknowledged_late(world)
    # It still holds y, and may decide.
    world.change(Y)
    assert world.reported == 0


def test_a_forget_behind_the_end_changes_nothing(world: World) -> None:
    world.watchers.end(world.model.session, None)
    world.watchers.forget(world.model.session, [X], world.model.sequence)
    world.change(X)
    assert world.reported == 0


def test_a_goodbye_behind_the_end_ends_the_count(world: World) -> None:
    session = acknowledged_late(world)
    world.model.give_up()
    world.watchers.goodbye(session, session.session_id)
    assert world.reported == 1
    assert world.watchers.counted() == 0


def test_whoever_takes_no_evict_is_granted_nothing_and_ended(world: World) -> None:
    """Its transport takes nothing more, so the evict waits here: it must not be waited for without end."""
    session = world.model.session
    world.change(X)
    world.clock.advance(QUARTER_MS - 1)
    world.renew(0)
    assert world.watchers.grant(session, 98)
    world.clock.advance(1)
    assert not world.watchers.grant(session, 99)
    world.watchers.look()
    assert isinstance(session.refused, Exhausted)
    assert world.reported == 0


def test_a_change_that_nobody_here_knows_may_be_of_any_caller(world: World) -> None:
    world.change("colour:blue")
    assert world.model.session.must_verify


def test_callers_are_looked_at_again_in_every_hold(world: World) -> None:
    session = world.model.session
    world.watchers.look()
    session.must_verify = False
    world.clock.advance(HOLD_MS - 1)
    world.renew(0)
    world.watchers.look()
    assert not session.must_verify
    world.clock.advance(1)
    world.watchers.look()
    assert session.must_verify


def lasted(world: World) -> Session:
    """A session that has lasted for as long as one may, with a sub-lease."""
    session = world.model.session
    world.clock.reading_ns += LONGEST_SESSION_NS
    world.renew(0)
    assert world.watchers.grant(session, 99)
    world.take_all()
    world.watchers.look()
    return session


def test_a_session_that_has_lasted_is_asked_to_go_before_its_connection_is_cut(world: World) -> None:
    session = lasted(world)
    (reset,) = world.take_all()
    assert isinstance(reset, Reset)
    assert isinstance(reset.cause, Unavailable)
    assert session.is_open
    assert not world.watchers.grant(session, 100)
    # Asked once.
    world.watchers.look()
    assert not session.waiting


def test_one_that_does_not_go_is_ended_when_its_count_is_past(world: World) -> None:
    session = lasted(world)
    world.clock.advance(HOLD_MS - 1)
    world.watchers.look()
    assert session.is_open
    world.clock.advance(1)
    world.watchers.look()
    assert isinstance(session.refused, Unavailable)
    assert world.watchers.counted() == 0


def test_sessions_end_as_soon_as_the_replica_knows_that_it_must_register_anew(world: World) -> None:
    """Not only when it has: the database may be away for long, and others may be well."""
    world.holding.begin_anew("test")
    assert isinstance(world.model.session.refused, Unavailable)
    assert world.watchers.counted() == 1


def test_what_a_session_of_a_former_registration_owes_keeps_nothing_back(world: World) -> None:
    world.change(X)
    assert world.reported == 0
    world.register_anew()
    # Nobody reports to the old row any more, and the new one began with the change.
    assert world.watchers.reportable() == 1
    assert world.watchers.counted() == 1


# ---- what one may hold


@pytest.mark.parametrize("bound", ["MOST_HELD", "MOST_HELD_BY_ALL"])
def test_beyond_what_may_be_held_nothing_is_looked_up_until_something_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    session = world.model.session
    monkeypatch.setattr(watchers, bound, 3)
    with pytest.raises(Exhausted):
        world.watchers.snapshot(session, UnrecognizedSnapshot(1, "z"), ("token:z",))
    assert not session.waiting
    assert world.watchers.held == 3
    # What it holds already may be asked for again.
    world.resolve(0, "x")
    world.take_all()
    world.forget(0, "y")
    world.watchers.snapshot(session, UnrecognizedSnapshot(1, "z"), ("token:z",))
    assert world.watchers.held == 3
