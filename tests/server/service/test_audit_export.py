"""What must be done again after a restore, event by event: everything that took something away, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from doorward.core.revision import Revision
from doorward_server.model import AuditEvent, Change, Json
from doorward_server.service.audit_export import Since, exported, replays
from doorward_server.storage import accounts
from doorward_server.storage.changes import Decided, commit
from tests.support.database import put_account

if TYPE_CHECKING:
    from collections.abc import Mapping

    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database

REVOKED: dict[str, Json] = {"state": "revoked", "reason": "left"}
LIVE: dict[str, Json] = {"state": "live"}


class Log:
    """Writes events of any kind through the door."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def write(
        self,
        action: str,
        subject: str,
        before: Mapping[str, Json] | None = None,
        after: Mapping[str, Json] | None = None,
        *,
        tokens: tuple[str, ...] = (),
    ) -> Revision:
        async def decide(tx: Transaction) -> Decided[None]:
            present = await accounts.read(tx.connection, "acme")
            await accounts.upsert_account(tx, present, "acme", f"Acme at {tx.now}", "team")
            event = AuditEvent("operator:root", action, subject, "acme", before, after)
            subjects = (subject, *(f"token:{token}" for token in tokens))
            return Decided(None, Change(action, "acme", subjects), event)

        return (await commit(self.database, decide, accounts=["acme"])).revision

    async def replays(self, since: Since | None = None) -> list[dict[str, Any]]:
        return [line async for line in replays(self.database, since or Since())]

    async def calls(self) -> list[tuple[str, dict[str, str]]]:
        """Only what is to be called, in short."""
        return [
            (call["rpc"].rpartition(".")[2], call["request"])
            for line in await self.replays()
            for call in line["replay"]
        ]


@pytest.fixture
async def log(database: Database) -> Log:
    await put_account(database, "acme")
    return Log(database)


@pytest.mark.parametrize("action", ["RevokeToken", "RevokeSelf", "ReportLeakedToken"])
async def test_a_revoked_token_is_revoked_again_for_the_same_reason(log: Log, action: str) -> None:
    await log.write(action, "token:t", LIVE, REVOKED)
    assert await log.calls() == [("TokenAdmin/RevokeToken", {"token_id": "t", "reason": "left"})]


@pytest.mark.parametrize("action", ["BatchRevokeTokens", "RevokeTokensByFilter"])
async def test_of_many_tokens_each_one_is(log: Log, action: str) -> None:
    await log.write(action, "account:acme", None, {"reason": "left"}, tokens=("a", "b"))
    assert await log.calls() == [
        ("TokenAdmin/RevokeToken", {"token_id": "a", "reason": "left"}),
        ("TokenAdmin/RevokeToken", {"token_id": "b", "reason": "left"}),
    ]


@pytest.mark.parametrize(
    ("action", "subject", "call"),
    [
        ("DeleteAccount", "account:acme", ("AccountAdmin/DeleteAccount", {"account_id": "acme"})),
        ("DeleteProject", "project:p", ("AccountAdmin/DeleteProject", {"account_id": "acme", "project_id": "p"})),
        ("RevokeOperator", "operator:o", ("SystemAdmin/RevokeOperator", {"operator_id": "o"})),
        ("DisableToken", "token:t", ("TokenAdmin/DisableToken", {"token_id": "t"})),
        ("SuspendAccount", "account:acme", ("AccountAdmin/SuspendAccount", {"account_id": "acme"})),
    ],
)
async def test_what_was_stopped_is_stopped_again(log: Log, action: str, subject: str, call: tuple[str, Any]) -> None:
    await log.write(action, subject, LIVE, {"state": "stopped"})
    await log.write(action, subject)
    assert await log.calls() == [call]


async def test_what_goes_on_in_the_end_is_left_alone(log: Log) -> None:
    for stop, go_on, subject in (
        ("DisableToken", "EnableToken", "token:t"),
        ("SuspendAccount", "ResumeAccount", "account:a"),
    ):
        await log.write(stop, subject, LIVE, {"state": "stopped"})
        await log.write(go_on, subject, {"state": "stopped"}, LIVE)
    assert await log.replays() == []
    await log.write("DisableToken", "token:t", LIVE, {"state": "stopped"})
    assert await log.calls() == [("TokenAdmin/DisableToken", {"token_id": "t"})]


