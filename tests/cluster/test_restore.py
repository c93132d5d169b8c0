"""A backup is restored under running servers, and `doorward db new-epoch`: nobody answers from what was before.

Test 36 of the model's `faults.md`. What the procedure asks for, that servers are stopped meanwhile, is not done here.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from doorward_server.storage import replicas
from tests.cluster.history import OK
from tests.support.database import opened
from tests.support.nodes import DATABASE
from tests.support.pair import first_decision
from tests.support.server import PATIENCE_S, clean_environment

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.nodes import Node
    from tests.support.pair import Pair

HOLD_S = 1.0
ALLOWED, REVOKED, UNRECOGNIZED = "ALLOWED", "TOKEN_REVOKED", "TOKEN_UNRECOGNIZED"


class BaseBackup:
    """A copy of the cluster, by pg_basebackup."""

    def __init__(self, pair: Pair) -> None:
        self._source = pair.primary
        self.restored = pair.node("restored")

    def take(self) -> None:
        self.restored.clone(self._source)

    def restore(self) -> None:
        self.restored.sockets = self._source.sockets
        self.restored.start()


class Dump:
    """A dump of the database, by pg_dump."""

    def __init__(self, pair: Pair) -> None:
        self._source = pair.primary
        self._file = str(pair.directory / "doorward.dump")
        self.restored = pair.node("restored")

    def take(self) -> None:
        self.restored.run("pg_dump", "--format=custom", f"--file={self._file}", f"--dbname={self._source.url}")

    def restore(self) -> None:
        self.restored.sockets = self._source.sockets
        self.restored.initialise()
        self.restored.start()
        self.restored.fetch(f"CREATE DATABASE {DATABASE}")
        self.restored.run("pg_restore", "--single-transaction", f"--dbname={self.restored.url}", self._file)


def new_epoch(node: Node) -> str:
    """The revision at which the command says that the new epoch began."""
    command = [sys.executable, "-m", "doorward_server.cli.main", "db", "new-epoch", "--json", "--hold", str(HOLD_S)]
    environment = clean_environment({"DOORWARD_DATABASE_URL": node.url})
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    revision = json.loads(done.stdout)["revision"]
    assert isinstance(revision, str)
    return revision


def replica_ids(node: Node) -> set[UUID]:
    return {row[0] for row in node.fetch("SELECT replica_id FROM replicas", database=DATABASE)}


async def report(node: Node, replica_id: UUID, number: int, nonce: bytes) -> bool:
    async with opened(node.url) as database, database.reading() as connection:
        return await replicas.report(connection, str(replica_id), number, nonce)


@pytest.mark.parametrize("kind", [BaseBackup, Dump])
def test_after_a_restore_and_a_new_epoch_nobody_answers_from_what_was_before(
    lone: Pair, kind: type[BaseBackup | Dump]
) -> None:
    a, frozen = lone.serve(2, lone.primary, hold_s=HOLD_S)
    backup = kind(lone)
    before, revoked_since = a.subject(), a.subject()
    revoked_before = a.another_of(before)
    assert a.begin_revoke(revoked_before).result().answered == OK
    backup.take()
    issued_since = a.another_of(before)
    revoked = a.begin_revoke(revoked_since).result()
    assert revoked.number is not None
    for client in (a, frozen):
        assert [first_decision(client, subject) for subject in (before, issued_since, revoked_since)] == [
            ALLOWED,
            ALLOWED,
            REVOKED,
        ]
    ids = replica_ids(lone.primary)
    old_end = lone.primary.fetch("SELECT revision, nonce FROM state", database=DATABASE)[0]
    os.kill(lone.servers.processes[frozen.replica].process.pid, signal.SIGSTOP)
    lone.primary.stop()
    backup.restore()

    revision = new_epoch(backup.restored)

    # No entry of before is left: neither that a token is known, nor that it is revoked.
    assert first_decision(a, issued_since) == UNRECOGNIZED
    assert [first_decision(a, subject) for subject in (before, revoked_since, revoked_before)] == [
        ALLOWED,
        ALLOWED,
        REVOKED,
    ]
    epoch, _, number = revision.partition(".")
    assert (epoch, int(number) < revoked.number) == ("2", True)
    for refused in (a.begin_check(before, at_least=revoked.number).result(), a.begin_await(revoked.number).result()):
        assert (refused.answered, refused.why) == ("FAILED_PRECONDITION", "REVISION_OF_ANOTHER_EPOCH")
    assert not ids & replica_ids(backup.restored)
    for replica_id in ids:
        assert not asyncio.run(report(backup.restored, replica_id, *old_end))

    # Nobody waits for who was forgotten, and who was forgotten says nothing of before when it wakes.
    again = a.begin_revoke(revoked_since).result()
    assert (again.answered, again.expired) == (OK, 0)
    os.kill(lone.servers.processes[frozen.replica].process.pid, signal.SIGCONT)
    assert first_decision(frozen, revoked_since) == REVOKED
    assert first_decision(frozen, issued_since) == UNRECOGNIZED
    assert first_decision(frozen, before) == ALLOWED
