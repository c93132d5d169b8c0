"""What a watcher remembers of its answers is what it would answer anew, also of tokens that end; the oracle says which is right.

The machine of core/test_watcher.py compares them through changes, evictions and catalogs; here is time.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorward import _watch_shared
from doorward._watch_shared import StreamStalled, Watching
from doorward._watch_waiting import Deciding
from doorward.core import watch_messages as said
from doorward.core.matrix import AccountState
from doorward.core.secret import SecretKind, generate
from tests.support.oracle import NaiveGrant, NaiveToken, World, account_permissions, every_permission, expected
from tests.support.strategies import NOW_US, PROJECTS, tokens, worlds

HOLD_NS = 10**12
SMALL = World(
    document={
        "account_resources": {},
        "project_resources": {"jobs": {"actions": ["read"]}},
        "permission_sets": {"s": {"read": ["jobs"]}},
        "plans": {"team": {"permission_sets": ["*"]}},
    },
    plan_of={"acme": "team"},
    state_of={"acme": "ACTIVE"},
    owner_of={"p1": "acme"},
)


class Memory:
    """A watcher that holds one token, all accounts and projects of a world, and a sub-lease; its clock is the test's."""

    def __init__(self, world: World, token: NaiveToken, ends_us: int | None) -> None:
        self.now = 0
        self.watching = Watching(None)
        self.watching.now_ns = lambda: self.now
        self.session = self.watching.open()
        self.secret = generate(SecretKind.TOKEN, token.token_id)
        self._sequence = 0
        self.take(said.Start("s", HOLD_NS, HOLD_NS, HOLD_NS, 100_000))
        document = world.document
        self.take(
            said.CatalogSent(
                1,
                "l",
                1,
                {name: about["actions"] for name, about in document["account_resources"].items()},
                {name: about["actions"] for name, about in document["project_resources"].items()},
                {
                    name: (about.get("read", []), about.get("write", []))
                    for name, about in document["permission_sets"].items()
                },
                {name: about["permission_sets"] for name, about in document["plans"].items()},
            )
        )
        self.take(said.LeaseGrant(1, HOLD_NS, NOW_US))
        sought = self.session.resolves.token(
            self.session.tables.proofs.proof_of(self.secret.reveal().encode()), self.secret
        )
        assert sought is not None
        account = token.account_id
        self.take(
            said.TokenSnapshot(
                sought.number,
                token.token_id,
                (account, world.plan_of[account], AccountState[world.state_of[account]].value),
                1,
                ((1, ends_us),),
                token.revoked,
                token.disabled,
                token.expire_us,
                tuple((grant.permission_set, grant.project_ids) for grant in token.grants),
            )
        )
        for project_id in PROJECTS:
            sought = self.session.resolves.project(project_id)
            assert sought is not None
            self.take(said.ProjectSnapshot(sought.number, project_id, world.owner_of.get(project_id)))

    def take(self, body: said.Body) -> None:
        self._sequence += 1
        self.watching.take(self.session, said.FromReplica(self._sequence, "1.7", body))

    def answer(self, permission: str, account_id: str | None, project_id: str | None) -> str | None:
        decision = self.watching.warm(self.secret.reveal(), permission, project_id, account_id)
        return None if decision is None else "ALLOWED" if decision.reason is None else decision.reason.value


@given(
    world=worlds(),
    token=tokens(),
    ends_us=st.sampled_from([None, NOW_US + 1, NOW_US + 3]),
    times=st.lists(st.integers(0, 4), min_size=1, max_size=6).map(sorted),
    data=st.data(),
)
def test_a_remembered_answer_is_right_at_every_time(
    world: World, token: NaiveToken, ends_us: int | None, times: list[int], data: st.DataObject
) -> None:
    memory = Memory(world, token, ends_us)
    permission = data.draw(st.sampled_from(sorted(every_permission(world.document))))
    of_account = permission in account_permissions(world.document)
    place = data.draw(st.sampled_from(("acme", "globex") if of_account else PROJECTS))
    account_id, project_id = (place, None) if of_account else (None, place)
    for time_us in times:
        # The database's time runs at most a quarter faster than this clock, and counts as if it did.
        memory.now = time_us * 800
        now_us = NOW_US + time_us
        right = expected(world, token, permission, account_id, project_id, now_us)
        if ends_us is not None and now_us >= ends_us:
            right = "TOKEN_UNRECOGNIZED"
        for _ in range(2):
            assert memory.answer(permission, account_id, project_id) == right


