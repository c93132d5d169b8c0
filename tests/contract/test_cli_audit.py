"""`doorward audit list | verify | export | replay`, against a real server and its database."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from doorward.core.secret import SecretKind, find_secret
from doorward.v1 import account_admin_pb2, system_admin_pb2, types_pb2
from doorward.v1 import token_admin_pb2 as pb
from tests.contract.test_cli import CommandLine, account_id, issue, line
from tests.support.rows import Rows
from tests.support.server import bearer, start_server, stubs_on
from tests.support.wire import OwnAccount, an_account, ask, check, eventually, fresh_id, on_all, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.postgres import PostgresServer
    from tests.support.server import ServerProcess

__all__ = ["account_id", "line"]  # fixtures


def table(said: str) -> list[list[str]]:
    """The columns of a table, row by row."""
    return [row.split() for row in said.splitlines()]


# ---- list


def test_events_are_listed_as_a_table_and_as_json(line: CommandLine, account_id: str) -> None:
    token_id = issue(line, account_id)["token"]["token_id"]
    line.done("token", "revoke", token_id, "--reason", "contractor left")

    header, newest, *_ = table(line.done("audit", "list", "--account", account_id))
    assert header == ["TIME", "ACTOR", "ACTION", "SUBJECT", "ACCOUNT", "REVISION", "BEFORE", "AFTER"]
    assert newest[2].startswith("operator:")
    assert newest[3:6] == ["RevokeToken", f"token:{token_id}", account_id]

    events = line.answer("audit", "list", "--token", token_id)["audit_events"]
    assert [event["action"] for event in events] == ["RevokeToken", "IssueToken"]
    assert events[0]["after"] == {"state": "revoked", "reason": "contractor left"}
    assert events[0]["kind"] == "AUDIT_EVENT_KIND_CHANGE"


def test_options_narrow_the_list(line: CommandLine, account_id: str) -> None:
    everything = line.answer("audit", "list", "--account", account_id)["audit_events"]
    assert [event["action"] for event in everything] == ["PutProject", "PutAccount"]
    of_account = ("audit", "list", "--account", account_id)
    assert line.answer(*of_account, "--action", "PutAccount")["audit_events"] == everything[1:]
    assert line.answer(*of_account, "--actor", everything[0]["actor"])["audit_events"] == everything
    assert line.answer(*of_account, "--since", everything[0]["event_time"])["audit_events"] == everything[:1]
    assert line.answer(*of_account, "--until", everything[0]["event_time"])["audit_events"] == everything[1:]
    assert len(line.answer(*of_account, "--limit", "1")["audit_events"]) == 1
    assert line.run(*of_account, "--actor", "direct").err == "No event matches.\n"


def test_refusals_are_a_list_of_their_own(line: CommandLine) -> None:
    token_id = fresh_id("t")
    assert line.run("token", "revoke", token_id).code == 2
    eventually(lambda: token_id in line.done("audit", "list", "--refused", "--action", "RevokeToken"))
    header, *_ = table(line.done("audit", "list", "--refused"))
    assert header == ["TIME", "ACTOR", "ACTION", "SUBJECT", "ACCOUNT", "REASON", "FROM", "LEFT", "OUT"]
    (event,) = line.answer("audit", "list", "--refused", "--token", token_id)["audit_events"]
    assert (event["refusal_reason"], event["kind"]) == ("TOKEN_NOT_FOUND", "AUDIT_EVENT_KIND_REFUSAL")


# ---- verify and export, on a server of their own


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose database a test may hurt."""
    base = tmp_path_factory.mktemp("audited")
    running = start_server(base / "data", base / "scratch")
    try:
        yield running
    finally:
        assert running.stop() == 0


@pytest.fixture
def hurt(audited: ServerProcess, line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rows]:
    """Its database; what the test does to event 2 and to the end is undone."""
    monkeypatch.setenv("DOORWARD_ADDRESS", audited.address)
    monkeypatch.setenv("DOORWARD_DATA_DIR", str(audited.data_dir))
    with contextlib.closing(Rows(audited.data_dir)) as rows:
        line.done("account", "put", fresh_id("acc"), "--display-name", "An account", "--plan", "team")
        rows.fetch("CREATE TABLE kept AS SELECT * FROM audit_events")
        try:
            yield rows
        finally:
            rows.fetch("DELETE FROM audit_events WHERE event_id IN (SELECT event_id FROM kept)")
            rows.fetch("INSERT INTO audit_events SELECT * FROM kept")
            rows.fetch("DROP TABLE kept")


