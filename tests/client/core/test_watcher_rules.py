"""Each rule of a watcher, by the shortest failure without it: with the rule no stale answer, with its twin one.

The scripts are those of the model's table (`watch2.cpp`), named after its flags; `World` finds an answer that no state
from the last returned change on would give. A twin is the watcher with one rule taken away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from doorward.core import watcher as watcher_module
from doorward.core.matrix import DenyReason
from doorward.core.watch_check import Check
from doorward.core.watch_messages import Evict, Forget, Goodbye, KeyKind, LeaseGrant, Start, WatchKey
from doorward.core.watch_session import Session, Taken, WatchViolation
from doorward.core.watch_tables import WatchBounds, WatchTables
from doorward.core.watcher import Captured, Decided, Watcher
from tests.support import watched
from tests.support.watched import Replica, Stale, Stream, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward.core.watch_messages import FromReplica, Hello

    Twin = Callable[[pytest.MonkeyPatch], None]
    Script = Callable[[World], None]


# ---- scripts


def to_everybody(world: World, change: str) -> None:
    """A change that every replica applies, and the watcher is told of."""
    world.commit(change)
    for replica in world.replicas:
        replica.apply()
    world.settle()
    world.run()


def stream_of(world: World) -> Stream:
    assert world.stream is not None
    return world.stream


def acknowledges_and_moves(world: World) -> Replica:
    """B is cut off and lags; the watcher has acknowledged R at A and has a sub-lease of A's that outlives R's return."""
    a, b = world.replicas
    world.hold_x(a)
    b.is_cut = True
    world.commit("x")
    a.apply()
    world.run()
    world.pass_time(70)
    a.renew()
    world.ask()
    world.run()
    return b


def moves_before_the_return(world: World) -> None:
    lagging = acknowledges_and_moves(world)
    world.open(lagging)
    world.run()
    world.check()
    world.pass_time(40)
    assert world.returned == 1
    world.check()


def comes_back_at_the_same_position(world: World) -> None:
    a, _ = world.replicas
    world.hold_x(a)
    world.open(a)
    world.run()
    world.pass_time(101)  # past what A counts for the former session
    a.renew()
    world.ask()
    world.run()
    to_everybody(world, "x")
    assert world.returned == 1
    world.check()


def moves_while_a_check_waits(world: World) -> None:
    world.resolves_without_lease = True  # either rule is enough: the model's fetchlease
    lagging = acknowledges_and_moves(world)
    world.pass_time(40)
    assert world.returned == 1
    asked = world.begin("x")
    world.open(lagging)
    for _ in range(4):
        world.run()
        if asked.outcome is None:
            world.step(asked)


def is_told_of(change: str, project_id: str = "p1") -> Script:
    def script(world: World) -> None:
        world.hold_x(world.replicas[0])
        to_everybody(world, change)
        assert world.returned == 1
        world.check("x", project_id)

    return script


def is_told_of_a_secret_that_became_right(world: World) -> None:
    world.hold_x(world.replicas[0])
    to_everybody(world, "y")
    denied = world.check("y")
    assert isinstance(denied, Decided)
    assert denied.reason is DenyReason.TOKEN_UNRECOGNIZED
    to_everybody(world, "y")
    world.check("y")


def takes_a_grant_before_the_evict(world: World) -> None:
    a, b = world.replicas
    world.hold_x(a)
    world.commit("x")
    a.apply()
    b.apply()
    a.send_evict(stream_of(world))
    world.pass_time(101)  # past what A counts for the sub-lease
    assert world.returned == 1
    a.renew()
    world.ask()
    a.serve(stream_of(world))
    try:
        world.deliver(1)
    except WatchViolation:
        world.lose()
    world.step(world.begin("x"))


def gets_a_grant_late(world: World) -> None:
    a, b = world.replicas
    world.hold_x(a)
    world.pass_time(10)
    world.ask()
    a.serve(stream_of(world))
    a.is_cut = True
    world.commit("x")
    b.apply()
    world.pass_time(60)
    world.ask()
    world.deliver()
    world.pass_time(50)
    assert world.returned == 1
    world.step(world.begin("x"))


def begins_without_a_sub_lease(world: World) -> None:
    a, b = world.replicas
    world.hold_x(a)
    a.is_cut = True
    world.commit("x")
    b.apply()
    world.pass_time(110)
    assert world.returned == 1
    asked = world.begin("x")
    a.is_cut = False
    a.apply()
    a.renew()
    world.ask()
    world.run()
    if asked.outcome is None:
        world.step(asked)


def says_goodbye(world: World) -> None:
    world.hold_x(world.replicas[0])
    world.say_goodbye()
    to_everybody(world, "x")
    assert world.returned == 1
    world.check()


def forgets_while_a_snapshot_is_on_its_way(world: World) -> None:
    a, _ = world.replicas
    world.hold_x(a)
    for _ in range(2):
        to_everybody(world, "account")
    stream = stream_of(world)
    world.begin("y")
    world.begin("x")
    while stream.to_replica:
        a.serve(stream)
    world.deliver()  # of Y, for which X has to go
    assert any(isinstance(message, Forget) for message in stream.to_replica)
    world.deliver()  # of X, which the Forget has crossed
    while stream.to_replica:
        a.serve(stream)
    to_everybody(world, "x")
    world.check()


def has_no_catalog_yet(world: World) -> None:
    a, b = world.replicas
    world.hold_x(a)
    world.commit("catalog")
    a.apply()
    b.apply()
    a.send_evict(stream_of(world))
    world.deliver()
    a.serve(stream_of(world))
    world.settle()
    assert world.returned == 1
    world.step(world.begin("x"))


def has_the_slower_clock(world: World) -> None:
    a, b = world.replicas
    world.hold_x(a)
    world.commit("x")
    a.apply()
    b.apply()
    a.send_evict(stream_of(world))
    world.pass_time(80)  # A's clock shows 880 of a sub-lease of 800, the watcher's 720
    world.step(world.begin("x"))


# ---- twins


def without_dropsl(patch: pytest.MonkeyPatch) -> None:
    """The sub-lease is kept when the stream ends."""
    kept: list[int | None] = [None]
    give_up, open_session = Session.give_up, Watcher.open

    def keep(self: Session) -> None:
        kept.append(self.end_ns)
        give_up(self)

    def with_former(self: Watcher, agent: str) -> tuple[Session, Hello]:
        session, hello = open_session(self, agent)
        session.end_ns = kept[-1]
        return session, hello

    patch.setattr(Session, "give_up", keep)
    patch.setattr(Watcher, "open", with_former)


def without_emptycache(patch: pytest.MonkeyPatch) -> None:
    """A stream starts with the caches of the former one."""
    kept: list[WatchTables] = []
    give_up, take = Session.give_up, Session.take

    def keep(self: Session) -> None:
        kept.append(self.tables)
        self.tables = WatchTables(WatchBounds())
        give_up(self)

    def with_former(self: Session, message: FromReplica, now_ns: int) -> Taken:
        taken = take(self, message, now_ns)
        if isinstance(message.body, Start) and kept:
            self.tables = kept[-1]
        return taken

    patch.setattr(Session, "give_up", keep)
    patch.setattr(Session, "take", with_former)


def without_sesscheck(patch: pytest.MonkeyPatch) -> None:
    """A check outlives the session whose sub-lease it captured."""
    step = Check.step

    def stay(self: Check, now_ns: int, **how: bool) -> Any:
        if self._captured is not None and self._watcher.session is not None:
            self._captured = Captured(self._watcher.session, self._captured.end_ns)
        return step(self, now_ns, **how)

    patch.setattr(Check, "step", stay)


def without_ackafter(patch: pytest.MonkeyPatch) -> None:
    """An Evict is acknowledged before it is applied."""
    patch.setattr(Session, "_evict", lambda _self, _evict: None)


def without_evicting(kind: KeyKind) -> Twin:
    """One kind of key stays where it is."""

    def twin(patch: pytest.MonkeyPatch) -> None:
        evict = WatchTables.evict

        def most(self: WatchTables, key: WatchKey) -> None:
            if key.kind is not kind:
                evict(self, key)

        patch.setattr(WatchTables, "evict", most)

    return twin


def without_forgetting_texts(patch: pytest.MonkeyPatch) -> None:
    """What is remembered of unrecognized texts stays when their token changes."""
    patch.setattr(WatchTables, "_forget_texts", lambda _self, _token_id: None)


def without_order(patch: pytest.MonkeyPatch) -> None:
    """A message is taken although one before it has not been."""
    admit = Session._admit

    def any_order(self: Session, message: FromReplica) -> Any:
        self.sequence = message.sequence - 1
        return admit(self, message)

    patch.setattr(Session, "_admit", any_order)


def without_echo(patch: pytest.MonkeyPatch) -> None:
    """A grant counts from the newest ask."""
    grant_of = Session._grant

    def from_newest(self: Session, grant: LeaseGrant, now_ns: int) -> None:
        grant_of(self, LeaseGrant(max(self._asks), grant.length_ns, grant.latest_us), now_ns)

    patch.setattr(Session, "_grant", from_newest)


def without_t0(patch: pytest.MonkeyPatch) -> None:
    """A grant counts from its arrival."""
    grant_of = Session._grant

    def from_now(self: Session, grant: LeaseGrant, now_ns: int) -> None:
        self._asks[grant.ask] = now_ns
        grant_of(self, grant, now_ns)

    patch.setattr(Session, "_grant", from_now)


def without_caplease(patch: pytest.MonkeyPatch) -> None:
    """A check looks only at the end, at whatever sub-lease there is then."""

    def capture(self: Watcher, _now_ns: int) -> Captured | None:
        return None if self.session is None else Captured(self.session, 0)

    def still_good(self: Watcher, captured: Captured, now_ns: int) -> bool:
        end_ns = captured.session.end_ns
        return self.session is captured.session and end_ns is not None and now_ns < end_ns

    patch.setattr(Watcher, "capture", capture)
    patch.setattr(Watcher, "still_good", still_good)


def without_bye(patch: pytest.MonkeyPatch) -> None:
    """Goodbye is said before anything is given up."""

    def say_only(self: Watcher) -> Goodbye | None:
        started = None if self.session is None else self.session.started
        return None if started is None else Goodbye(started.session_id)

    patch.setattr(Watcher, "give_up", say_only)


def without_forgetfence(patch: pytest.MonkeyPatch) -> None:
    """A Forget names more than was taken."""

    def too_much(self: Session) -> tuple[Forget, ...]:
        dropped = self.tables.take_dropped()
        return (Forget(dropped, self.sequence + 9),) if dropped else ()

    patch.setattr(Session, "_forgets", too_much)


def without_waiting_for_the_catalog(patch: pytest.MonkeyPatch) -> None:
    """The former catalog decides until the next one comes."""
    evict_of = Session._evict
    patch.setattr(Session, "_evict", lambda self, evict: evict_of(self, Evict(evict.keys)))


def without_compiling_anew(patch: pytest.MonkeyPatch) -> None:
    """Masks of one catalog are read with the bits of another."""
    patch.setattr(watcher_module, "is_current", lambda *_: True)


def without_margin(patch: pytest.MonkeyPatch) -> None:
    """A replica counts a sub-lease for no longer than it is."""
    patch.setattr(watched, "stretched_ns", lambda span_ns: span_ns)


RULES: dict[str, tuple[Script, Twin]] = {
    "dropsl": (moves_before_the_return, without_dropsl),
    "emptycache": (comes_back_at_the_same_position, without_emptycache),
    "sesscheck": (moves_while_a_check_waits, without_sesscheck),
    "ackafter": (is_told_of("x"), without_ackafter),
    "evict_token": (is_told_of("x"), without_evicting(KeyKind.TOKEN)),
    "evict_account": (is_told_of("account"), without_evicting(KeyKind.ACCOUNT)),
    "evict_project": (is_told_of("project"), without_evicting(KeyKind.PROJECT)),
    "evict_texts": (is_told_of_a_secret_that_became_right, without_forgetting_texts),
    "grantbehind": (takes_a_grant_before_the_evict, without_order),
    "echo": (gets_a_grant_late, without_echo),
    "t0": (gets_a_grant_late, without_t0),
    "margin": (has_the_slower_clock, without_margin),
    "caplease": (begins_without_a_sub_lease, without_caplease),
    "bye": (says_goodbye, without_bye),
    "forgetfence": (forgets_while_a_snapshot_is_on_its_way, without_forgetfence),
    "catalog": (has_no_catalog_yet, without_waiting_for_the_catalog),
    "compile": (is_told_of("catalog"), without_compiling_anew),
}


def world_of(rule: str) -> World:
    tenths = (11, 10, 10, 9) if rule == "margin" else (10, 10, 10, 10)
    return World(tenths, WatchBounds(tokens=1) if rule == "forgetfence" else None)


@pytest.mark.parametrize("rule", RULES)
def test_no_answer_is_older_than_what_had_returned(rule: str) -> None:
    RULES[rule][0](world_of(rule))


@pytest.mark.parametrize("rule", RULES)
def test_without_the_rule_an_answer_is(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, twin = RULES[rule]
    twin(monkeypatch)
    with pytest.raises(Stale):
        script(world_of(rule))
