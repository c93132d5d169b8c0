"""Accounts: put, read, listed (contract: AccountAdmin), and what others need to know of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from doorward_server.errors import FailedPrecondition, InvalidArgument, NotFound, Violation
from doorward_server.model import Account, AccountState, Change
from doorward_server.service.delegation import may_see
from doorward_server.storage import accounts
from doorward_server.storage.changes import Decided, Transaction

if TYPE_CHECKING:
    from doorward.core.catalog import Catalog
    from doorward_server.model import Caller, Json, Page
    from doorward_server.service.administration import Administration
    from doorward_server.service.catalogs import Catalogs
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done
    from doorward_server.storage.pool import Database

__all__ = [
    "Accounts",
    "PutAccount",
    "account_deleted",
    "account_not_found",
    "live_account",
    "require_seen",
    "unknown_plan",
]


@dataclass(frozen=True, slots=True)
class PutAccount:
    """What an account shall be."""

    account_id: str
    display_name: str
    plan: str


def account_not_found(account_id: str) -> NotFound:
    """One sentence for every unknown account."""
    return NotFound("ACCOUNT_NOT_FOUND", f"there is no account {account_id!r}", metadata={"account_id": account_id})


def require_seen(caller: Caller, account_id: str) -> None:
    """Sees that the account exists for the caller: to a token, only its own does.

    Raises:
        NotFound: ACCOUNT_NOT_FOUND, as for an unknown id.
    """
    if not may_see(caller, account_id):
        raise account_not_found(account_id)


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


def unknown_plan(plan: str, catalog: Catalog) -> Violation:
    """What is wrong with a plan that the catalog does not have."""
    known = ", ".join(sorted(catalog.plans))
    return Violation("plan", f"there is no plan {plan!r} in the catalog; it has: {known}", "PLAN_UNKNOWN")


class Accounts:
    """The use cases."""

    def __init__(self, database: Database, administration: Administration, catalogs: Catalogs) -> None:
        self._database = database
        self._administration = administration
        self._catalogs = catalogs

    async def put_account(self, request: Request, wanted: PutAccount) -> Done[Account]:
        """Creates the account, or changes its name and plan; a repeat changes nothing and waits again.

        Raises:
            InvalidArgument: PLAN_UNKNOWN.
            FailedPrecondition: ACCOUNT_DELETED.
        """

        async def decide(transaction: Transaction) -> Decided[Account]:
            catalog = await self._catalogs.of(transaction)
            if catalog.find_plan(wanted.plan) is None:
                raise InvalidArgument.of((unknown_plan(wanted.plan, catalog),))
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

        return await self._administration.run(
            request,
            decide,
            accounts=(wanted.account_id,),
            stamped=lambda account, number: replace(account, revision=number),
        )

    async def plan_violations(self, plan: str) -> list[Violation]:
        """What else is wrong with a request whose shape is wrong already: read without locks, so that one answer tells all."""
        async with self._database.reading() as connection:
            catalog = await self._catalogs.now(connection)
        return [] if catalog.find_plan(plan) else [unknown_plan(plan, catalog)]

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


def _described(account: Account | None) -> dict[str, Json] | None:
    return None if account is None else {"display_name": account.display_name, "plan": account.plan}
