"""Operators: the first ones of a new deployment, and those made on the database without a server (design section 9)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from doorward.core.secret import Secret, SecretKind, generate, new_id
from doorward_server.credentials.bcrypt_calls import Bcrypt
from doorward_server.model import AuditEvent, Change, Operator, OperatorRole, Page, StoredSecret
from doorward_server.storage import operators
from doorward_server.storage.changes import Decided, Transaction, commit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doorward.core.revision import Revision
    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.storage.pool import Database

__all__ = ["NewOperator", "create_operators", "has_operators", "new_operator"]

# Who stands in the audit for what is done on the database itself.
DIRECT_ACTOR: Final = "direct"


class NewOperator:
    """An operator that is to be made, with its secret and what is stored of that."""

    __slots__ = ("display_name", "role", "secret", "stored")

    def __init__(self, role: OperatorRole, display_name: str, secret: Secret, stored: StoredSecret) -> None:
        self.role = role
        self.display_name = display_name
        self.secret = secret
        self.stored = stored


def new_operator(ring: PepperRing, role: OperatorRole, display_name: str, secret: Secret | None = None) -> NewOperator:
    """Makes a secret, unless one is given, and hashes it: 50 ms of this thread."""
    own = generate(SecretKind.OPERATOR, new_id()) if secret is None else secret
    pepper_id, digest = ring.digest(own.reveal())
    stored = StoredSecret(version=1, bcrypt_hash=Bcrypt().hash(own), digest=digest, pepper_id=pepper_id)
    return NewOperator(role, display_name, own, stored)


async def has_operators(database: Database) -> bool:
    """Whether any operator was ever made here."""
    async with database.reading() as connection:
        return bool(await operators.list_page(connection, Page(1)))


async def create_operators(database: Database, wanted: Sequence[NewOperator]) -> Revision:
    """Makes them all in one change, or none; done on the database itself, without a caller."""

    async def decide(transaction: Transaction) -> Decided[None]:
        for new in wanted:
            await operators.insert(transaction, _record(new, transaction.now), new.stored)
        subjects = tuple(f"operator:{new.secret.subject_id}" for new in wanted)
        event = AuditEvent(
            actor=DIRECT_ACTOR,
            action="CreateOperator",
            subject=", ".join(subjects),
            account_id=None,
            after={"operators": [{"role": new.role.name, "display_name": new.display_name} for new in wanted]},
        )
        return Decided(None, Change("CreateOperator", None, subjects), event)

    committed = await commit(database, decide)
    return committed.revision


def _record(new: NewOperator, now: datetime) -> Operator:
    return Operator(
        operator_id=new.secret.subject_id,
        role=new.role,
        display_name=new.display_name,
        create_time=now.astimezone(UTC),
        expire_time=None,
        revoke_time=None,
        revision=0,
    )