async def test_what_ended_for_good_was_not_only_stopped(log: Log) -> None:
    await log.write("DisableToken", "token:t", LIVE, {"state": "disabled"})
    await log.write("RevokeToken", "token:t", LIVE, REVOKED)
    await log.write("SuspendAccount", "account:a", LIVE, {"state": "suspended"})
    await log.write("DeleteAccount", "account:a", LIVE, {"state": "deleted"})
    assert [rpc for rpc, _ in await log.calls()] == ["TokenAdmin/RevokeToken", "AccountAdmin/DeleteAccount"]


async def test_a_large_project_is_deleted_again_once(log: Log) -> None:
    for _ in range(3):
        await log.write("DeleteProject", "project:p", None, {"grants_changed": 7})
    assert len(await log.calls()) == 1


async def test_a_token_that_the_backup_does_not_know_needs_nothing(log: Log) -> None:
    await log.write("IssueToken", "token:new", None, {"display_name": "n"})
    await log.write("RevokeToken", "token:new", LIVE, REVOKED)
    await log.write("BatchRevokeTokens", "account:acme", None, {"reason": "left"}, tokens=("new", "old"))
    await log.write("RotateToken", "token:new", {"secret_version": 1}, {"secret_version": 2})
    assert await log.calls() == [("TokenAdmin/RevokeToken", {"token_id": "old", "reason": "left"})]


@pytest.mark.parametrize(
    ("action", "subject", "before", "after"),
    [
        ("RotateToken", "token:t", {"secret_version": 1}, {"secret_version": 2}),
        ("RotateSelf", "token:t", {"secret_version": 1}, {"secret_version": 2}),
        ("ReportLeakedToken", "token:t", {"former_secrets_end": {}}, {"former_secrets_end": {"1": "now"}}),
        ("UpdateToken", "token:t", {"grants": []}, {"grants": [1]}),
        ("UpdateToken", "token:t", {"expire_time": None}, {"expire_time": "then"}),
        ("PutAccount", "account:acme", {"plan": "enterprise"}, {"plan": "team"}),
        ("ApplyCatalog", "catalog:", {"version": 1}, {"version": 2}),
    ],
)
async def test_what_no_call_can_repeat_is_told_in_words(
    log: Log, action: str, subject: str, before: dict[str, Json], after: dict[str, Json]
) -> None:
    await log.write(action, subject, before, after)
    (line,) = await log.replays()
    assert (line["action"], line["subject"], line["replay"]) == (action, subject, [])
    assert line["by_hand"]


@pytest.mark.parametrize(
    ("action", "subject", "before", "after"),
    [
        ("UpdateToken", "token:t", {"display_name": "a"}, {"display_name": "b"}),
        ("PutAccount", "account:acme", {"plan": "team", "display_name": "a"}, {"plan": "team", "display_name": "b"}),
        ("PutAccount", "account:new", None, {"plan": "team"}),
        ("PutProject", "project:p", None, {"display_name": "a"}),
        ("CreateOperator", "operator:o", None, {"role": "ADMIN"}),
    ],
)
async def test_what_took_nothing_away_is_not_told(
    log: Log, action: str, subject: str, before: dict[str, Json] | None, after: dict[str, Json]
) -> None:
    await log.write(action, subject, before, after)
    assert await log.replays() == []


async def test_only_what_came_after_is_told(log: Log, database: Database) -> None:
    backup = await log.write("RevokeToken", "token:before", LIVE, REVOKED)
    await log.write("RevokeToken", "token:after", LIVE, REVOKED)
    lines = await log.replays(Since(revision=backup))
    assert [line["subject"] for line in lines] == ["token:after"]
    assert [line["subject"] for line in await log.replays(Since(revision=Revision(1, 2**40)))] == []
    events = [line async for line in exported(database, Since(revision=backup))]
    assert [event["revision"] for event in events] == [str(Revision(1, backup.number + 1))]
