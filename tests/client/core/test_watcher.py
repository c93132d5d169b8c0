"""The pure watcher beside a scripted server: no answer from before what had returned, in whatever order things happen.

Also what the contract asks of its messages, and what a check does without a sub-lease, a catalog or an answer. Each rule
with its twin: `test_watcher_rules.py`.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from doorward.core.matrix import DenyReason
from doorward.core.secret import SecretKind, generate
from doorward.core.watch_check import Check
from doorward.core.watch_messages import (
    Ack,
    Ask,
    CatalogSent,
    Evict,
    Failure,
    Forget,
    FromReplica,
    KeyKind,
    LeaseGrant,
    ProjectSnapshot,
    Reset,
    Resolve,
    Start,
    TokenSnapshot,
    WatchKey,
)
from doorward.core.watch_resolves import MOST_RESOLVES, Sought
from doorward.core.watch_session import Session, WatchViolation, find_catalog
from doorward.core.watch_tables import WatchBounds
from doorward.core.watcher import Decided, Need, SessionEnded, Watcher
from tests.support.watched import CHANGES, HOLD, Asked, Replica, World

SPEEDS = st.sampled_from([9, 10, 11])
WHICH = st.integers(0, 1)


class WatcherBesideTheServer(RuleBasedStateMachine):
    """The promise: an answer to a check that begins after R's barrier let go comes from a state that contains R.

    `World` compares each answer when it is given; a mutation returns as soon as it could.
    """

    @initialize(
        tenths=st.tuples(SPEEDS, SPEEDS, SPEEDS, SPEEDS),
        bounds=st.builds(WatchBounds, *(st.sampled_from([1, 2, 100]) for _ in range(4))),
        max_held_keys=st.sampled_from([0, 10_000]),
        goes_on=st.booleans(),
    )
    def start(self, tenths: tuple[int, int, int, int], bounds: WatchBounds, max_held_keys: int, goes_on: bool) -> None:
        self.world = World(tenths, bounds, max_held_keys)
        self.checks: list[Asked] = []
        if goes_on:
            self.world.hold_x(self.world.replicas[0])

    @invariant()
    def memory_is_never_behind_what_returned(self) -> None:
        self.world.probe()

    # ---- the database and the replicas

    @rule(change=st.sampled_from(CHANGES), is_told=st.booleans())
    def commit(self, change: str, is_told: bool) -> None:
        self.world.commit(change)
        if is_told:
            self.apply()

    @rule()
    def apply(self) -> None:
        for replica in self.world.replicas:
            if not replica.is_cut and replica.applied < len(self.world.states) - 1:
                replica.apply()
        self.world.settle()

    @rule(tenfold=st.sampled_from([1, 5, 20, 20, 60]))
    def time_passes_and_leases_are_renewed(self, tenfold: int) -> None:
        self.world.pass_time(tenfold)
        for replica in self.world.replicas:
            if not replica.is_cut:
                replica.renew()
        self.world.ask()

    @rule(tenfold=st.sampled_from([1, 10, 40, 111]))
    def pass_time(self, tenfold: int) -> None:
        self.world.pass_time(tenfold)

    @rule(which=WHICH)
    def cut_or_heal(self, which: int) -> None:
        self.world.replicas[which].is_cut ^= True
        self.world.settle()

    @rule(which=WHICH)
    def serve(self, which: int) -> None:
        for stream in self.world.replicas[which].streams:
            if stream.is_open:
                self.world.replicas[which].serve(stream)
        self.world.settle()

    @rule()
    def send_evict(self) -> None:
        if self.world.stream is not None and self.world.stream.is_open and self.world.replica is not None:
            self.world.replica.send_evict(self.world.stream)

    # ---- the watcher

    @rule(which=WHICH, how=st.sampled_from(["opens", "opens", "loses", "says goodbye", "is closed"]))
    def stream(self, which: int, how: str) -> None:
        if how == "opens":
            self.world.open(self.world.replicas[which])
            self.world.run()
            self.world.ask()
        elif how == "loses":
            self.world.lose()
        elif how == "says goodbye":
            self.world.say_goodbye()
        elif self.world.stream is not None and self.world.replica is not None:
            self.world.replica.close(self.world.stream)

    @rule()
    def deliver(self) -> None:
        self.world.deliver()

    @rule()
    def talk(self) -> None:
        if self.world.stream is not None and self.world.stream.is_open:
            self.world.run()

    # ---- checks

    @rule(token=st.sampled_from("xy"), project_id=st.sampled_from(["p1", "p2"]))
    def begin(self, token: str, project_id: str) -> None:
        self.checks.append(self.world.begin(token, project_id))

    @rule(token=st.sampled_from("xy"), project_id=st.sampled_from(["p1", "p2"]))
    def check(self, token: str, project_id: str) -> None:
        self.world.check(token, project_id)

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        self.checks = [asked for asked in self.checks if asked.outcome is None]
        if self.checks:
            self.world.step(data.draw(st.sampled_from(self.checks)))


TestWatcherBesideTheServer = WatcherBesideTheServer.TestCase
TestWatcherBesideTheServer.settings = settings(deadline=None, max_examples=150, stateful_step_count=60)


# ---- one session by hand

TOKEN = generate(SecretKind.TOKEN, "A" * 16)
TEXT = TOKEN.reveal().encode()
LATEST_US = 1_800_000_000_000_000
CATALOG = CatalogSent(
    1, "c", 1, {"billing": ["read"]}, {"jobs": ["read", "write"]}, {"all": (["*"], ["jobs"])}, {"team": ["*"]}
)


class Line:
    """A watcher and the messages of one session, numbered as they come."""

    def __init__(self, bounds: WatchBounds | None = None) -> None:
        self.watcher = Watcher(bounds)
        self.session: Session
        self.session, _ = self.watcher.open("test")
        self.sequence = 0
        self.number = 7

    def take(self, body: object, now_ns: int = 0) -> tuple[object, ...]:
        self.sequence += 1
        message = FromReplica(self.sequence, f"1.{self.number}", body)  # type: ignore[arg-type]
        return self.watcher.take(self.session, message, now_ns).send

    def start(self, length_ns: int = 500) -> None:
        self.take(Start("session", HOLD, 250, 250, 10_000))
        self.take(CATALOG)
        ask = self.watcher.ask(self.session, 0)
        assert ask is not None
        self.take(LeaseGrant(ask.ask, length_ns, LATEST_US))

    def check(self, permission: str = "jobs:write", text: bytes = TEXT, project_id: str | None = "p1") -> Check:
        return Check(self.watcher, text, permission, None if project_id else "acme", project_id)


@pytest.fixture
def line() -> Line:
    line = Line()
    line.start()
    return line


def a_snapshot(
    number: int, *, expire_us: int | None = None, overlap_us: int | None = None, token_id: str = "A" * 16
) -> TokenSnapshot:
    account = ("acme", "team", 1)
    grants = (("all", ("p1",)),)
    return TokenSnapshot(number, token_id, account, 1, ((1, overlap_us),), False, False, expire_us, grants)


def sought(check: Check, now_ns: int = 1) -> Sought:
    outcome = check.step(now_ns)
    assert isinstance(outcome, Sought)
    return outcome


def answer_of(check: Check, now_ns: int = 1) -> DenyReason | Need:
    outcome = check.step(now_ns)
    if outcome is Need.LOOK_AGAIN:
        outcome = check.step(now_ns)
    assert not isinstance(outcome, Sought)
    return outcome.reason if isinstance(outcome, Decided) else outcome


def test_a_check_waits_for_its_resolve_and_is_then_decided_from_memory(line: Line) -> None:
    check = line.check()
    asked = sought(check)
    assert isinstance(asked.send, Resolve)
    assert asked.send.secret == TOKEN
    line.take(a_snapshot(asked.number))
    assert check.step(1) is Need.LOOK_AGAIN
    assert check.step(1) == Decided(DenyReason.ALLOWED, "A" * 16, "acme", "1.7", lasts=True)
    assert answer_of(line.check()) is DenyReason.ALLOWED


def test_checks_of_one_text_share_a_resolve(line: Line) -> None:
    first, second = sought(line.check()), sought(line.check())
    assert second == Sought(first.number, None)


def test_no_more_resolves_are_under_way_than_the_replica_reads(line: Line) -> None:
    for _ in range(MOST_RESOLVES):
        sought(line.check(text=generate(SecretKind.TOKEN, "A" * 16).reveal().encode()))
    assert line.check().step(1) is Need.SERVER


def test_past_the_captured_end_nothing_is_answered_from_memory(line: Line) -> None:
    check = line.check()
    line.take(a_snapshot(sought(check).number))
    assert check.step(499) is Need.LOOK_AGAIN
    ask = line.watcher.ask(line.session, 499)
    assert ask is not None
    line.take(LeaseGrant(ask.ask, 500, LATEST_US))
    assert check.step(500) is Need.SERVER  # a newer sub-lease is not for it
    assert answer_of(line.check(), 998) is DenyReason.ALLOWED
    assert answer_of(line.check(), 999) is Need.SERVER


def test_the_later_end_counts(line: Line) -> None:
    ask = line.watcher.ask(line.session, 10)
    assert ask is not None
    line.take(LeaseGrant(ask.ask, 100, LATEST_US))
    captured = line.watcher.capture(300)
    assert captured is not None
    assert captured.end_ns == 500


@pytest.mark.parametrize("number", [0, 1, 2, 99])
def test_a_grant_of_no_ask_that_waits_is_ignored_and_acknowledged(number: int) -> None:
    line = Line()
    line.start(length_ns=10)
    assert line.take(LeaseGrant(number, 400, LATEST_US), 20) == (Ack("1.7"),)
    assert line.watcher.capture(20) is None


def test_nothing_is_asked_before_the_start() -> None:
    line = Line()
    assert line.watcher.ask(line.session, 0) is None


def test_an_evict_is_acknowledged_with_its_own_position_and_ends_what_is_held(line: Line) -> None:
    line.take(a_snapshot(sought(line.check()).number))
    line.number = 8
    assert line.take(Evict((WatchKey(KeyKind.PROJECT, "p1"),))) == (Ack("1.8"),)
    assert type(sought(line.check()).send).__name__ == "ResolveProject"


def test_an_unknown_project_is_remembered_until_it_is_evicted(line: Line) -> None:
    line.take(a_snapshot(sought(line.check()).number))
    other = line.check(project_id="p9")
    line.take(ProjectSnapshot(sought(other).number, "p9", None))
    assert answer_of(other) is DenyReason.RESOURCE_NOT_IN_ACCOUNT
    assert answer_of(line.check(project_id="p9")) is DenyReason.RESOURCE_NOT_IN_ACCOUNT
    line.take(Evict((WatchKey(KeyKind.PROJECT, "p9"),)))
    sought(line.check(project_id="p9"))


def test_an_evict_of_everything_leaves_nothing_to_decide_by(line: Line) -> None:
    line.take(a_snapshot(sought(line.check()).number))
    line.take(Evict(everything=True))
    assert line.check().step(1) is Need.SERVER
    line.take(CATALOG)
    assert isinstance(sought(line.check()).send, Resolve)


def test_a_failure_leaves_the_check_to_the_server_and_is_not_remembered(line: Line) -> None:
    check = line.check()
    asked = sought(check)
    line.take(Failure(asked.number))
    assert check.step(1, failed=True) is Need.SERVER
    again = sought(line.check())
    assert again.send is not None
    assert again.number != asked.number


def test_what_goes_for_room_is_forgotten_as_of_the_message_that_it_went_for() -> None:
    line = Line(WatchBounds(tokens=1))
    line.start()
    line.take(a_snapshot(sought(line.check()).number))
    other = generate(SecretKind.TOKEN, "B" * 16)
    asked = sought(line.check(text=other.reveal().encode()))
    sent = line.take(a_snapshot(asked.number, token_id="B" * 16))
    assert sent == (Ack("1.7"), Forget((WatchKey(KeyKind.TOKEN, "A" * 16),), line.sequence))
    assert isinstance(sought(line.check()).send, Resolve)


def test_expiry_is_decided_by_the_latest_time_of_the_database(line: Line) -> None:
    # 400 ns of this clock are 500 of the fastest other one: rounded up, one microsecond.
    line.take(a_snapshot(sought(line.check()).number, expire_us=LATEST_US + 1))
    assert answer_of(line.check(), 0) is DenyReason.ALLOWED
    assert answer_of(line.check(), 400) is DenyReason.TOKEN_EXPIRED


def test_the_end_of_an_overlap_is_decided_by_it_too(line: Line) -> None:
    line.take(a_snapshot(sought(line.check()).number, overlap_us=LATEST_US + 1))
    assert answer_of(line.check(), 0) is DenyReason.ALLOWED
    assert answer_of(line.check(), 400) is DenyReason.TOKEN_UNRECOGNIZED


def test_what_has_expired_stays_expired_in_the_next_session(line: Line) -> None:
    line.take(a_snapshot(sought(line.check(), 499).number, expire_us=LATEST_US + 1), 499)
    assert answer_of(line.check(), 499) is DenyReason.TOKEN_EXPIRED
    line.watcher.ask(line.session, 499)
    line.take(LeaseGrant(2, 400, LATEST_US), 499)
    line.session, _ = line.watcher.open("test")
    line.sequence = 0
    line.take(Start("next", HOLD, 250, 250, 10_000), 499)
    line.take(CATALOG, 499)
    ask = line.watcher.ask(line.session, 499)
    assert ask == Ask(1)
    line.take(LeaseGrant(1, 400, LATEST_US - 1_000), 499)
    line.take(a_snapshot(sought(line.check(), 499).number, expire_us=LATEST_US + 1), 499)
    assert answer_of(line.check(), 499) is DenyReason.TOKEN_EXPIRED


def test_what_is_no_secret_is_denied_without_a_resolve(line: Line) -> None:
    assert answer_of(line.check(text=b"dwst_x")) is DenyReason.TOKEN_UNRECOGNIZED


@pytest.mark.parametrize(
    ("permission", "project_id", "text"),
    [
        ("jobs:fly", "p1", TEXT),
        ("jobs:write", None, TEXT),
        ("billing:read", "p1", TEXT),
        ("jobs:write", "p1", b"x" * 129),
    ],
)
def test_a_request_that_is_wrong_is_left_to_the_server_which_says_why(
    line: Line, permission: str, project_id: str | None, text: bytes
) -> None:
    assert line.check(permission, text, project_id).step(1) is Need.SERVER


def test_a_catalog_of_an_unknown_form_decides_nothing() -> None:
    assert find_catalog(CATALOG) is not None
    assert find_catalog(CatalogSent(1, "c", 2, {}, {}, {}, {})) is None
    assert find_catalog(CatalogSent(1, "c", 1, {}, {}, {"all": (["nothing"], [])}, {})) is None


def test_a_reset_ends_the_session_with_its_goodbye_and_a_waiting_check_begins_anew(line: Line) -> None:
    check = line.check()
    sought(check)
    line.sequence += 1
    taken = line.watcher.take(line.session, FromReplica(line.sequence, "1.7", Reset()), 1)
    assert taken.ended
    assert [type(message).__name__ for message in taken.send] == ["Goodbye"]
    assert check.step(1) is Need.SERVER
    with pytest.raises(SessionEnded):
        line.take(a_snapshot(1))


def test_nothing_of_a_session_is_left_after_it(line: Line) -> None:
    line.take(a_snapshot(sought(line.check()).number))
    waiting = line.watcher.ask(line.session, 1)
    assert waiting is not None
    line.watcher.give_up()
    assert line.watcher.capture(1) is None
    assert (len(line.session.tables.tokens), len(line.session.tables.proofs), len(line.session.resolves)) == (0, 0, 0)
    assert line.watcher.give_up() is None


@pytest.mark.parametrize(
    "message",
    [
        FromReplica(5, "1.7", Failure(1)),
        FromReplica(4, "1.6", Failure(1)),
        FromReplica(4, "2.7", Failure(1)),
        FromReplica(4, "1", Failure(1)),
        FromReplica(4, "1.7", Start("again", HOLD, 1, 1, 1)),
        FromReplica(4, "1.7", Failure(9)),
        FromReplica(4, "1.7", a_snapshot(1, token_id="B" * 16)),
        FromReplica(4, "1.7", ProjectSnapshot(1, "p1", "acme")),
        FromReplica(4, "1.7", LeaseGrant(2, HOLD + 1, LATEST_US)),
        FromReplica(4, "1.7", object()),  # type: ignore[arg-type]
    ],
)
def test_what_the_contract_excludes_ends_the_session(line: Line, message: FromReplica) -> None:
    sought(line.check())
    line.watcher.ask(line.session, 1)
    with pytest.raises(WatchViolation):
        line.watcher.take(line.session, message, 1)
    assert line.watcher.session is None


def test_the_first_message_must_be_start() -> None:
    with pytest.raises(WatchViolation):
        Line().take(CATALOG)


def test_all_bounds_together_leave_room_in_what_a_session_may_hold() -> None:
    for most in (32, 1_000, 200_000):
        bounds = WatchBounds().within(most)
        assert bounds.tokens + bounds.accounts + bounds.projects + 2 * bounds.unknown <= most
    assert WatchBounds(5, 6, 7, 8).within(200_000) == WatchBounds(5, 6, 7, 8)


def test_no_text_of_a_secret_shows_in_a_message(line: Line) -> None:
    assert TOKEN.reveal() not in repr(sought(line.check()))


def test_a_replica_grants_only_what_its_lease_has_left() -> None:
    world = World()
    replica: Replica = world.replicas[0]
    world.hold_x(replica)
    assert world.session is not None
    assert world.session.end_ns is not None
    assert world.session.end_ns - world.clock.now() <= replica.lease_end - replica.clock.now()
