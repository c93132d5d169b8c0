"""Issuing a token (contract: TokenAdmin.IssueToken): the whole token in one call, and the only time its secret is seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from doorward.core.secret import Secret, new_id
from doorward_server.errors import Exhausted, FailedPrecondition, Violation
from doorward_server.model import Account, AccountState, Change, Grant, StoredSecret, Token
from doorward_server.service.accounts import live_account, require_seen
from doorward_server.service.delegation import may_see, token_not_found
from doorward_server.service.grants import GrantRules, grant_violations, named_projects, settled_grants
from doorward_server.service.idempotency import Told
from doorward_server.service.shown import Shown
from doorward_server.service.token_mutations import require_not_revoked
from doorward_server.service.tokens import database_now
from doorward_server.storage import accounts, tokens
from doorward_server.storage.changes import Decided, Transaction, commit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from doorward_server.model import Caller, Json
    from doorward_server.service.callers import Callers
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.service.context import Request
    from doorward_server.service.delegation import Authority
    from doorward_server.service.idempotency import Idempotency, Repeatable, RequestId
    from doorward_server.service.mutations import Done, Mutations
    from doorward_server.service.new_secrets import NewSecret, NewSecrets
    from doorward_server.storage.changes import Committed
    from doorward_server.storage.pool import Database

__all__ = ["Issue", "IssueToken", "Issued", "described"]

FIRST_VERSION: Final = 1
_TRIED: Final = StoredSecret(version=FIRST_VERSION, bcrypt_hash="$validated$", digest=None, pepper_id=None)


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
        new_secrets: NewSecrets,
        idempotency: Idempotency,
        *,
        max_live_tokens: int,
    ) -> None:
        self._database = database
        self._mutations = mutations
        self._callers = callers
        self._catalogs = catalogs
        self._new_secrets = new_secrets
        self._idempotency = idempotency
        self._max_live_tokens = max_live_tokens

    async def issue_token(
        self, request: Request, wanted: IssueToken, request_id: RequestId | None = None
    ) -> Done[Issued]:
        """Issues the token, or with `request.validate_only` checks everything and leaves nothing behind.

        A repeat of what has the same `request_id` issues nothing and is answered as the first one was.
        """
        require_seen(request.caller, wanted.account_id)
        token_id, repeatable = new_id(), self._idempotency.repeatable(request, request_id)
        if request.validate_only:
            # Neither a secret nor the time of a bcrypt: the row that is tried is rolled back.
            return await self._mutations.validate(lambda: self._commit(request, wanted, token_id, None, repeatable))
        new = await self._new_secrets.make(token_id)
        return await self._mutations.run(
            lambda: self._commit(request, wanted, token_id, new, repeatable), request.until_ns
        )

    async def further_violations(self, caller: Caller, wanted: IssueToken) -> list[Violation]:
        """What else is wrong with a request whose shape is wrong already: read without locks, so that one answer tells all."""
        if not may_see(caller, wanted.account_id):
            return []
        async with self._database.reading() as connection:
            account = await accounts.read(connection, wanted.account_id)
            if account is None:
                return []
            catalog = await self._catalogs.now(connection)
            own = await accounts.find_projects(connection, wanted.account_id, sorted(named_projects(wanted.grants)))
            now = await database_now(connection)
        return grant_violations(wanted.grants, GrantRules(account, catalog, own)) + _expiry_violations(wanted, now)

    async def _commit(
        self,
        request: Request,
        wanted: IssueToken,
        token_id: str,
        new: NewSecret | None,
        repeatable: Repeatable | None,
    ) -> Committed[Issued]:
        async def decide(transaction: Transaction) -> Decided[Issued]:
            catalog = await self._catalogs.of(transaction)
            authority = await self._callers.authority(transaction, request, catalog)
            account = await live_account(transaction, wanted.account_id)
            told = None if repeatable is None else await repeatable.find(transaction)
            if told is not None:
                return await _repeated(request, transaction, authority, account, told)
            token = await self._judged(request, wanted, token_id, transaction, authority, account)
            stored = _TRIED if new is None else new.stored(FIRST_VERSION)
            await tokens.insert(transaction, token, stored, issued_to=request.caller.actor)
            if repeatable is not None and new is not None:
                await repeatable.keep(transaction, Told(new.secret, FIRST_VERSION))
            subject = f"token:{token_id}"
            event = request.audit_event("IssueToken", subject, wanted.account_id, after=described(token))
            issued = Issued(Shown([token], catalog, account.plan, transaction.now), None if new is None else new.secret)
            return Decided(issued, Change("IssueToken", wanted.account_id, (subject,)), event, catalog.version)

        committed = await commit(
            self._database,
            decide,
            accounts=(wanted.account_id,),
            operators_share=request.operators_share,
            dry_run=request.validate_only,
        )
        if not committed.changed or request.validate_only:
            return committed
        shown = committed.value.shown.at_revision(committed.revision.number)
        return replace(committed, value=replace(committed.value, shown=shown))

    async def _judged(
        self,
        request: Request,
        wanted: IssueToken,
        token_id: str,
        transaction: Transaction,
        authority: Authority,
        account: Account,
    ) -> Token:
        """The token as it would be, if all that is read under the locks allows it."""
        self._require_room(account)
        own = await accounts.find_projects(
            transaction.connection, wanted.account_id, sorted(named_projects(wanted.grants))
        )
        too_late = _expiry_violations(wanted, transaction.now)
        grants = settled_grants(wanted.grants, GrantRules(account, authority.catalog, own), too_late)
        token = _new_token(request, wanted, token_id, grants, transaction.now)
        authority.require_within(token)
        return token

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


async def _repeated(
    request: Request, transaction: Transaction, authority: Authority, account: Account, told: Told
) -> Decided[Issued]:
    """What was issued before, as it is now, if its caller may still have it."""
    token_id = told.secret.subject_id
    token = await tokens.read(transaction.connection, token_id)
    if token is None:
        raise token_not_found(token_id)
    require_not_revoked(token)
    authority.require_within(token)
    event = request.audit_event("IssueToken", f"token:{token_id}", account.account_id)
    shown = Shown([token], authority.catalog, account.plan, transaction.now)
    issued = Issued(shown, None if request.validate_only else told.secret)
    return Decided(issued, None, event, authority.catalog.version)


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
        ordinal=0,
        revision=0,
    )