def test_an_audit_that_nobody_touched_is_verified_while_the_server_runs(hurt: Rows, line: CommandLine) -> None:
    ((count, chain),) = hurt.fetch("SELECT last_event_id, encode(audit_head, 'hex') FROM state")
    said = line.done("audit", "verify")
    assert said.startswith(f"The audit is what was written: {count} events, since ")
    assert f"{count}:{chain}" in said
    told = line.answer("audit", "verify", "--noted", f"{count}:{chain}")
    assert (told["verified"], told["events"], told["dropped"], told["note"]) == (True, count, 0, f"{count}:{chain}")


def test_an_audit_that_was_changed_ends_with_1_and_names_the_event(hurt: Rows, line: CommandLine) -> None:
    hurt.fetch("UPDATE audit_events SET actor = 'operator:somebody-else' WHERE event_id = 2")
    ended = line.run("audit", "verify")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("The audit is not what was written: event 2 was changed: it now reads ")
    assert "operator:somebody-else" in ended.err
    told = json.loads(line.run("audit", "verify", "--json").out)
    assert (told["verified"], told["event_id"], told["events"]) == (False, 2, 1)


def test_an_audit_with_its_end_cut_off_and_the_count_set_back_is_found_by_what_was_noted(
    hurt: Rows, line: CommandLine
) -> None:
    note = line.answer("audit", "verify")["note"]
    ((last, chain),) = hurt.fetch("SELECT last_event_id, audit_head FROM state")
    hurt.fetch("DELETE FROM audit_events WHERE event_id = $1", last)
    assert line.run("audit", "verify").code == 1
    hurt.fetch(
        "UPDATE state SET last_event_id = $1, audit_head = (SELECT chain FROM audit_events WHERE event_id = $1)",
        last - 1,
    )
    try:
        assert line.run("audit", "verify").code == 0
        ended = line.run("audit", "verify", "--noted", note)
        assert ended.code == 1
        assert f"before event {last}, which was noted" in ended.err
    finally:
        hurt.fetch("UPDATE state SET last_event_id = $1, audit_head = $2", last, chain)


def test_what_is_no_note_is_refused(hurt: Rows, line: CommandLine) -> None:
    for noted in ("1", "1:ab", f"x:{'0' * 64}", f"1:{'0' * 64} "):
        ended = line.run("audit", "verify", "--noted", noted)
        assert ended.code == 2
        assert "--noted" in ended.err


def test_every_event_is_exported_with_all_that_the_chain_is_made_of(hurt: Rows, line: CommandLine) -> None:
    lines = [json.loads(text) for text in line.done("audit", "export").splitlines()]
    ((count,),) = hurt.fetch("SELECT last_event_id FROM state")
    assert [event["event_id"] for event in lines] == list(range(1, count + 1))
    assert set(lines[-1]) == {
        *("event_id", "event_time", "revision", "account_id", "actor", "on_behalf_of", "action", "subject", "tokens"),
        *("before", "after", "peer", "chain"),
    }
    ((chain,),) = hurt.fetch("SELECT encode(audit_head, 'hex') FROM state")
    assert lines[-1]["chain"] == chain

    later = [json.loads(text) for text in line.done("audit", "export", "--since", lines[0]["revision"]).splitlines()]
    assert later == [event for event in lines if event["revision"] != lines[0]["revision"]]
    since = [json.loads(text) for text in line.done("audit", "export", "--since", lines[-1]["event_time"]).splitlines()]
    assert since == lines[-1:]
    assert line.run("audit", "export", "--since", "yesterday").code == 2


# ---- what a restore gives anew


