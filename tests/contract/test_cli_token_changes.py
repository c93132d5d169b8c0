"""`doorward token update | rotate | rotate-self | disable | enable` against a real server, for people and as JSON."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from doorward.core.secret import SecretKind, find_secret
from tests.contract.test_cli import CommandLine, account_id, issue, line

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["account_id", "line"]  # fixtures


def secret_in(said: str) -> str:
    """The one secret that a command printed."""
    (text,) = [row.removeprefix("Secret: ") for row in said.splitlines() if row.startswith("Secret: ")]
    assert find_secret(text, SecretKind.TOKEN) is not None
    assert said.count(text) == 1
    return text


def allowed(line: CommandLine, project_id: str, *secrets: str) -> list[bool]:
    """Whether each secret may still do something."""
    about = ("check", "--permission", "jobs:read", "--project", project_id)
    return [line.run(*about, given=secret).code == 0 for secret in secrets]


def test_a_token_is_updated_and_only_in_what_is_named(line: CommandLine, account_id: str) -> None:
    issued = issue(line, account_id, "--label", "team=data", "--description", "as it was", "--ttl", "90d")
    token_id = issued["token"]["token_id"]

    said = line.done(
        "token", "update", token_id, "--display-name", "new name", "--grant", "member:*", "--label", "env=prod",
        "--label", "team=ops", "--never-expires", "--allow-self-rotation",
    )  # fmt: skip
    told = line.answer("token", "update", token_id, "--description", "", "--no-labels", "--no-self-rotation")["token"]

    for shown in (
        "new name",
        "member:*",
        "env=prod",
        "team=ops",
        "never",
        "as it was",
        "Self-rotation",
        "True everywhere",
    ):
        assert shown in said
    assert (told["display_name"], told["description"], told["labels"]) == ("new name", "", {})
    assert (told["allow_self_rotation"], "expire_time" in told) == (False, False)
    assert allowed(line, f"{account_id}-p1", issued["secret"]) == [True]


def test_an_update_that_meets_another_state_is_refused(line: CommandLine, account_id: str) -> None:
    token = issue(line, account_id)["token"]
    line.done("token", "update", token["token_id"], "--etag", token["etag"], "--display-name", "first")

    late = line.run("token", "update", token["token_id"], "--etag", token["etag"], "--display-name", "second")

    assert (late.code, late.err.startswith("Error: ABORTED (ETAG_MISMATCH): ")) == (2, True)
    assert "first" in line.done("token", "show", token["token_id"])


def test_only_checking_an_update_and_a_rotation_changes_nothing(
    line: CommandLine, account_id: str, tmp_path: Path
) -> None:
    token_id = issue(line, account_id)["token"]["token_id"]
    before = line.answer("token", "show", token_id)

    update = line.done("token", "update", token_id, "--display-name", "other", "--validate-only")
    rotate = line.done("token", "rotate", token_id, "--overlap", "1h", "--validate-only", "--secret-file", "none")

    assert "other" in update
    assert all("Only checked" in said and "former" not in said for said in (update, rotate))
    assert "Secret" not in rotate
    assert not (tmp_path / "none").exists()
    assert line.answer("token", "show", token_id) == before


def test_options_that_contradict_each_other_are_refused_before_anything_is_sent(line: CommandLine) -> None:
    both = [
        ("--label", "a=b", "--no-labels"),
        ("--expire-time", "2030-01-01T00:00:00Z", "--never-expires"),
        (),
    ]

    ended = [line.run("token", "update", "t", *options) for options in both]

    assert [one.code for one in ended] == [2, 2, 2]
    assert ["--no-labels" in ended[0].err, "--never-expires" in ended[1].err] == [True, True]
    assert "nothing is to be changed" in ended[2].err


def test_a_secret_is_rotated_and_shown_once(line: CommandLine, account_id: str) -> None:
    issued = issue(line, account_id)
    token_id, first = issued["token"]["token_id"], issued["secret"]

    said = line.done("token", "rotate", token_id, "--overlap", "1h")
    second = secret_in(said)
    during = allowed(line, f"{account_id}-p1", first, second)
    told: Any = line.answer("token", "rotate", token_id, "--overlap", "0s")

    assert "The former secret works until 2" in said
    assert during == [True, True]
    assert allowed(line, f"{account_id}-p1", first, second, told["secret"]) == [True, False, True]
    assert told["former_secret_expire_time"][:10] in said
    assert secret_in(said) not in line.done("token", "show", token_id)


def test_an_overlap_of_0_says_that_the_former_secret_has_stopped(line: CommandLine, account_id: str) -> None:
    token_id = issue(line, account_id)["token"]["token_id"]

    assert "The former secret has stopped." in line.done("token", "rotate", token_id, "--overlap", "0s")


def test_a_new_secret_goes_into_a_file_and_is_not_printed(line: CommandLine, account_id: str, tmp_path: Path) -> None:
    token_id = issue(line, account_id)["token"]["token_id"]

    said = line.done("token", "rotate", token_id, "--overlap", "0s", "--secret-file", "new.secret")
    told = line.answer("token", "rotate", token_id, "--overlap", "0s", "--secret-file", "newer.secret")

    files = [tmp_path / "new.secret", tmp_path / "newer.secret"]
    secrets = [file.read_text().strip() for file in files]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600, 0o600]
    assert not any(secret in said + str(told) for secret in secrets)
    assert allowed(line, f"{account_id}-p1", *secrets) == [False, True]


def test_a_token_rotates_itself(line: CommandLine, account_id: str) -> None:
    first = issue(line, account_id, "--allow-self-rotation")["secret"]

    second = secret_in(line.done("token", "rotate-self", "--overlap", "1h", DOORWARD_TOKEN=first))
    third = line.answer("token", "rotate-self", "--overlap", "0s", DOORWARD_TOKEN=second)["secret"]

    assert allowed(line, f"{account_id}-p1", first, second, third) == [True, False, True]


def test_a_command_that_is_repeated_with_its_id_gets_the_same_secret(line: CommandLine, account_id: str) -> None:
    repeated = ("--request-id", str(uuid.uuid4()))
    issued = [issue(line, account_id, *repeated) for _ in range(2)]
    other = line.run(
        "token", "issue", "--account", account_id, "--display-name", "other", "--grant", "member:*", *repeated
    )
    rotate = ("token", "rotate", issued[0]["token"]["token_id"], "--overlap", "0s")
    once_more = ("--request-id", str(uuid.uuid4()))
    rotated = [line.answer(*rotate, *once_more)["secret"] for _ in range(2)]

    assert issued[0]["secret"] == issued[1]["secret"]
    assert (other.code, other.err.startswith("Error: INVALID_ARGUMENT (REQUEST_ID_REUSED): ")) == (2, True)
    assert rotated[0] == rotated[1] != issued[0]["secret"]
    assert line.answer(*rotate)["secret"] != line.answer(*rotate)["secret"]


def test_a_token_is_disabled_and_enabled(line: CommandLine, account_id: str) -> None:
    issued = issue(line, account_id)
    token_id, project_id = issued["token"]["token_id"], f"{account_id}-p1"

    said = line.done("token", "disable", token_id)
    during = allowed(line, project_id, issued["secret"])
    told = line.answer("token", "enable", token_id)

    assert "DISABLED" in said
    assert "True everywhere" in said
    assert (during, told["token"]["state"]) == ([False], "TOKEN_STATE_ACTIVE")
    assert allowed(line, project_id, issued["secret"]) == [True]
