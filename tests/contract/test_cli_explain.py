"""`doorward explain` and `doorward token with-permission`, against a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from doorward.core.secret import SecretKind, generate, new_id
from tests.contract.test_cli import CommandLine, CommandProcesses, account_id, line

if TYPE_CHECKING:
    from tests.support.server import ServerProcess

__all__ = ["account_id", "line"]  # fixtures


@pytest.fixture
def token(line: CommandLine, account_id: str) -> tuple[str, str]:
    """A token with `job_admin` on the first of two projects of an account on the plan `team`: its id and its secret."""
    line.done("project", "put", f"{account_id}-p2", "--account", account_id, "--display-name", "Second")
    grants = ("--grant", f"job_admin:{account_id}-p1", "--grant", "read_only:*")
    issued = line.answer("token", "issue", "--account", account_id, "--display-name", "nightly", *grants)
    return issued["token"]["token_id"], issued["secret"]


def test_a_denial_is_explained_grant_by_grant_and_ends_with_1(
    line: CommandLine, account_id: str, token: tuple[str, str]
) -> None:
    token_id, secret = token
    asked = ("explain", "--permission", "jobs:write", "--project", f"{account_id}-p2")

    by_id = line.run(*asked, "--token", token_id)
    by_secret = line.run(*asked, given=secret)

    assert by_id == by_secret
    first, _, header, *rows = by_id.out.splitlines()
    assert by_id.code == 1
    assert first.startswith("denied: PROJECT_NOT_GRANTED: ")
    assert f"token {token_id}, account {account_id}, revision " in first
    assert header.split() == ["GRANT", "PART"]
    assert rows[0].split()[:2] == [f"job_admin:{account_id}-p1", "OTHER_PROJECTS:"]
    assert rows[1].split()[:2] == ["read_only:*", "NOT_HELD:"]
    assert rows[3] == (
        "The smallest grant that would allow it, in the place of its grant of that set: "
        f"job_admin:{account_id}-p1,{account_id}-p2"
    )


def test_what_is_allowed_ends_with_0_and_names_the_grant(
    line: CommandLine, account_id: str, token: tuple[str, str]
) -> None:
    told = line.done("explain", "--permission", "jobs:write", "--project", f"{account_id}-p1", "--token", token[0])

    assert told.startswith("allowed (")
    assert f"job_admin:{account_id}-p1  ALLOWS: " in told
    assert "smallest" not in told


def test_the_answer_is_there_for_programs(line: CommandLine, account_id: str, token: tuple[str, str]) -> None:
    asked = ("explain", "--permission", "jobs:write", "--project", f"{account_id}-p1")

    allowed = line.answer(*asked, "--token", token[0])
    denied = line.run("explain", "--permission", "billing:read", "--account", account_id, "--token", token[0], "--json")

    assert (allowed["allowed"], allowed["grants"][0]["part"]) == (True, "GRANT_PART_ALLOWS")
    assert denied.code == 1
    assert '"permission_set": "account_admin"' in denied.out


def test_a_secret_that_nobody_has_is_a_denial_and_is_not_shown(line: CommandLine, account_id: str) -> None:
    secret = generate(SecretKind.TOKEN, new_id()).reveal()

    told = CommandProcesses().run(
        "explain", "--permission", "jobs:write", "--project", f"{account_id}-p1", DOORWARD_SECRET=secret
    )

    assert (told.code, told.out.split()[:2]) == (1, ["denied:", "TOKEN_UNRECOGNIZED:"])
    assert secret not in told.out + told.err
    assert "GRANT" not in told.out


@pytest.mark.parametrize(
    "wrong",
    [
        ("--permission", "jobs:write"),
        ("--permission", "jobs:write", "--project", "p", "--account", "a"),
        ("--permission", "jobs:delete", "--project", "p", "--token", "t"),
        ("--permission", "jobs:write", "--project", "p", "--token", "unknown"),
    ],
)
def test_what_cannot_be_explained_is_an_error(line: CommandLine, wrong: tuple[str, ...]) -> None:
    assert line.run("explain", *wrong).code == 2


def test_a_token_is_named_in_one_way(line: CommandLine, account_id: str, token: tuple[str, str]) -> None:
    asked = ("explain", "--permission", "jobs:write", "--project", f"{account_id}-p1")

    both = line.run(*asked, "--token", token[0], "--secret-file", "-", given=token[1])

    assert both.code == 2
    assert "--token" in both.err


def test_a_callers_credential_explains_by_secret_only(
    line: CommandLine, account_id: str, token: tuple[str, str], server: ServerProcess
) -> None:
    asked = ("explain", "--permission", "jobs:write", "--project", f"{account_id}-p1")
    caller = ("--token-file", str(server.caller_token_file))

    assert line.run(*asked, *caller, given=token[1]).code == 0
    refused = line.run(*asked, *caller, "--token", token[0])
    assert refused.code == 2
    assert refused.err.startswith("Error: PERMISSION_DENIED (CALLER_NOT_PERMITTED): ")


def test_the_tokens_with_a_permission_are_listed(line: CommandLine, account_id: str, token: tuple[str, str]) -> None:
    newer = line.answer(
        "token", "issue", "--account", account_id, "--display-name", "Café", "--grant", "account_admin:*"
    )["token"]["token_id"]
    asked = ("token", "with-permission", "--permission", "jobs:write")

    listed = line.done(*asked, "--project", f"{account_id}-p1").splitlines()
    limited = line.run(*asked, "--project", f"{account_id}-p1", "--limit", "1")
    elsewhere = line.answer(*asked, "--project", f"{account_id}-p2")
    of_account = line.done("token", "with-permission", "--permission", "billing:read", "--account", account_id)
    line.done("token", "revoke", newer)
    none = line.run("token", "with-permission", "--permission", "billing:read", "--account", account_id)

    assert [row.split()[0] for row in listed[1:]] == [newer, token[0]]
    assert f"job_admin:{account_id}-p1" in listed[2]
    assert [row.split()[0] for row in limited.out.splitlines()[1:]] == [newer]
    assert "--limit" in limited.err
    assert [one["token_id"] for one in elsewhere["tokens"]] == [newer]
    assert newer in of_account
    assert (none.code, none.out, none.err) == (0, "", "No token may do this here.\n")
