"""A change with a thousand subjects, as a filtered revocation makes it, is applied in one step like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward.core.entries import TOKEN_IS_REVOKED
from doorward_server.model import Change
from doorward_server.service.revoke_many import MOST_AT_ONCE
from doorward_server.storage import changes, tokens
from doorward_server.storage.changes import Decided
from tests.support.database import event_of
from tests.support.populations import a_population, copy_population, seeded
from tests.support.replica import running

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.pool import Database


async def test_every_token_of_a_change_is_forgotten_and_read_anew(database: Database, tmp_path: Path) -> None:
    ids = [f"acme-{number}" for number in range(1, MOST_AT_ONCE + 2)]
    kept = ids[-1]
    async with database.reading() as connection:
        await copy_population(connection, a_population(seeded("many"), {"acme": len(ids)}, live=1.0))

    async def revoke(tx: Transaction) -> Decided[None]:
        revoked = await tokens.revoke_many(tx, ids[:-1], "incident")
        assert len(revoked) == MOST_AT_ONCE
        change = Change("RevokeTokensByFilter", "acme", tuple(f"token:{token_id}" for token_id in ids[:-1]))
        return Decided(None, change, event_of("account:acme", account_id="acme"))

    async with running(database, tmp_path, capacity=2 * MOST_AT_ONCE) as replica:
        await replica.usable()
        table, proofs = replica.holding.tables.tokens, replica.holding.token_proofs
        for token_id in ids:
            await replica.caches.fill("token", token_id)
            proofs.remember(proofs.proof_of(token_id.encode()), token_id, 1)
        number = (await changes.commit(database, revoke, accounts=["acme"])).revision.number
        await replica.applied(number)

        assert [token_id for token_id in ids if table.get(token_id) is not None] == [kept]
        assert [token_id for token_id in ids if proofs.find(proofs.proof_of(token_id.encode()))] == [kept]
        for token_id in (ids[0], ids[-2]):
            await replica.caches.fill("token", token_id)
            entry = table.get(token_id)
            assert isinstance(entry, tuple)
            assert entry[TOKEN_IS_REVOKED]
