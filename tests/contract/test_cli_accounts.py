"""`doorward account suspend | resume | delete | preview-plan` and `project delete` against a real server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.contract.test_cli import CommandLine, account_id, issue, line

if TYPE_CHECKING:
    import pytest

__all__ = ["account_id", "line"]  # fixtures


def verdict(line: CommandLine, project_id: str, secret: str) -> str:
    """What `check` says first, with its exit code."""
    ended = line.run("check", "--permission", "jobs:read", "--project", project_id, given=secret)
    words = ended.out.split()
    assert ended.code == (0 if words[0] == "allowed" else 1)
    return words[0] if words[0] == "allowed" else words[1].rstrip(":")


def test_an_account_is_suspended_resumed_and_deleted(line: CommandLine, account_id: str) -> None:
    secret, project_id = issue(line, account_id)["secret"], f"{account_id}-p1"
    seen = [verdict(line, project_id, secret)]

    said = []
    for command in ("suspend", "resume", "delete"):
        said.append(line.done("account", command, account_id))
        seen.append(verdict(line, project_id, secret))

    assert seen == ["allowed", "ACCOUNT_SUSPENDED", "allowed", "TOKEN_REVOKED"]
    for text, state in zip(said, ("SUSPENDED", "ACTIVE", "DELETED"), strict=True):
        assert f"State    {state}" in text
        assert "True everywhere: revision " in text
    again = line.answer("account", "delete", account_id)
    assert (again["account"]["state"], "propagation" in again) == ("ACCOUNT_STATE_DELETED", True)


def test_what_cannot_be_done_ends_with_2_and_says_why(line: CommandLine, account_id: str) -> None:
    line.done("account", "delete", account_id)

    refused = [
        line.run("account", "resume", account_id),
        line.run("account", "suspend", "nobody"),
        line.run("account", "preview-plan", account_id, "--plan", "enterprise"),
        line.run("project", "delete", "nothing", "--account", account_id),
    ]

    assert [ended.code for ended in refused] == [2] * 4
    reasons = ("ACCOUNT_DELETED", "ACCOUNT_NOT_FOUND", "ACCOUNT_DELETED", "PROJECT_NOT_FOUND")
    assert [reason in ended.err for reason, ended in zip(reasons, refused, strict=True)] == [True] * 4


def test_only_checking_changes_nothing(line: CommandLine, account_id: str) -> None:
    secret, project_id = issue(line, account_id)["secret"], f"{account_id}-p1"

    said = [line.done("account", command, account_id, "--validate-only") for command in ("suspend", "resume", "delete")]
    said.append(line.done("project", "delete", project_id, "--account", account_id, "--validate-only"))

    assert ["Only checked" in text for text in said] == [True] * 4
    assert "State    DELETED" in said[2]
    assert verdict(line, project_id, secret) == "allowed"


def test_a_project_is_deleted_and_its_id_is_in_no_grant(line: CommandLine, account_id: str) -> None:
    project_id = f"{account_id}-p1"
    issued = issue(line, account_id)

    said = line.done("project", "delete", project_id, "--account", account_id)

    assert "Grants changed  1" in said
    assert "Grants removed  1" in said
    assert "True everywhere" in said
    assert verdict(line, project_id, issued["secret"]) == "RESOURCE_NOT_IN_ACCOUNT"
    assert line.answer("token", "show", issued["token"]["token_id"])["token"]["grants"] == []
    line.done("project", "put", project_id, "--account", account_id, "--display-name", "Again")
    gone = line.answer("project", "delete", project_id, "--account", account_id)
    assert (gone["grants_changed"], gone["project"]["display_name"]) == (0, "Again")


def test_another_plan_can_be_looked_at_before(
    line: CommandLine, account_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line.done("account", "put", account_id, "--display-name", "n", "--plan", "enterprise")
    grants = ("--grant", "job_runner:*", "--grant", f"member:{account_id}-p1")
    tokens = [
        line.answer("token", "issue", "--account", account_id, "--display-name", name, *grants)["token"]["token_id"]
        for name in ("first", "second", "third")
    ]

    said = line.done("account", "preview-plan", account_id, "--plan", "team")
    limited = line.run("account", "preview-plan", account_id, "--plan", "team", "--limit", "2")
    told = line.answer("account", "preview-plan", account_id, "--plan", "team")
    same = line.done("account", "preview-plan", account_id, "--plan", "enterprise")

    rows = [row.split() for row in said.splitlines()]
    assert [row[:2] for row in rows[1:4]] == [[tokens[2], "third"], [tokens[1], "second"], [tokens[0], "first"]]
    assert rows[1][2:] == ["job_runner:*", "-"]
    assert "From enterprise to team: 3 tokens affected, 3 grants suspended, 0 restored." in said
    assert (len(limited.out.splitlines()), "--limit" in limited.err) == (5, True)
    assert [effect["suspended"][0]["permission_set"] for effect in told["effects"]] == ["job_runner"] * 3
    assert same == "From enterprise to enterprise: 0 tokens affected, 0 grants suspended, 0 restored.\n"