def test_nothing_is_remembered_of_a_token_that_ends_and_no_more_than_the_bound_of_others() -> None:
    ends, lasts = (
        Memory(SMALL, NaiveToken("A" * 16, "acme", False, False, end, ()), None) for end in (NOW_US + 1, None)
    )
    assert [memory.answer("jobs:read", None, "p1") for memory in (ends, lasts)] == ["PERMISSION_NOT_GRANTED"] * 2
    assert [len(memory.session.answers) for memory in (ends, lasts)] == [0, 1]
    lasts.take(said.Evict((said.WatchKey(said.KeyKind.TOKEN, "B" * 16),)))
    assert not lasts.session.answers


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize("event", ["the sub-lease ends", "the session ends", "another session begins"])
def test_what_ends_while_it_decides_leaves_it_undecided(event: str, remembered: bool) -> None:
    memory = Memory(SMALL, NaiveToken("A" * 16, "acme", False, False, None, (NaiveGrant("s", None),)), None)
    if remembered:
        assert memory.answer("jobs:read", None, "p1") == "ALLOWED"

    class Presented(str):
        """The secret, while whose check something happens."""

        __slots__ = ()

        def encode(self, *_how: object) -> bytes:
            if event == "the sub-lease ends":
                memory.now = HOLD_NS
            elif event == "the session ends":
                memory.watching.give_up()
            else:
                memory.watching.open()
            return str.encode(self)

    assert memory.watching.warm(Presented(memory.secret.reveal()), "jobs:read", "p1", None) is None


def test_nothing_is_decided_without_a_sub_lease() -> None:
    memory = Memory(SMALL, NaiveToken("A" * 16, "acme", False, False, None, (NaiveGrant("s", None),)), None)
    for now, told in ((0, (True, "ALLOWED")), (HOLD_NS - 1, (True, "ALLOWED")), (HOLD_NS, (False, None))):
        memory.now = now
        assert (memory.watching.holds_lease, memory.answer("jobs:read", None, "p1")) == told


def test_in_a_child_of_fork_nothing_is_kept() -> None:
    memory = Memory(SMALL, NaiveToken("A" * 16, "acme", False, False, None, (NaiveGrant("s", None),)), None)
    assert memory.answer("jobs:read", None, "p1") == "ALLOWED"
    memory.watching.forked()
    assert memory.watching.next_outgoing() is None
    assert memory.answer("jobs:read", None, "p1") is None
    assert not memory.session.answers
    assert len(memory.session.tables.tokens) == 0


def test_a_stream_that_takes_nothing_is_given_up_and_its_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(SMALL, NaiveToken("A" * 16, "acme", False, False, None, ()), None)
    monkeypatch.setattr(_watch_shared, "MOST_OUTGOING", 3)
    while memory.watching.next_outgoing() is not None:
        pass
    secrets = [generate(SecretKind.TOKEN, f"{number:016}").reveal() for number in range(6)]
    woken: list[int] = []
    for number, secret in enumerate(secrets):
        asked = (number, (secret.encode(), "jobs:read", None, "p1"))
        Deciding(memory.watching, [asked]).step(lambda number=number: woken.append(number))  # type: ignore[misc]
    assert memory.watching.is_stalled
    assert memory.watching.watcher.session is None
    assert woken == [0, 1, 2]  # nobody waits for it any more
    assert memory.watching.next_outgoing() is None


def test_acknowledgements_that_wait_become_one() -> None:
    memory = Memory(SMALL, NaiveToken("A" * 16, "acme", False, False, None, ()), None)
    waiting = list(iter(memory.watching.next_outgoing, None))
    assert [type(message) for message in waiting].count(said.Ack) == 2  # behind the hello, and behind the ask
    memory.take(said.Evict())
    memory.take(said.Evict())
    assert list(iter(memory.watching.next_outgoing, None)) == [said.Ack("1.7")]


def test_a_stream_that_brings_nothing_is_stalled() -> None:
    watching = Watching(None)
    now = 0
    watching.now_ns = lambda: now
    session = watching.open()
    assert 0 < watching.tick(session) <= _watch_shared.OPENING_S
    now = int(_watch_shared.OPENING_S * 1e9)
    with pytest.raises(StreamStalled, match="open"):
        watching.tick(session)
    watching.give_up()
    assert watching.tick(session) > 0  # it has ended: its goodbye may be on its way


def test_without_a_sub_lease_for_a_whole_hold_or_a_reader_the_stream_is_stalled() -> None:
    for reads in (True, False):
        memory = Memory(SMALL, NaiveToken("A" * 16, "acme", False, False, None, ()), None)
        told = ""
        for now in range(0, 4 * HOLD_NS, HOLD_NS // 4):
            memory.now = now
            while reads and memory.watching.next_outgoing() is not None:
                pass
            try:
                memory.watching.tick(memory.session)
            except StreamStalled as stalled:
                told = str(stalled)
                break
        assert ("whole hold" if reads else "too little") in told
