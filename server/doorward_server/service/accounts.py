"""Accounts and their projects (contract: AccountAdmin)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from doorward_server.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Violation
from doorward_server.model import Account, AccountState, Change, Page, Project
from doorward_server.storage import accounts
from doorward_server.storage.changes import Committed, Decided, Transaction, commit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from doorward.core.catalog import Catalog
    from doorward_server.model import Json
    from doorward_server.service.callers import Callers
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done, Mutations
    from doorward_server.storage.pool import Database

__all__ = ["Accounts", "PutAccount", "PutProject", "account_not_found", "live_account"]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PutAccount:
    """What an account shall be."""

    account_id: str
    display_name: str
    plan: str


@dataclass(frozen=True, slots=True)
class PutProject:
    """What a project shall be. It belongs to its account for good."""

    account_id: str
    project_id: str
    display_name: str


def account_not_found(account_id: str) -> NotFound:
    """One sentence for every unknown account."""
    return NotFound("ACCOUNT_NOT_FOUND", f"there is no account {account_id!r}", metadata={"account_id": account_id})


async def live_account(transaction: Transaction, account_id: str) -> Account:
    """The account, which `commit` has locked.

    Raises:
        NotFound: ACCOUNT_NOT_FOUND.
        FailedPrecondition: ACCOUNT_DELETED.
    """
    account = await accounts.read(transaction.connection, account_id)
    if account is None:
        raise account_not_found(account_id)
    if account.state is AccountState.DELETED:
        raise account_deleted(account_id)
    return account


def account_deleted(account_id: str) -> FailedPrecondition:
    """A deleted account stays deleted, and so does its id."""
    return FailedPrecondition(
        "ACCOUNT_DELETED",
        f"account {account_id!r} is deleted; its id is never used again",
        metadata={"account_id": account_id},
    )


class Accounts:
    """The use cases of accounts and projects."""

    def __init__(self, database: Database, mutations: Mutations, callers: Callers, catalogs: Catalogs) -> None:
        self._database = database
        self._mutations = mutations
        self._callers = callers
        self._catalogs = catalogs

    async def put_account(self, request: Request, wanted: PutAccount) -> Done[Account]:
        """Creates the account, or changes its name and plan; a repeat changes nothing and waits again."""

        async def decide(transaction: Transaction) -> Decided[Account]:
            await self._callers.recheck(transaction, request.caller)
            catalog = await self._catalogs.of(transaction)
            if catalog.find_plan(wanted.plan) is None:
                raise InvalidArgument.of((_unknown_plan(wanted.plan, catalog),))
            before = await accounts.read(transaction.connection, wanted.account_id)
            if before is not None and before.state is AccountState.DELETED:
                raise account_deleted(wanted.account_id)
            subject = f"account:{wanted.account_id}"
            same = before is not None and (before.display_name, before.plan) == (wanted.display_name, wanted.plan)
            if before is not None and same:
                event = request.audit_event("PutAccount", subject, wanted.account_id)
                return Decided(before, None, event, catalog.version)
            after = await accounts.upsert_account(
                transaction, before, wanted.account_id, wanted.display_name, wanted.plan
            )
            event = request.audit_event(
                "PutAccount", subject, wanted.account_id, before=_described(before), after=_described(after)
            )
            return Decided(after, Change("PutAccount", wanted.account_id, (subject,)), event, catalog.version)

        return await self._run(request, wanted.account_id, decide, stamped=_at_revision)

    async def further_violations(self, wanted: PutAccount) -> list[Violation]:
        """What else is wrong with a request whose shape is wrong already: read without locks, so that one answer tells all."""
        async with self._database.reading() as connection:
            catalog = await self._catalogs.now(connection)
        return [] if catalog.find_plan(wanted.plan) else [_unknown_plan(wanted.plan, catalog)]

    async def put_project(self, request: Request, wanted: PutProject) -> Done[Project]:
        """Creates the project, or changes its name; a repeat changes nothing and waits again."""

        async def decide(transaction: Transaction) -> Decided[Project]:
            await self._callers.recheck(transaction, request.caller)
            await live_account(transaction, wanted.account_id)
            before = await accounts.read_project(transaction.connection, wanted.project_id)
            if before is not None and before.account_id != wanted.account_id:
                raise _project_taken(wanted.project_id)
            subject = f"project:{wanted.project_id}"
            if before is not None and before.display_name == wanted.display_name:
                event = request.audit_event("PutProject", subject, wanted.account_id)
                return Decided(before, None, event)
            after = await accounts.upsert_project(
                transaction, wanted.account_id, wanted.project_id, wanted.display_name
            )
            if after is None:
                # Another account made it since it was read.
                raise _project_taken(wanted.project_id)
            names: tuple[Json, Json] = (before.display_name if before else None, after.display_name)
            event = request.audit_event(
                "PutProject",
                subject,
                wanted.account_id,
                before={"display_name": names[0]} if before else None,
                after={"display_name": names[1]},
            )
            return Decided(after, Change("PutProject", wanted.account_id, (subject,)), event)

        return await self._run(request, wanted.account_id, decide)

    async def _run(
        self,
        request: Request,
        account_id: str,
        decide: Callable[[Transaction], Awaitable[Decided[T]]],
        stamped: Callable[[T, int], T] = lambda value, _: value,
    ) -> Done[T]:
        async def transaction() -> Committed[T]:
            committed = await commit(
                self._database,
                decide,
                accounts=(account_id,),
                operators_share=request.operators_share,
                dry_run=request.validate_only,
            )
            if not committed.changed or request.validate_only:
                return committed
            # The row's revision, and so its etag, is known only now.
            return replace(committed, value=stamped(committed.value, committed.revision.number))

        if request.validate_only:
            return await self._mutations.validate(transaction)
        return await self._mutations.run(transaction, request.until_ns)

    async def get_account(self, account_id: str) -> Account:
        """One account, also a deleted one.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
        """
        async with self._database.reading() as connection:
            account = await accounts.read(connection, account_id)
        if account is None:
            raise account_not_found(account_id)
        return account

    async def list_accounts(self, page: Page) -> list[Account]:
        """One page of accounts, by id."""
        async with self._database.reading() as connection:
            return await accounts.list_page(connection, page)

    async def list_projects(self, account_id: str, page: Page) -> list[Project]:
        """One page of an account's projects, by id.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
        """
        await self.get_account(account_id)
        async with self._database.reading() as connection:
            return await accounts.list_projects_page(connection, account_id, page)


def _at_revision(account: Account, number: int) -> Account:
    return replace(account, revision=number)


def _project_taken(project_id: str) -> AlreadyExists:
    return AlreadyExists(
        "PROJECT_ID_TAKEN",
        f"project id {project_id!r} belongs to another account; a project never moves",
        metadata={"project_id": project_id},
    )


def _unknown_plan(plan: str, catalog: Catalog) -> Violation:
    known = ", ".join(sorted(catalog.plans))
    return Violation("plan", f"there is no plan {plan!r} in the catalog; it has: {known}", "PLAN_UNKNOWN")


def _described(account: Account | None) -> dict[str, Json] | None:
    return None if account is None else {"display_name": account.display_name, "plan": account.plan}
