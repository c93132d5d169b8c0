"""Updating a token in place (contract: TokenAdmin.UpdateToken): its id and its secrets stay.

Whoever updates must hold what the token is *and* what it becomes, in full (design section 5): else a narrow caller could
take away what it may not give, or keep alive what it may not hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from doorward_server.errors import InvalidArgument, Violation
from doorward_server.service.delegation import may_see
from doorward_server.service.etags import require_etag
from doorward_server.service.grants import GrantRules, grant_violations, named_projects, settled_grants
from doorward_server.service.issue import described
from doorward_server.service.token_mutations import Outcome, require_not_revoked
from doorward_server.service.tokens import database_now
from doorward_server.storage import accounts, token_changes, tokens

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from doorward.core.catalog import Catalog
    from doorward_server.model import Account, Caller, Grant, Json, Token
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done
    from doorward_server.service.shown import Shown
    from doorward_server.service.token_mutations import Standing, TokenMutations
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["Update", "UpdateToken"]


@dataclass(frozen=True, slots=True)
class UpdateToken:
    """What a token shall be, as far as `paths`, names of the fields below, name it; whatever else stands here is ignored.

    `etag` empty: whatever it was until now.
    """

    token_id: str
    etag: str
    paths: frozenset[str]
    display_name: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    grants: tuple[Grant, ...] = ()
    expire_time: datetime | None = None
    allow_self_rotation: bool = False

    def applied_to(self, token: Token, grants: tuple[Grant, ...]) -> Token:
        """The token with what is named replaced whole; `grants` in place of its own, if they are named."""
        values: dict[str, Any] = {path: getattr(self, path) for path in self.paths}
        if "grants" in values:
            values["grants"] = grants
        return replace(token, **values)


class Update:
    """The use case."""

    def __init__(self, database: Database, catalogs: Catalogs, mutations: TokenMutations) -> None:
        self._database = database
        self._catalogs = catalogs
        self._mutations = mutations

    async def update_token(self, request: Request, wanted: UpdateToken) -> Done[Shown]:
        """Updates what `wanted` names; if nothing of it differs, changes nothing and waits all the same.

        Raises:
            NotFound: TOKEN_NOT_FOUND.
            FailedPrecondition: TOKEN_IS_REVOKED, ACCOUNT_DELETED, PERMISSION_SET_NOT_IN_PLAN.
            Aborted: ETAG_MISMATCH.
            PermissionDenied: EXCEEDS_CALLER, by what the token is or by what it would become.
            InvalidArgument: INVALID_FIELDS.
        """

        async def decide(standing: Standing) -> Outcome:
            token, transaction = standing.token, standing.transaction
            require_not_revoked(token)
            require_etag(wanted.etag, token.revision)
            standing.authority.require_within(token)
            rules = await _rules(transaction.connection, wanted, token, standing.account, standing.catalog)
            too_late = _expiry_violations(wanted, token, transaction.now)
            after = wanted.applied_to(token, _settled(wanted, rules, too_late))
            standing.authority.require_within(after)
            if after == token:
                return Outcome(None)
            after = replace(after, update_time=transaction.now)
            await token_changes.update(transaction, after)
            return Outcome(after, *_differences(token, after))

        return await self._mutations.run(request, "UpdateToken", wanted.token_id, decide)

    async def further_violations(self, caller: Caller, wanted: UpdateToken) -> list[Violation]:
        """What else is wrong with a request whose shape is wrong already: read without locks, so that one answer tells all."""
        async with self._database.reading() as connection:
            token = await tokens.read(connection, wanted.token_id)
            if token is None or not may_see(caller, token.account_id):
                return []
            account = await accounts.read(connection, token.account_id)
            if account is None:
                return []
            catalog = await self._catalogs.now(connection)
            rules = await _rules(connection, wanted, token, account, catalog)
            now = await database_now(connection)
        wrong = grant_violations(wanted.grants, rules) if "grants" in wanted.paths else []
        return wrong + _expiry_violations(wanted, token, now)


async def _rules(
    connection: Connection, wanted: UpdateToken, token: Token, account: Account, catalog: Catalog
) -> GrantRules:
    own = await accounts.find_projects(connection, account.account_id, sorted(named_projects(wanted.grants)))
    return GrantRules(account, catalog, own, held=token.grants, field="token.grants")


def _settled(wanted: UpdateToken, rules: GrantRules, also_wrong: list[Violation]) -> tuple[Grant, ...]:
    if "grants" in wanted.paths:
        return settled_grants(wanted.grants, rules, also_wrong)
    if also_wrong:
        raise InvalidArgument.of(tuple(also_wrong))
    return ()


def _expiry_violations(wanted: UpdateToken, token: Token, now: datetime) -> list[Violation]:
    """An expiry that is given anew lies ahead; one that stays may have passed, as in a repeat."""
    given = wanted.expire_time if "expire_time" in wanted.paths else None
    if given is None or given > now or given == token.expire_time:
        return []
    text = f"must be later than now, {now.isoformat()} at the database"
    return [Violation("token.expire_time", text, "FIELD_OUT_OF_RANGE")]


def _differences(before: Token, after: Token) -> tuple[dict[str, Json], dict[str, Json]]:
    """The fields that differ, as they were and as they are."""
    was, is_now = described(before), described(after)
    changed = [name for name in was if was[name] != is_now[name]]
    return {name: was[name] for name in changed}, {name: is_now[name] for name in changed}
