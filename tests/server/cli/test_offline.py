"""`db migrate` and `operator create --direct`: on a database, with no server."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from doorward.core.secret import SecretKind, find_secret
from doorward_server.credentials import pepper
from doorward_server.model import OperatorRole
from doorward_server.storage import operators
from doorward_server.storage.pool import Database
from tests.server.cli.conftest import run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.postgres import PostgresServer

CREATE = ("operator", "create", "--role", "caller", "--display-name", "discovery api", "--pepper-file", "keys")


@pytest.fixture
def empty_url(postgres_server: PostgresServer) -> str:
    """The URL of an empty database, which goes with the PostgreSQL of the session."""
    return postgres_server.url(asyncio.run(postgres_server.create_database()))


def stored(url: str, operator_id: str) -> operators.StoredOperator | None:
    """The operator as a replica would load it."""

    async def load() -> operators.StoredOperator | None:
        database = Database(url, hold_ms=5000)
        await database.open()
        try:
            async with database.reading() as connection:
                return (await operators.load(connection, operator_id)).operator
        finally:
            await database.close()

    return asyncio.run(load())


def test_migrate_names_what_it_applied_and_a_repeat_finds_nothing(empty_url: str) -> None:
    first = run("db", "migrate", "--database-url", empty_url)
    again = run("db", "migrate", DOORWARD_DATABASE_URL=empty_url)
    assert (first.exit_code, again.exit_code) == (0, 0), first.stderr + again.stderr
    assert "Applied 0001_initial.sql\n" in first.stdout
    assert again.stdout == "The schema is up to date.\n"


def test_migrate_needs_no_pepper_keys(empty_url: str, own_directory: Path) -> None:
    assert run("db", "migrate", "--database-url", empty_url).exit_code == 0
    assert list(own_directory.iterdir()) == []


@pytest.mark.parametrize("arguments", [("db", "migrate"), (*CREATE, "--direct")])
def test_a_database_that_cannot_be_reached_is_told_without_its_password(
    own_directory: Path, arguments: tuple[str, ...]
) -> None:
    pepper.create(own_directory / "keys")
    url = f"postgresql://doorward:hunter2hunter2@/doorward?host={own_directory}"
    result = run(*arguments, DOORWARD_DATABASE_URL=url)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: The database at ")
    assert "hunter2" not in result.output


def test_a_direct_operator_is_stored_and_its_secret_printed_once(own_directory: Path, empty_url: str) -> None:
    ring = pepper.create(own_directory / "keys")
    result = run(*CREATE, "--direct", "--json", DOORWARD_DATABASE_URL=empty_url)
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    secret = find_secret(made["secret"], SecretKind.OPERATOR)
    assert secret is not None
    assert secret.subject_id == made["operator_id"]
    found = stored(empty_url, made["operator_id"])
    assert found is not None
    assert (found.role, found.pepper_id, found.digest) == (OperatorRole.CALLER, *ring.digest(made["secret"]))


def test_a_direct_operators_secret_can_go_into_a_file_alone(own_directory: Path, empty_url: str) -> None:
    pepper.create(own_directory / "keys")
    result = run(*CREATE, "--direct", "--secret-file", "api.token", DOORWARD_DATABASE_URL=empty_url)
    assert result.exit_code == 0, result.stderr
    text = (own_directory / "api.token").read_text().strip()
    secret = find_secret(text, SecretKind.OPERATOR)
    assert secret is not None
    assert secret.subject_id in result.stdout
    assert text not in result.output


def test_an_operator_is_not_made_with_keys_of_another_deployment(own_directory: Path, empty_url: str) -> None:
    pepper.create(own_directory / "keys")
    assert run(*CREATE, "--direct", DOORWARD_DATABASE_URL=empty_url).exit_code == 0
    (own_directory / "keys").unlink()
    pepper.create(own_directory / "keys")
    result = run(*CREATE, "--direct", "--secret-file", "api.token", DOORWARD_DATABASE_URL=empty_url)
    assert result.exit_code == 2
    assert "pepper key" in result.stderr
    assert not (own_directory / "api.token").exists()


def test_without_direct_nothing_is_made(empty_url: str) -> None:
    result = run(*CREATE, DOORWARD_DATABASE_URL=empty_url)
    assert result.exit_code == 2
    assert "--direct" in result.stderr


@pytest.mark.parametrize("name", ["", "x" * 201])
def test_a_name_out_of_bounds_is_refused_before_anything_is_opened(name: str) -> None:
    result = run(*CREATE[:5], name, "--direct", "--pepper-file", "keys")
    assert result.exit_code == 2
    assert "--display-name" in result.stderr


def test_an_external_database_needs_its_pepper_keys_named(empty_url: str) -> None:
    result = run(*CREATE[:6], "--direct", "--database-url", empty_url)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: --pepper-file: ")
