"""From a presented text to a token: proof, digest, and only then bcrypt (design section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward.core.secret import SecretKind, find_secret, generate, new_id
from doorward_server.credentials import pepper
from doorward_server.replica.caches import Missing
from doorward_server.storage import tokens
from tests.support.database import put_account
from tests.support.issuing import issue, revoke
from tests.support.replica import Parts, running

if TYPE_CHECKING:
    from pathlib import Path

    from doorward.core.entries import TokenEntry
    from doorward_server.storage.pool import Database


async def recognized(replica: Parts, text: bytes) -> tuple[TokenEntry | None, list[str]]:
    """Whose text this is, and what had to be brought to tell."""
    brought: list[str] = []
    refuted: set[bytes] = set()
    while True:
        found = replica.recognition.tokens.find(text, replica.holding.latest_us(), refuted)
        if not isinstance(found, Missing):
            return found, brought
        brought.append(found.kind)
        assert len(brought) < 10
        await replica.recognition.fetch(found, refuted)


async def test_a_digest_proves_a_secret_without_bcrypt_and_a_proof_without_either(
    database: Database, tmp_path: Path
) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path, without=("hasher",)) as replica:
        await replica.usable()
        secret = await issue(database, replica.ring, "acme")
        await replica.applied(2)
        text = secret.reveal().encode()
        entry, brought = await recognized(replica, text)
        assert entry is not None
        assert entry[0] == secret.subject_id
        assert brought == ["token"]
        # What a warm check sees: nothing is missing, and nothing may be written.
        assert replica.recognition.tokens.find(text, replica.holding.latest_us(), None) is entry


async def test_a_wrong_secret_for_a_known_id_costs_no_bcrypt(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path, without=("hasher",)) as replica:
        await replica.usable()
        secret = await issue(database, replica.ring, "acme")
        await replica.applied(2)
        wrong = generate(SecretKind.TOKEN, secret.subject_id).reveal().encode()
        entry, brought = await recognized(replica, wrong)
        assert entry is None
        assert brought == ["token"]
        assert len(replica.holding.token_proofs) == 0


async def test_without_a_digest_bcrypt_proves_it_once_and_writes_the_digest_back(
    database: Database, tmp_path: Path
) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        secret = await issue(database, replica.ring, "acme", with_digest=False)
        await replica.applied(2)
        text = secret.reveal().encode()
        entry, brought = await recognized(replica, text)
        assert entry is not None
        assert "bcrypt" in brought
        async with database.reading() as connection:
            loaded = await tokens.load(connection, secret.subject_id)
        assert loaded.token is not None
        assert loaded.token.secrets[0][1:3] == replica.ring.digest(text)[::-1]
        again, brought_again = await recognized(replica, text)
        assert (again, brought_again) == (entry, [])


async def test_without_a_digest_bcrypt_refuses_a_wrong_secret(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        secret = await issue(database, replica.ring, "acme", with_digest=False)
        await replica.applied(2)
        wrong = generate(SecretKind.TOKEN, secret.subject_id).reveal().encode()
        entry, brought = await recognized(replica, wrong)
        assert entry is None
        assert brought.count("bcrypt") == 1


async def test_an_unknown_id_is_looked_up_once(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        text = generate(SecretKind.TOKEN, new_id()).reveal().encode()
        assert await recognized(replica, text) == (None, ["token"])
        assert await recognized(replica, text) == (None, [])


async def test_what_is_no_secret_is_looked_up_nowhere(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path) as replica:
        await replica.usable()
        operator = generate(SecretKind.OPERATOR, new_id()).reveal().encode()
        for text in (b"", b"x", b"dwst_", operator, b"\xff" * 60, b"a" * 129):
            assert find_secret(text, SecretKind.TOKEN) is None
            assert await recognized(replica, text) == (None, [])


async def test_a_proof_is_no_verdict(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        secret = await issue(database, replica.ring, "acme")
        await replica.applied(2)
        text = secret.reveal().encode()
        await recognized(replica, text)
        await replica.applied(await revoke(database, "acme", secret.subject_id))
        entry, _ = await recognized(replica, text)
        assert entry is not None
        assert entry[2] is True


async def test_a_digest_under_a_former_key_is_written_anew(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    key_file = tmp_path / "pepper.keys"
    former = pepper.create(key_file)
    secret = await issue(database, former, "acme")
    pepper.activate(key_file, pepper.add(key_file))
    async with running(database, tmp_path, without=("hasher",)) as replica:
        await replica.usable()
        assert replica.ring.current_id != former.current_id
        text = secret.reveal().encode()
        entry, brought = await recognized(replica, text)
        assert entry is not None
        assert brought == ["token", "digest"]
        async with database.reading() as connection:
            loaded = await tokens.load(connection, secret.subject_id)
        assert loaded.token is not None
        assert loaded.token.secrets[0][1:3] == replica.ring.digest(text)[::-1]
