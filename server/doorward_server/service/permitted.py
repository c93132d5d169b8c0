"""Which tokens may do this now (contract: Authorizer.ListTokensWithPermission).

A page is read in one snapshot of the database: the resource's account, its plan, the catalog, the tokens. A check that was
asked at that moment would say yes for exactly these: live tokens of an active account, with a grant that the plan covers.
Expiry is decided by the latest time that the database can show, as a check decides it. What was read belongs to the history
that this replica has applied, and all of it is applied before the page is shown: the rule for loads (design section 7).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from doorward.core.catalog import Level
from doorward.core.revision import Revision
from doorward_server.errors import InvalidArgument, NotFound, Unavailable, Violation
from doorward_server.model import AccountState
from doorward_server.service.accounts import account_not_found
from doorward_server.service.authorize import no_lease
from doorward_server.service.delegation import may_see
from doorward_server.service.freshness import Demand
from doorward_server.service.shown import Shown
from doorward_server.storage import accounts, changes, token_permissions, tokens
from doorward_server.storage.snapshot import snapshot
from doorward_server.storage.token_lists import FoundTokens

if TYPE_CHECKING:
    from doorward.core.catalog import Catalog, Permission
    from doorward_server.model import Account, Caller, Page
    from doorward_server.replica.holding import Holding
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.service.freshness import Freshness
    from doorward_server.storage.changes import LogEnd
    from doorward_server.storage.connect import Connection
    from doorward_server.storage.pool import Database

__all__ = ["Permitted", "PermittedPage", "Question"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Question(NamedTuple):
    """A permission by name, and the account or the project that it is wanted on; one of them, as its level wants."""

    permission: str
    account_id: str | None
    project_id: str | None


@dataclass(frozen=True, slots=True)
class PermittedPage:
    """A page of tokens, the position in the log that it was read at, and where the next begins; None: this was the last.

    It may be shown as long as the lease is good that ends at `end_ns`, which was captured before anything was read.
    """

    shown: Shown
    next_key: tuple[str, ...] | None
    revision: Revision
    end_ns: int


class Permitted:
    """The use case."""

    def __init__(self, database: Database, catalogs: Catalogs, holding: Holding, freshness: Freshness) -> None:
        self._database = database
        self._catalogs = catalogs
        self._holding = holding
        self._freshness = freshness

    async def list_tokens(self, caller: Caller, question: Question, page: Page, until_ns: int | None) -> PermittedPage:
        """One page of the tokens that may do it; it may be short, even empty, without being the last.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND, PROJECT_NOT_FOUND; to a token also of another account.
            InvalidArgument: INVALID_FIELDS, the catalog no longer has the permission.
            Unavailable: NO_LEASE; DATABASE_UNAVAILABLE.
        """
        holding = self._holding
        end_ns = holding.capture()
        if end_ns is None:
            raise no_lease()
        applied, generation = holding.applied, holding.history.generation
        async with snapshot(self._database) as connection:
            read_at = await changes.read_end(connection)
            account = await _account_of(connection, caller, question)
            catalog = await self._catalogs.now(connection)
            now = _EPOCH + timedelta(microseconds=holding.latest_us())
            found = await _find(connection, account, catalog, question, page, now)
            records = await tokens.read_many(connection, [token.token_id for token in found.tokens])
        await self._settle(read_at, applied, generation, until_ns)
        revision = Revision(read_at.epoch, read_at.number)
        return PermittedPage(Shown(records, catalog, account.plan, now), found.next_key, revision, end_ns)

    async def _settle(self, read_at: LogEnd, applied: int, generation: int, until_ns: int | None) -> None:
        """Returns once everything up to the page's moment is applied here, so that its caller too is seen as of then.

        Raises:
            Unavailable: DATABASE_UNAVAILABLE, it was read from another history than the one applied here.
        """
        history = self._holding.history
        if read_at.epoch == history.epoch:
            await self._freshness.reached(Demand(at_least=Revision(read_at.epoch, read_at.number)), until_ns)
        is_foreign = history.contradicts(read_at.epoch, read_at.number, read_at.nonce, not_below=applied)
        if is_foreign or history.generation != generation:
            await self._database.expire()
            raise Unavailable("DATABASE_UNAVAILABLE", "the database has changed hands; try again")


async def _account_of(connection: Connection, caller: Caller, question: Question) -> Account:
    """The account of the resource, which exists for the caller."""
    account_id = question.account_id
    if question.project_id is not None:
        project = await accounts.read_project(connection, question.project_id)
        if project is None or not may_see(caller, project.account_id):
            raise _project_not_found(question.project_id)
        account_id = project.account_id
    assert account_id is not None  # noqa: S101 - a question names one of the two
    account = await accounts.read(connection, account_id) if may_see(caller, account_id) else None
    if account is None:
        raise account_not_found(account_id)
    return account


async def _find(
    connection: Connection, account: Account, catalog: Catalog, question: Question, page: Page, now: datetime
) -> FoundTokens:
    permission = catalog.find_permission(question.permission)
    wanted = Level.ACCOUNT if question.project_id is None else Level.PROJECT
    if permission is None or permission.level is not wanted:
        raise _vanished()
    if account.state is not AccountState.ACTIVE:
        return FoundTokens((), None)
    scopes = [token_permissions.ALL_PROJECTS, *([] if question.project_id is None else [question.project_id])]
    sets = _sets_with(permission, catalog, account.plan)
    return await token_permissions.find_holders(connection, account.account_id, sets, scopes, page, now)


def _sets_with(permission: Permission, catalog: Catalog, plan: str) -> list[str]:
    """The sets that hold the permission and that the plan covers: a grant of any other gives it to nobody."""
    return [
        permission_set.name
        for permission_set in catalog.permission_sets.values()
        if catalog.covers(plan, permission_set.name)
        and permission.bit
        & (permission_set.account_mask if permission.level is Level.ACCOUNT else permission_set.project_mask)
    ]


def _project_not_found(project_id: str) -> NotFound:
    """One sentence for every project that does not exist or that the caller may not see."""
    return NotFound("PROJECT_NOT_FOUND", f"there is no project {project_id!r}", metadata={"project_id": project_id})


def _vanished() -> InvalidArgument:
    """It was there, or of another level, when the request was looked at."""
    text = "is not in the catalog any more, or on the other level: the catalog was changed a moment ago"
    return InvalidArgument.of((Violation("permission", text, "PERMISSION_UNKNOWN"),))
