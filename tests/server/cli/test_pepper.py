"""`doorward pepper` on real files, and `retire` beside a real database."""

from __future__ import annotations

import asyncio
import json
import stat
from typing import TYPE_CHECKING

import pytest

from doorward_server.credentials import pepper
from doorward_server.model import OperatorRole
from doorward_server.service.operators import create_operators, new_operator
from doorward_server.storage import state
from doorward_server.storage.pool import Database
from tests.server.cli.conftest import run

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

FILE = ("--pepper-file", "keys")


def on_database(url: str, operation: Callable[[Database], Awaitable[object]]) -> None:
    """Runs an operation on the database at `url`."""

    async def main() -> None:
        database = Database(url, hold_ms=5000)
        await database.open()
        try:
            await operation(database)
        finally:
            await database.close()

    asyncio.run(main())


def fingerprints(url: str) -> dict[str, str]:
    """The keys that the database knows."""
    found: dict[str, str] = {}

    async def read(database: Database) -> None:
        async with database.reading() as connection:
            found.update(await state.read_fingerprints(connection))

    on_database(url, read)
    return found


def two_keys(path: Path) -> tuple[str, str]:
    """Makes the file with an old key and a current one."""
    old = pepper.create(path).current_id
    new = pepper.add(path)
    pepper.activate(path, new)
    return old, new


def make_operator(url: str, path: Path, role: OperatorRole = OperatorRole.CALLER) -> str:
    """Makes an operator whose digest is under the file's current key; its id."""
    new = new_operator(pepper.load(path), role, "somebody")
    on_database(url, lambda database: create_operators(database, [new]))
    return new.secret.subject_id


def test_add_makes_the_file_with_a_current_key(own_directory: Path) -> None:
    result = run("pepper", "add", *FILE)
    ring = pepper.load(own_directory / "keys")
    assert ring.key_ids == (ring.current_id,)
    assert ring.current_id in result.stdout
    assert stat.S_IMODE((own_directory / "keys").stat().st_mode) == 0o600


def test_add_to_a_file_leaves_the_current_key(own_directory: Path) -> None:
    former = pepper.create(own_directory / "keys").current_id
    result = run("pepper", "add", *FILE)
    ring = pepper.load(own_directory / "keys")
    assert ring.current_id == former
    assert f"doorward pepper activate {ring.key_ids[1]}" in result.stdout


def test_activate_makes_a_key_current(own_directory: Path) -> None:
    pepper.create(own_directory / "keys")
    new = pepper.add(own_directory / "keys")
    assert run("pepper", "activate", new, *FILE).exit_code == 0
    assert pepper.load(own_directory / "keys").current_id == new


def test_the_file_is_the_data_directorys_own_unless_one_is_named(own_directory: Path) -> None:
    (own_directory / "data").mkdir()
    ring = pepper.create(own_directory / "data" / "pepper.keys")
    assert ring.current_id in run("pepper", "list", "--data-dir", "data").stdout


def test_list_shows_ids_and_fingerprints_and_no_key(own_directory: Path) -> None:
    old, new = two_keys(own_directory / "keys")
    ring = pepper.load(own_directory / "keys")
    keys = [line.split()[2] for line in (own_directory / "keys").read_text().splitlines() if line.startswith("key ")]
    said, parsed = run("pepper", "list", *FILE).stdout, json.loads(run("pepper", "list", *FILE, "--json").stdout)
    assert said.splitlines()[1:] == [
        f"{old}           {ring.fingerprints()[old]}",
        f"{new}  current  {ring.fingerprints()[new]}",
    ]
    assert parsed["keys"][1] == {"key_id": new, "current": True, "fingerprint": ring.fingerprints()[new]}
    assert not any(key in said or key in json.dumps(parsed) for key in keys)


@pytest.mark.parametrize("command", [("list",), ("activate", "k_1"), ("retire", "k_1")])
def test_a_missing_file_is_named(command: tuple[str, ...]) -> None:
    result = run("pepper", *command, *FILE)
    assert result.exit_code == 2
    assert "keys: does not exist" in result.stderr


def test_a_file_that_others_may_read_is_refused(own_directory: Path) -> None:
    pepper.create(own_directory / "keys")
    (own_directory / "keys").chmod(0o644)
    result = run("pepper", "list", *FILE)
    assert result.exit_code == 2
    assert "chmod 600" in result.stderr


