"""A change log that is cut as short as it may be: revocation and checks go on, and who was away for long comes back.

Real processes in real time, that keep no change longer than every replica needs it.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Final

from tests.cluster import verdicts
from tests.support.calls import Checks, Mutations
from tests.support.nodes import DATABASE
from tests.support.pair import first_decision
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.cluster.clients import Client
    from tests.support.pair import Pair

HOLD_S: Final = 1.0
SHORT: Final = ("--retention-changes", "0", "--retention-interval", "1")
ALLOWED, REVOKED = "ALLOWED", "TOKEN_REVOKED"


def log_length(lone: Pair) -> int:
    return int(lone.primary.value("SELECT count(*) FROM changes", database=DATABASE))


def log_end(lone: Pair) -> int:
    return int(lone.primary.value("SELECT revision FROM state", database=DATABASE))


def revoke_one(client: Client) -> None:
    subject = client.subject()
    assert client.begin_revoke(subject).result().answered == "OK"


def nothing_is_wrong(lone: Pair) -> None:
    """No check that began after a mutation returned was answered from before it."""
    history = lone.servers.history
    assert verdicts.answers_contain_what_returned_before(history) == []
    assert verdicts.what_was_issued_is_known_everywhere(history) == []


def test_revocation_and_checks_go_on_over_a_log_that_keeps_nothing_longer_than_it_must(lone: Pair) -> None:
    clients = a, b, c = lone.serve(3, lone.primary, hold_s=HOLD_S, arguments=SHORT)
    subject = a.subject()
    with Mutations(a, subject) as at_a, Mutations(b, subject) as at_b, Checks(c, subject) as at_c:
        begun = log_end(lone)
        eventually(lambda: log_end(lone) > begun + 40)
        # Whatever was made by then goes while others are being made.
        eventually(lambda: log_end(lone) - log_length(lone) > begun)
    eventually(lambda: log_length(lone) == 1)

    assert {check.answered for check in at_c.made} == {ALLOWED}, "nobody lost its place in the log"
    for client in clients:
        for mutations in (at_a, at_b):
            assert {first_decision(client, revoked) for revoked in mutations.revoked[-5:]} == {REVOKED}
    revoke_one(a)
    nothing_is_wrong(lone)


def test_a_replica_that_was_away_while_the_log_was_cut_comes_back_with_nothing_of_before(lone: Pair) -> None:
    a, b = lone.serve(2, lone.primary, hold_s=HOLD_S, arguments=SHORT)
    subject, other = a.subject(), a.subject()
    assert [first_decision(b, known) for known in (subject, other)] == [ALLOWED, ALLOWED]
    process = lone.servers.processes[b.replica].process
    os.kill(process.pid, signal.SIGSTOP)
    try:
        # The first one waits until b's lease has ended, and b's row goes; nothing in the log is kept for it any more.
        assert a.begin_revoke(subject).result().answered == "OK"
        stands_at = log_end(lone)
        for _ in range(20):
            revoke_one(a)
        eventually(lambda: log_length(lone) == 1 and log_end(lone) > stands_at + 20)
    finally:
        os.kill(process.pid, signal.SIGCONT)

    assert first_decision(b, subject) == REVOKED
    assert first_decision(b, other) == ALLOWED
    revoke_one(a)
    assert a.begin_revoke(other).result().answered == "OK"
    assert b.check(other) == REVOKED
    assert lone.servers.processes[b.replica].process.poll() is None
    nothing_is_wrong(lone)
