"""`doorward operator create | list | revoke` against a real server; `--direct` is in test_cli.py and tests/server/cli."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import pytest

from doorward.core.secret import SecretKind, find_secret, new_id
from tests.contract.test_cli import CommandLine, line

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["line"]  # a fixture

CREATE = ("operator", "create", "--role", "auditor", "--display-name", "who audits")


def listed(line: CommandLine, *options: str) -> dict[str, Any]:
    """Every operator that is listed, by id."""
    answer = line.answer("operator", "list", "--limit", "0", *options)
    return {operator["operator_id"]: operator for operator in answer["operators"]}


def test_an_operator_is_created_used_listed_and_revoked(line: CommandLine) -> None:
    said = line.done(*CREATE, "--ttl", "90d")
    (secret,) = [row.removeprefix("Secret: ") for row in said.splitlines() if row.startswith("Secret: ")]
    found = find_secret(secret, SecretKind.OPERATOR)
    assert found is not None
    operator_id = found.subject_id

    assert f"Operator  {operator_id}" in said
    assert "Role      auditor" in said
    assert "True everywhere" in said
    assert line.run("account", "list", DOORWARD_TOKEN=secret).code == 0
    assert line.run(*CREATE, DOORWARD_TOKEN=secret).code == 2
    (row,) = [row for row in line.done("operator", "list", "--limit", "0").splitlines() if row.startswith(operator_id)]
    assert row.split()[1] == "auditor"

    revoked = line.done("operator", "revoke", operator_id, "--reason", "left the team")

    assert "Revoked " in revoked
    refused = line.run("account", "list", DOORWARD_TOKEN=secret)
    assert (refused.code, "CREDENTIAL_UNRECOGNIZED" in refused.err) == (2, True)
    assert operator_id not in listed(line)
    assert "revoke_time" in listed(line, "--all", "--role", "auditor")[operator_id]
    assert operator_id not in listed(line, "--all", "--role", "caller")


def test_the_credential_goes_into_a_file_that_only_its_owner_reads(line: CommandLine, tmp_path: Path) -> None:
    told = line.answer(*CREATE, "--secret-file", "auditor.token")

    text = (tmp_path / "auditor.token").read_text().strip()
    assert "secret" not in told or told["secret"] == ""
    assert stat.S_IMODE((tmp_path / "auditor.token").stat().st_mode) == 0o600
    assert find_secret(text, SecretKind.OPERATOR) is not None
    assert line.run("account", "list", "--token-file", "auditor.token").code == 0


def test_only_checking_creates_and_revokes_nobody(line: CommandLine, tmp_path: Path) -> None:
    operator_id = line.answer(*CREATE)["operator"]["operator_id"]
    before = listed(line, "--all")

    created = line.answer(*CREATE, "--validate-only", "--secret-file", "none")
    revoked = line.done("operator", "revoke", operator_id, "--validate-only")

    assert (created["secret"], created["operator"]["operator_id"]) == ("", "")
    assert "Only checked" in revoked
    assert "Revoked" not in revoked
    assert not (tmp_path / "none").exists()
    assert listed(line, "--all") == before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--ttl", "1d", "--expire-time", "2100-01-01T00:00:00Z"), "--expire-time"),
        (("--direct", "--ttl", "1d"), "--ttl"),
        (("--direct", "--validate-only"), "--validate-only"),
        (("--direct", "--token-file", "x"), "--token-file"),
        (("--database-url", "postgresql:///x"), "--database-url"),
        (("--pepper-file", "keys"), "--pepper-file"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_done(
    line: CommandLine, options: tuple[str, ...], named: str
) -> None:
    before = listed(line, "--all")

    ended = line.run(*CREATE, *options)

    assert (ended.code, named in ended.err) == (2, True)
    assert listed(line, "--all") == before


def test_what_the_server_refuses_is_said(line: CommandLine) -> None:
    unknown = line.run("operator", "revoke", new_id())
    past = line.run(*CREATE, "--expire-time", "2020-01-01T00:00:00Z", "--secret-file", "none")

    assert (unknown.code, "OPERATOR_NOT_FOUND" in unknown.err) == (2, True)
    assert (past.code, "expire_time" in past.err) == (2, True)