def test_the_current_key_is_not_retired_and_no_database_is_needed_to_say_so(own_directory: Path) -> None:
    current = pepper.create(own_directory / "keys").current_id
    result = run("pepper", "retire", current, *FILE)
    assert result.exit_code == 2
    assert "current" in result.stderr
    assert pepper.load(own_directory / "keys").key_ids == (current,)


def test_a_key_that_nothing_depends_on_is_retired_and_no_server_insists_on_it(
    own_directory: Path, database_url: str
) -> None:
    old, new = two_keys(own_directory / "keys")
    known = pepper.load(own_directory / "keys").fingerprints()

    async def remember(database: Database) -> None:
        async with database.reading() as connection:
            for key_id, fingerprint in known.items():
                assert await state.add_fingerprint(connection, key_id, fingerprint)

    on_database(database_url, remember)
    make_operator(database_url, own_directory / "keys")
    result = run("pepper", "retire", old, *FILE, "--database-url", database_url)
    assert result.exit_code == 0, result.stderr
    assert pepper.load(own_directory / "keys").key_ids == (new,)
    assert fingerprints(database_url) == {new: known[new]}


def test_a_key_that_a_digest_depends_on_is_kept(own_directory: Path, database_url: str) -> None:
    old = pepper.create(own_directory / "keys").current_id
    make_operator(database_url, own_directory / "keys")
    pepper.activate(own_directory / "keys", pepper.add(own_directory / "keys"))
    result = run("pepper", "retire", old, *FILE, "--database-url", database_url)
    assert result.exit_code == 2
    assert "of tokens: 0, of operators: 1" in result.stderr
    assert old in pepper.load(own_directory / "keys").key_ids


REVOKE_OPERATORS = "UPDATE operators SET revoke_time = clock_timestamp()"
INSERT_TOKEN = """
WITH account AS (
    INSERT INTO accounts (account_id, display_name, plan, state, create_time, update_time, revision)
    VALUES ('acme', 'Acme', 'team', $2, now(), now(), 1) RETURNING account_id
), token AS (
    INSERT INTO tokens (token_id, account_id, display_name, description, labels, allow_self_rotation, disabled, create_time,
                        update_time, revoke_time, created_by, ordinal, revision)
    SELECT 'T', account_id, 'n', '', '{}', false, false, now(), now(), CASE WHEN $3 THEN now() END, 'direct', 1, 1
    FROM account RETURNING token_id
)
INSERT INTO token_secrets (token_id, version, bcrypt_hash, digest, pepper_id, not_after, issued_to)
SELECT token_id, 1, 'h', decode(repeat('00', 32), 'hex'), $1, now() + make_interval(mins => $4), 'direct' FROM token
"""


@pytest.mark.parametrize(
    ("account_state", "revoked", "minutes", "code"),
    [("active", False, 1, 2), ("active", True, 1, 0), ("active", False, -1, 0), ("deleted", False, 1, 0)],
)
def test_only_secrets_that_may_still_be_presented_keep_a_key(
    own_directory: Path, database_url: str, account_state: str, revoked: bool, minutes: int, code: int
) -> None:
    old, _ = two_keys(own_directory / "keys")

    async def insert(database: Database) -> None:
        async with database.reading() as connection:
            await connection.execute(INSERT_TOKEN, old, account_state, revoked, minutes)

    on_database(database_url, insert)
    assert run("pepper", "retire", old, *FILE, "--database-url", database_url).exit_code == code


def test_a_revoked_operator_keeps_no_key(own_directory: Path, database_url: str) -> None:
    old = pepper.create(own_directory / "keys").current_id
    make_operator(database_url, own_directory / "keys")
    pepper.activate(own_directory / "keys", pepper.add(own_directory / "keys"))

    async def revoke(database: Database) -> None:
        async with database.reading() as connection:
            await connection.execute(REVOKE_OPERATORS)

    on_database(database_url, revoke)
    assert run("pepper", "retire", old, *FILE, "--database-url", database_url).exit_code == 0


def test_a_database_that_cannot_be_reached_keeps_the_key(own_directory: Path) -> None:
    old, _ = two_keys(own_directory / "keys")
    url = f"postgresql:///doorward?host={own_directory}&user=hunter2"
    result = run("pepper", "retire", old, *FILE, "--database-url", url)
    assert result.exit_code == 2
    assert "Error: The database at " in result.stderr
    assert old in pepper.load(own_directory / "keys").key_ids
