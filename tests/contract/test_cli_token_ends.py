"""`doorward token list | revoke | report-leak` against a real server: filters, many tokens at once, a leaked secret."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from doorward.core.secret import SecretKind, generate, new_id
from tests.contract.test_cli import CommandLine, account_id, issue, line

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["account_id", "line"]  # fixtures


def listed(line: CommandLine, account_id: str, *filters: str) -> list[str]:
    """The ids that a list shows as JSON; the table has the same."""
    told = [token["token_id"] for token in line.answer("token", "list", "--account", account_id, *filters)["tokens"]]
    table = line.run("token", "list", "--account", account_id, *filters).out
    assert [row.split()[0] for row in table.splitlines()[1:]] == told
    return told


def states(line: CommandLine, account_id: str) -> dict[str, str]:
    """The state of every token of the account, by its id."""
    told = line.answer("token", "list", "--account", account_id, "--limit", "0")["tokens"]
    return {token["token_id"]: token["state"].removeprefix("TOKEN_STATE_") for token in told}


def test_a_list_is_narrowed_by_every_filter(line: CommandLine, account_id: str) -> None:
    data = issue(line, account_id, "--label", "team=data", "--label", "env=prod", "--ttl", "1d")["token"]
    web = issue(line, account_id, "--label", "team=web")["token"]
    other = line.answer(
        "token", "issue", "--account", account_id, "--display-name", "Other", "--grant", "member:*"
    )["token"]  # fmt: skip
    ids = [token["token_id"] for token in (other, web, data)]

    assert listed(line, account_id) == ids
    assert listed(line, account_id, "--label", "team=data", "--label", "env=prod") == ids[2:]
    assert listed(line, account_id, "--permission-set", "job_admin") == ids[1:]
    assert listed(line, account_id, "--project", f"{account_id}-p1") == ids
    assert listed(line, account_id, "--project", "elsewhere") == ids[:1]
    assert listed(line, account_id, "--created-by", data["created_by"]) == ids
    assert listed(line, account_id, "--created-by", "token:nobody") == []
    assert listed(line, account_id, "--display-name-prefix", "Oth") == ids[:1]
    assert listed(line, account_id, "--expires-before", "9999-01-01T00:00:00Z") == ids[2:]
    assert listed(line, account_id, "--unused-since", "2020-01-01T00:00:00Z") == []
    assert listed(line, account_id, "--state", "active", "--permission-set", "member") == ids[:1]
    refused = line.run("token", "list", "--account", account_id, "--permission-set", "no_such_set")
    assert (refused.code, "PERMISSION_SET_UNKNOWN" in refused.err) == (2, True)


def test_several_tokens_are_revoked_by_their_ids(line: CommandLine, account_id: str) -> None:
    first, second, kept = (issue(line, account_id)["token"]["token_id"] for _ in range(3))

    tried = line.done("token", "revoke", second, first, "--dry-run")
    assert "nothing was written" in tried
    assert set(states(line, account_id).values()) == {"ACTIVE"}

    said = line.done("token", "revoke", second, first, "--reason", "audit")
    assert [row.split()[0] for row in said.splitlines()[1:3]] == [second, first]
    assert said.count("REVOKED") == 3  # the column's title, and a word in each row
    assert "True everywhere" in said
    assert states(line, account_id) == {kept: "ACTIVE", second: "REVOKED", first: "REVOKED"}

    unknown = line.run("token", "revoke", kept, "nobody")
    assert (unknown.code, "TOKEN_NOT_FOUND" in unknown.err) == (2, True)
    assert states(line, account_id)[kept] == "ACTIVE"


def test_one_token_is_shown_as_it_is_revoked(line: CommandLine, account_id: str) -> None:
    token_id = issue(line, account_id)["token"]["token_id"]
    said = line.done("token", "revoke", token_id, "--reason", "contractor left")
    assert "contractor left" in said
    assert line.answer("token", "revoke", token_id)["token"]["revoke_reason"] == "contractor left"


def minter(line: CommandLine, account_id: str, by: Path | None = None) -> Any:
    """A token that can issue others; `by` has the secret of the one that issues it."""
    as_it = () if by is None else ("--token-file", str(by))
    return line.answer(
        "token", "issue", "--account", account_id, "--display-name", "m", "--grant", "account_admin:*", *as_it
    )  # fmt: skip


def test_what_a_leaked_token_has_obtained_is_shown_and_then_revoked(
    line: CommandLine, account_id: str, tmp_path: Path
) -> None:
    leaked = minter(line, account_id)
    secrets = [leaked]
    for name in ("child", "grandchild"):
        by = tmp_path / name
        by.write_text(secrets[-1]["secret"])
        by.chmod(0o600)
        secrets.append(minter(line, account_id, by))
    child, grandchild = (made["token"]["token_id"] for made in secrets[1:])
    about = ("--account", account_id, "--obtained-by", leaked["token"]["token_id"])

    assert line.done("token", "revoke", *about, "--dry-run").splitlines()[:2] == [child, "1 would be revoked."]
    tried = line.done("token", "revoke", *about, "--descendants", "--dry-run")
    assert tried.splitlines()[:3] == [grandchild, child, "2 would be revoked."]
    assert "REVOKED" not in states(line, account_id).values()

    said = line.done("token", "revoke", *about, "--descendants", "--reason", "leaked")
    assert said.splitlines()[:3] == [grandchild, child, "2 revoked."]
    assert "True everywhere" in said
    assert states(line, account_id) == {
        leaked["token"]["token_id"]: "ACTIVE",
        child: "REVOKED",
        grandchild: "REVOKED",
    }


def test_tokens_are_revoked_by_filters_or_all(line: CommandLine, account_id: str) -> None:
    first = issue(line, account_id, "--label", "team=data")["token"]["token_id"]
    rest = [issue(line, account_id)["token"]["token_id"] for _ in range(2)]
    about = ("token", "revoke", "--account", account_id)
    assert line.answer(*about, "--label", "team=data")["token_ids"] == [first]
    assert line.answer(*about, "--all")["token_ids"] == rest[::-1]
    assert line.answer(*about, "--all")["token_ids"] == []


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ((), "--all"),
        (("--account", "acme"), "--all"),
        (("--label", "team=data"), "--account"),
        (("T", "--account", "acme", "--all"), "TOKEN_ID"),
    ],
)
def test_what_is_not_said_clearly_revokes_nothing(line: CommandLine, arguments: tuple[str, ...], option: str) -> None:
    refused = line.run("token", "revoke", *arguments)
    assert (refused.code, option in refused.err) == (2, True)


def test_a_leaked_secret_is_reported_by_whoever_has_it(line: CommandLine, account_id: str, tmp_path: Path) -> None:
    issued = issue(line, account_id)
    unknown = generate(SecretKind.TOKEN, new_id()).reveal()
    nobody = {"DOORWARD_DATA_DIR": str(tmp_path / "empty")}

    said = {line.done("token", "report-leak", given=secret, **nobody) for secret in (issued["secret"], unknown, "x")}
    assert len(said) == 1, "the same words for each"
    assert line.answer("token", "report-leak", given=unknown, **nobody) == {}
    assert states(line, account_id) == {issued["token"]["token_id"]: "REVOKED"}

    found = tmp_path / "found"
    found.write_text(issue(line, account_id)["secret"])
    found.chmod(0o600)
    line.done("token", "report-leak", "--secret-file", str(found), **nobody)
    assert set(states(line, account_id).values()) == {"REVOKED"}


def test_a_leaked_secret_is_never_an_argument(line: CommandLine, account_id: str) -> None:
    issued = issue(line, account_id)
    assert line.run("token", "report-leak", issued["secret"]).code == 2
    assert line.run("token", "report-leak", "--token-file", "x", given=issued["secret"]).code == 2
    assert states(line, account_id) == {issued["token"]["token_id"]: "ACTIVE"}
