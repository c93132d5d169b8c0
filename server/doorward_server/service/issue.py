"""Issuing a token (contract: TokenAdmin.IssueToken): the whole token in one call, and the only time its secret is seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from doorward.core.secret import Secret, SecretKind, generate, new_id
from doorward_server.errors import Exhausted, FailedPrecondition, Violation
from doorward_server.model import Account, AccountState, Change, Grant, StoredSecret, Token
from doorward_server.service.accounts import live_account
from doorward_server.service.grants import grant_violations, named_projects, settled_grants
from doorward_server.service.mutations import Done
from doorward_server.service.shown import Shown
from doorward_server.service.tokens import database_now
from doorward_server.storage import accounts, tokens
from doorward_server.storage.changes import Decided, Transaction, commit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from doorward_server.credentials.hashing import Hasher
    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.model import Json
    from doorward_server.service.callers import Callers
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Mutations
    from doorward_server.storage.changes import Committed
    from doorward_server.storage.pool import Database

__all__ = ["Issue", "IssueToken", "Issued", "described"]


@dataclass(frozen=True, slots=True)
class IssueToken:
    """The token that is wanted. At most one of `expire_time` and `ttl` is set; neither means that it never expires."""

    account_id: str
    display_name: str
    description: str
    labels: Mapping[str, str]
    grants: tuple[Grant, ...]
    expire_time: datetime | None
    ttl: timedelta | None
    allow_self_rotation: bool


@dataclass(frozen=True, slots=True)
class Issued:
    """The new token and its secret; no secret if it was only validated."""

    shown: Shown
    secret: Secret | None


class Issue:
    """The use case."""

    def __init__(
        self,
        database: Database,
        mutations: Mutations,
        callers: Callers,
        catalogs: Catalogs,
        ring: PepperRing,
        hasher: Hasher,
        *,
        max_live_tokens: int,
    ) -> None:
        self._database = database
        self._mutations = mutations
        self._callers = callers
        self._catalogs = catalogs
        self._ring = ring
        self._hasher = hasher
        self._max_live_tokens = max_live_tokens

    async def issue_token(self, request: Request, wanted: IssueToken) -> Done[Issued]:
        """Issues the token, or with `request.validate_only` checks everything and leaves nothing behind."""
        if request.validate_only:
            # Neither a secret nor the time of a bcrypt: the row that is tried is rolled back.
            tried = StoredSecret(version=1, bcrypt_hash="$validated$", digest=None, pepper_id=None)
            done = await self._mutations.validate(lambda: self._commit(request, wanted, new_id(), tried, dry_run=True))
            return _with_secret(done, None)
        token_id = new_id()
        secret = generate(SecretKind.TOKEN, token_id)
        stored = await self._stored(secret)
        done = await self._mutations.run(lambda: self._commit(request, wanted, token_id, stored), request.until_ns)
        return _with_secret(done, secret)

    async def further_violations(self, wanted: IssueToken) -> list[Violation]:
        """What else is wrong with a request whose shape is wrong already: read without locks, so that one answer tells all."""
        async with self._database.reading() as connection:
            account = await accounts.read(connection, wanted.account_id)
            if account is None:
                return []
            catalog = await self._catalogs.now(connection)
            own = await accounts.find_projects(connection, wanted.account_id, sorted(named_projects(wanted.grants)))
            now = await database_now(connection)
        return grant_violations(wanted.grants, account, catalog, own) + _expiry_violations(wanted, now)

    async def _stored(self, secret: Secret) -> StoredSecret:
        bcrypt_hash = await self._hasher.hash(secret)
        pepper_id, digest = self._ring.digest(secret.reveal())
        return StoredSecret(version=1, bcrypt_hash=bcrypt_hash, digest=digest, pepper_id=pepper_id)

    async def _commit(
        self, request: Request, wanted: IssueToken, token_id: str, stored: StoredSecret, *, dry_run: bool = False
    ) -> Committed[Shown]:
        async def decide(transaction: Transaction) -> Decided[Shown]:
            await self._callers.recheck(transaction, request.caller)
            account = await live_account(transaction, wanted.account_id)
            self._require_room(account)
            catalog = await self._catalogs.of(transaction)
            own = await accounts.find_projects(
                transaction.connection, wanted.account_id, sorted(named_projects(wanted.grants))
            )
            too_late = _expiry_violations(wanted, transaction.now)
            grants = settled_grants(wanted.grants, account, catalog, own, too_late)
            token = _new_token(request, wanted, token_id, grants, transaction.now)
            await tokens.insert(transaction, token, stored, issued_to=request.caller.actor)
            subject = f"token:{token_id}"
            event = request.audit_event("IssueToken", subject, wanted.account_id, after=described(token))
            shown = Shown([token], catalog, account.plan, transaction.now)
            return Decided(shown, Change("IssueToken", wanted.account_id, (subject,)), event, catalog.version)

        return await commit(
            self._database,
            decide,
            accounts=(wanted.account_id,),
            operators_share=request.operators_share,
            dry_run=dry_run,
        )

    def _require_room(self, account: Account) -> None:
        if account.state is not AccountState.ACTIVE:
            raise FailedPrecondition(
                "ACCOUNT_NOT_ACTIVE",
                f"account {account.account_id!r} is suspended; resume it before a token is issued",
                metadata={"account_id": account.account_id},
            )
        if account.live_tokens >= self._max_live_tokens:
            raise Exhausted(
                "TOO_MANY_LIVE_TOKENS",
                f"account {account.account_id!r} has {account.live_tokens} tokens that are not revoked, "
                f"and may have {self._max_live_tokens}; revoke some",
                metadata={"account_id": account.account_id, "limit": str(self._max_live_tokens)},
            )


def described(token: Token) -> dict[str, Json]:
    """A token as the audit shows it: everything but what proves it."""
    return {
        "display_name": token.display_name,
        "description": token.description,
        "labels": dict(token.labels),
        "grants": [
            {
                "permission_set": grant.permission_set,
                "project_ids": None if grant.project_ids is None else list(grant.project_ids),
            }
            for grant in token.grants
        ],
        "allow_self_rotation": token.allow_self_rotation,
        "expire_time": None if token.expire_time is None else token.expire_time.isoformat(),
    }


def _expiry_violations(wanted: IssueToken, now: datetime) -> list[Violation]:
    if wanted.expire_time is None or wanted.expire_time > now:
        return []
    text = f"must be later than now, {now.isoformat()} at the database"
    return [Violation("expire_time", text, "FIELD_OUT_OF_RANGE")]


def _new_token(request: Request, wanted: IssueToken, token_id: str, grants: tuple[Grant, ...], now: datetime) -> Token:
    return Token(
        token_id=token_id,
        account_id=wanted.account_id,
        display_name=wanted.display_name,
        description=wanted.description,
        labels=wanted.labels,
        grants=grants,
        allow_self_rotation=wanted.allow_self_rotation,
        disabled=False,
        create_time=now,
        update_time=now,
        expire_time=wanted.expire_time if wanted.ttl is None else now + wanted.ttl,
        revoke_time=None,
        revoke_reason="",
        created_by=request.caller.actor,
        create_revision=0,
        revision=0,
    )


def _with_secret(done: Done[Shown], secret: Secret | None) -> Done[Issued]:
    shown = done.value
    if done.propagation is not None:
        shown = shown.at_revision(done.propagation.revision.number, created=True)
    return Done(Issued(shown, secret), done.propagation)