def in_loop(work: Any) -> Any:
    """The result of a coroutine, for tests that are plain functions."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(work)


def test_what_a_restored_backup_gives_anew_is_taken_away_again(
    line: CommandLine, postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = in_loop(postgres_server.create_database())
    monkeypatch.setenv("DOORWARD_DATABASE_URL", postgres_server.url(former))
    monkeypatch.setenv("DOORWARD_PEPPER_FILE", str(tmp_path / "keys"))
    monkeypatch.delenv("DOORWARD_DATA_DIR")
    line.done("pepper", "add")
    made = (
        "operator",
        "create",
        "--direct",
        "--role",
        "admin",
        "--display-name",
        "root",
        "--secret-file",
        "admin.token",
    )
    line.done(*made)
    environment = {
        "DOORWARD_DATABASE_URL": postgres_server.url(former),
        "DOORWARD_PEPPER_FILE": str(tmp_path / "keys"),
    }
    (tmp_path / "data").mkdir(mode=0o700)
    for name in ("operator.token", "caller.token"):
        (tmp_path / "data" / name).write_bytes((tmp_path / "admin.token").read_bytes())

    def started() -> ServerProcess:
        return start_server(tmp_path / "data", tmp_path / "scratch", ("--hold", "1"), environment=environment)

    server = started()
    with grpc.insecure_channel(server.address) as channel:
        stubs = stubs_on(channel, server)
        account, doomed, paused = (an_account(stubs) for _ in range(3))
        revoked, resumed, disabled, enabled, rotated, kept = (account.issue(on_all("job_admin")) for _ in range(6))
        of_doomed, of_paused = doomed.issue(on_all("job_admin")), paused.issue(on_all("job_admin"))
        on_project = account.issue(on_all("job_admin"))
    assert server.stop() == 0
    backup = in_loop(postgres_server.create_database(template=former))

    server = started()
    with grpc.insecure_channel(server.address) as channel:
        stubs = stubs_on(channel, server)

        def does(rpc: Any, request: Any) -> None:
            ask(rpc, request, stubs.admin)

        account = OwnAccount(stubs, account.account_id, account.project_ids)
        account.revoke(revoked.token.token_id, "contractor left")
        account.revoke(revoked.token.token_id, "again")
        does(stubs.tokens.DisableToken, pb.DisableTokenRequest(token_id=disabled.token.token_id))
        does(stubs.tokens.DisableToken, pb.DisableTokenRequest(token_id=enabled.token.token_id))
        does(stubs.tokens.EnableToken, pb.EnableTokenRequest(token_id=enabled.token.token_id))
        does(stubs.accounts.DeleteAccount, account_admin_pb2.DeleteAccountRequest(account_id=doomed.account_id))
        does(stubs.accounts.SuspendAccount, account_admin_pb2.SuspendAccountRequest(account_id=paused.account_id))
        does(
            stubs.accounts.DeleteProject,
            account_admin_pb2.DeleteProjectRequest(account_id=account.account_id, project_id=account.project_ids[1]),
        )
        rotation = pb.RotateTokenRequest(token_id=rotated.token.token_id)
        rotation.overlap.SetInParent()
        does(stubs.tokens.RotateToken, rotation)
        unknown_to_the_backup = account.issue(on_all("job_admin"))
        account.revoke(unknown_to_the_backup.token.token_id)
    assert server.stop() == 0

    # The backup's own position says from where on.
    monkeypatch.setenv("DOORWARD_DATABASE_URL", postgres_server.url(backup))
    epoch = line.answer("db", "new-epoch", "--hold", "0.5")["revision"]
    since = f"1.{epoch.partition('.')[2]}"
    monkeypatch.setenv("DOORWARD_DATABASE_URL", postgres_server.url(former))
    written = line.done("audit", "export", "--revocations", "--since", since)
    (tmp_path / "revocations.jsonl").write_text(written)
    lines = [json.loads(text) for text in written.splitlines()]
    assert [(told["action"], told["subject"]) for told in lines] == [
        ("RevokeToken", f"token:{revoked.token.token_id}"),
        ("DeleteAccount", f"account:{doomed.account_id}"),
        ("DeleteProject", f"project:{account.project_ids[1]}"),
        ("RotateToken", f"token:{rotated.token.token_id}"),
        ("DisableToken", f"token:{disabled.token.token_id}"),
        ("SuspendAccount", f"account:{paused.account_id}"),
    ]
    assert lines[0]["replay"] == [
        {
            "rpc": "doorward.v1.TokenAdmin/RevokeToken",
            "request": {"token_id": revoked.token.token_id, "reason": "contractor left"},
        }
    ]

    environment["DOORWARD_DATABASE_URL"] = postgres_server.url(backup)
    server = started()
    try:
        with grpc.insecure_channel(server.address) as channel:
            stubs = stubs_on(channel, server)

            def asked(issued: pb.IssueTokenResponse, project_id: str) -> str:
                return verdict(check(stubs, issued.secret, "jobs:write", project_id=project_id))

            stopped = {
                "TOKEN_REVOKED": [
                    (revoked, account.project_ids[0]),
                    (of_doomed, doomed.project_ids[0]),
                ],
                "TOKEN_DISABLED": [(disabled, account.project_ids[0])],
                "ACCOUNT_SUSPENDED": [(of_paused, paused.project_ids[0])],
                "RESOURCE_NOT_IN_ACCOUNT": [(on_project, account.project_ids[1])],
            }
            alive = [(token, account.project_ids[0]) for token in (resumed, enabled, kept)]
            everything = [*alive, *(pair for pairs in stopped.values() for pair in pairs)]
            assert {asked(*pair) for pair in everything} == {"ALLOWED"}, "that is what a restore does"

            monkeypatch.setenv("DOORWARD_ADDRESS", server.address)
            replay = ("audit", "replay", "revocations.jsonl", "--token-file", "admin.token")
            said = line.done(*replay)
            assert said.startswith("Done: 5. Nothing to do: 0. Failed: 0.\nTo see to by hand:\n")
            assert f"token:{rotated.token.token_id} (RotateToken): the secret of before works again" in said
            for reason, pairs in stopped.items():
                assert [asked(*pair) for pair in pairs] == [reason] * len(pairs)
            assert {asked(*pair) for pair in alive} == {"ALLOWED"}

            again = line.answer(*replay)
            assert (again["done"] + again["skipped"], again["failed"]) == (5, 0)
    finally:
        assert server.stop() == 0
    for name in (former, backup):
        in_loop(postgres_server.drop_database(name))


def test_only_what_takes_something_away_is_ever_replayed(line: CommandLine, tmp_path: Path) -> None:
    grants = {"rpc": "doorward.v1.TokenAdmin/EnableToken", "request": {"token_id": "x"}}
    for text in (
        json.dumps({"replay": [grants]}),
        json.dumps({"replay": [{"rpc": "doorward.v1.TokenAdmin/RevokeToken", "request": {"no_such_field": 1}}]}),
        "no json",
        "[]",
    ):
        ended = line.run("audit", "replay", given=text)
        assert (ended.code, ended.out) == (2, "")
        assert "line 1" in ended.err


def test_what_the_database_does_not_know_is_skipped_and_what_fails_is_told(line: CommandLine, account_id: str) -> None:
    issued = issue(line, account_id)
    lines = [
        {"replay": [{"rpc": "doorward.v1.TokenAdmin/RevokeToken", "request": {"token_id": token_id}}]}
        for token_id in (fresh_id("t"), "no id", issued["token"]["token_id"])
    ]
    ended = line.run("audit", "replay", "--json", given="\n".join(json.dumps(told) for told in lines))
    assert ended.code == 2
    assert json.loads(ended.out) == {"done": 1, "skipped": 1, "failed": 1, "by_hand": []}
    assert "RevokeToken {'token_id': 'no id'}" in ended.err


def test_an_operators_revocation_is_replayed_too(
    audited: ServerProcess, line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOORWARD_ADDRESS", audited.address)
    monkeypatch.setenv("DOORWARD_DATA_DIR", str(audited.data_dir))
    with grpc.insecure_channel(audited.address) as channel:
        stubs = stubs_on(channel, audited)
        request = system_admin_pb2.CreateOperatorRequest(role=types_pb2.OPERATOR_ROLE_CALLER, display_name="gone soon")
        created = ask(stubs.system.CreateOperator, request, stubs.admin)
        secret = find_secret(created.secret, SecretKind.OPERATOR)
        assert secret is not None
        operator_id = secret.subject_id
        ask(stubs.system.RevokeOperator, system_admin_pb2.RevokeOperatorRequest(operator_id=operator_id), stubs.admin)
        assert bearer(created.secret)
    lines = [json.loads(text) for text in line.done("audit", "export", "--revocations").splitlines()]
    (told,) = [told for told in lines if told["subject"] == f"operator:{operator_id}"]
    assert told["replay"] == [
        {"rpc": "doorward.v1.SystemAdmin/RevokeOperator", "request": {"operator_id": operator_id}}
    ]
