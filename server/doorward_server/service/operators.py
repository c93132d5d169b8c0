"""Operators: created, listed, revoked (contract: SystemAdmin), and made on the database without a server (design section 9)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from doorward.core.secret import Secret, SecretKind, generate, new_id
from doorward_server.credentials.bcrypt_calls import Bcrypt
from doorward_server.errors import InvalidArgument, NotFound, Violation
from doorward_server.model import AuditEvent, Change, Operator, OperatorRole, StoredSecret
from doorward_server.service.mutations import Done
from doorward_server.service.tokens import database_now
from doorward_server.storage import operators
from doorward_server.storage.changes import Decided, Transaction, commit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from doorward.core.revision import Revision
    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.model import Json, Page
    from doorward_server.service.administration import Administration
    from doorward_server.service.context import Request
    from doorward_server.service.new_secrets import NewSecrets
    from doorward_server.storage.pool import Database

__all__ = [
    "CreateOperator",
    "CreatedOperator",
    "NewOperator",
    "Operators",
    "create_operators",
    "has_operators",
    "new_operator",
]

# Who stands in the audit for what is done on the database itself.
DIRECT_ACTOR: Final = "direct"


@dataclass(frozen=True, slots=True)
class CreateOperator:
    """The operator that is wanted. At most one of `expire_time` and `ttl` is set; neither means that it never expires."""

    role: OperatorRole
    display_name: str
    expire_time: datetime | None
    ttl: timedelta | None


@dataclass(frozen=True, slots=True)
class CreatedOperator:
    """The new operator and its credential; no credential if it was only validated."""

    operator: Operator
    secret: Secret | None


class Operators:
    """The use cases."""

    def __init__(self, database: Database, administration: Administration, new_secrets: NewSecrets) -> None:
        self._database = database
        self._administration = administration
        self._new_secrets = new_secrets

    async def create(self, request: Request, wanted: CreateOperator) -> Done[CreatedOperator]:
        """Creates the operator, or with `request.validate_only` checks everything and leaves nothing behind.

        Raises:
            InvalidArgument: FIELD_OUT_OF_RANGE, an expiry that has passed.
            Exhausted: HASHING_BUSY.
        """
        if request.validate_only:
            # Neither a secret nor the time of a bcrypt: the row that is tried is rolled back.
            tried = StoredSecret(version=1, bcrypt_hash="$validated$", digest=None, pepper_id=None)
            return _with_secret(await self._create(request, wanted, new_id(), tried), None)
        new = await self._new_secrets.make(new_id(), SecretKind.OPERATOR)
        done = await self._create(request, wanted, new.secret.subject_id, new.stored(1))
        return _with_secret(done, new.secret)

    async def expiry_violations(self, expire_time: datetime | None) -> list[Violation]:
        """Whether that time has passed, of a request that is wrong already: read without locks, so that one answer tells all."""
        async with self._database.reading() as connection:
            return _expiry_violations(expire_time, await database_now(connection))

    async def list_operators(self, role: OperatorRole | None, page: Page, *, include_inactive: bool) -> list[Operator]:
        """One page of operators, newest first. The key of a row, for `Page.after`: `(create_time.isoformat(), operator_id)`."""
        async with self._database.reading() as connection:
            return await operators.list_page(connection, page, role=role, include_inactive=include_inactive)

    async def revoke(self, request: Request, operator_id: str, reason: str) -> Done[Operator]:
        """Revokes the operator's credential for good, also one's own; a repeat changes nothing and waits again.

        Raises:
            NotFound: OPERATOR_NOT_FOUND.
        """

        async def decide(transaction: Transaction) -> Decided[Operator]:
            before = await operators.read(transaction.connection, operator_id)
            if before is None:
                raise _operator_not_found(operator_id)
            subject = f"operator:{operator_id}"
            if not await operators.revoke(transaction, operator_id):
                return Decided(before, None, request.audit_event("RevokeOperator", subject, None))
            event = request.audit_event(
                "RevokeOperator",
                subject,
                None,
                before={"state": "live"},
                after={"state": "revoked", "reason": reason},
            )
            after = before if request.validate_only else replace(before, revoke_time=transaction.now)
            return Decided(after, Change("RevokeOperator", None, (subject,)), event)

        return await self._administration.run(request, decide, operators_update=(operator_id,))

    async def _create(
        self, request: Request, wanted: CreateOperator, operator_id: str, stored: StoredSecret
    ) -> Done[Operator]:
        async def decide(transaction: Transaction) -> Decided[Operator]:
            now = transaction.now
            too_late = _expiry_violations(wanted.expire_time, now)
            if too_late:
                raise InvalidArgument.of(tuple(too_late))
            operator = Operator(
                operator_id=operator_id,
                role=wanted.role,
                display_name=wanted.display_name,
                create_time=now,
                expire_time=wanted.expire_time if wanted.ttl is None else now + wanted.ttl,
                revoke_time=None,
                revision=0,
            )
            await operators.insert(transaction, operator, stored)
            subject = f"operator:{operator_id}"
            event = request.audit_event("CreateOperator", subject, None, after=_described(operator))
            return Decided(operator, Change("CreateOperator", None, (subject,)), event)

        return await self._administration.run(request, decide)


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
        return await operators.exists(connection)


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


def _described(operator: Operator) -> dict[str, Json]:
    return {
        "role": operator.role.name,
        "display_name": operator.display_name,
        "expire_time": None if operator.expire_time is None else operator.expire_time.isoformat(),
    }


def _expiry_violations(expire_time: datetime | None, now: datetime) -> list[Violation]:
    if expire_time is None or expire_time > now:
        return []
    text = f"must be later than now, {now.isoformat()} at the database"
    return [Violation("expire_time", text, "FIELD_OUT_OF_RANGE")]


def _with_secret(done: Done[Operator], secret: Secret | None) -> Done[CreatedOperator]:
    return Done(CreatedOperator(done.value, secret), done.propagation)


def _operator_not_found(operator_id: str) -> NotFound:
    return NotFound(
        "OPERATOR_NOT_FOUND", f"there is no operator {operator_id!r}", metadata={"operator_id": operator_id}
    )
