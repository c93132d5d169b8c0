"""Accounts, projects and tokens with real secrets, written through the one door without a server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import bcrypt

from doorward.core.secret import Secret, SecretKind, generate, new_id
from doorward_server.model import Grant, StoredSecret
from doorward_server.storage import accounts, changes, tokens
from doorward_server.storage.changes import Decided, Transaction
from tests.support.database import a_token, change_of, event_of

if TYPE_CHECKING:
    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.storage.pool import Database


async def issue(
    database: Database,
    ring: PepperRing,
    account_id: str,
    *,
    grants: tuple[Grant, ...] = (Grant("job_admin", None),),
    with_digest: bool = True,
    **fields: object,
) -> Secret:
    """Issues a token whose secret is returned; without a digest only bcrypt can prove it. `fields`: of its record."""
    secret = generate(SecretKind.TOKEN, new_id())
    text = secret.reveal().encode()
    pepper_id, digest = ring.digest(text)
    hashed = bcrypt.hashpw(text, bcrypt.gensalt(4)).decode()
    stored = StoredSecret(1, hashed, digest if with_digest else None, pepper_id if with_digest else None)

    async def decide(tx: Transaction) -> Decided[None]:
        token = replace(a_token(secret.subject_id, account_id, tx.now), grants=grants, **fields)  # type: ignore[arg-type]
        await tokens.insert(tx, token, stored, "operator:tester")
        subject = f"token:{secret.subject_id}"
        return Decided(None, change_of(subject, account_id), event_of(subject, account_id=account_id))

    await changes.commit(database, decide, accounts=[account_id])
    return secret


async def revoke(database: Database, account_id: str, token_id: str) -> int:
    """Revokes a token; the change's number."""

    async def decide(tx: Transaction) -> Decided[None]:
        await tokens.revoke(tx, token_id, "")
        subject = f"token:{token_id}"
        return Decided(None, change_of(subject, account_id), event_of(subject, account_id=account_id))

    return (await changes.commit(database, decide, accounts=[account_id])).revision.number


async def put_project(database: Database, account_id: str, project_id: str) -> int:
    """Makes a project; the change's number."""

    async def decide(tx: Transaction) -> Decided[None]:
        await accounts.upsert_project(tx, account_id, project_id, project_id)
        subject = f"project:{project_id}"
        return Decided(None, change_of(subject, account_id), event_of(subject, account_id=account_id))

    return (await changes.commit(database, decide, accounts=[account_id])).revision.number
