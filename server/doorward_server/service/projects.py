"""Projects of accounts: put, listed, deleted (contract: AccountAdmin)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from doorward_server.errors import AlreadyExists, NotFound
from doorward_server.model import Change, Page, Project
from doorward_server.service.accounts import account_not_found, live_account
from doorward_server.storage import accounts, projects
from doorward_server.storage.changes import Decided, Transaction

if TYPE_CHECKING:
    from doorward_server.model import Json
    from doorward_server.service.administration import Administration
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done
    from doorward_server.storage.pool import Database
    from doorward_server.storage.projects import Taken

__all__ = ["DeletedProject", "Projects", "PutProject"]

# Grants of revoked tokens in one transaction: a fifth of a second (measured), while its statements have nearly a hold.
FORGOTTEN_AT_ONCE: Final = 20_000


@dataclass(frozen=True, slots=True)
class PutProject:
    """What a project shall be. It belongs to its account for good."""

    account_id: str
    project_id: str
    display_name: str


@dataclass(frozen=True, slots=True)
class DeletedProject:
    """The project as it was, from how many grants its id was taken, and how many of those went with it."""

    project: Project
    grants_changed: int
    grants_removed: int


class Projects:
    """The use cases."""

    def __init__(self, database: Database, administration: Administration) -> None:
        self._database = database
        self._administration = administration

    async def put_project(self, request: Request, wanted: PutProject) -> Done[Project]:
        """Creates the project, or changes its name; a repeat changes nothing and waits again.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
            FailedPrecondition: ACCOUNT_DELETED.
            AlreadyExists: PROJECT_ID_TAKEN.
        """

        async def decide(transaction: Transaction) -> Decided[Project]:
            await live_account(transaction, wanted.account_id)
            before = await accounts.read_project(transaction.connection, wanted.project_id)
            if before is not None and before.account_id != wanted.account_id:
                raise _project_taken(wanted.project_id)
            subject = f"project:{wanted.project_id}"
            if before is not None and before.display_name == wanted.display_name:
                return Decided(before, None, request.audit_event("PutProject", subject, wanted.account_id))
            after = await accounts.upsert_project(
                transaction, wanted.account_id, wanted.project_id, wanted.display_name
            )
            if after is None:
                # Another account made it since it was read.
                raise _project_taken(wanted.project_id)
            event = request.audit_event(
                "PutProject",
                subject,
                wanted.account_id,
                before={"display_name": before.display_name} if before else None,
                after={"display_name": after.display_name},
            )
            return Decided(after, Change("PutProject", wanted.account_id, (subject,)), event)

        return await self._administration.run(request, decide, accounts=(wanted.account_id,))

    async def delete_project(self, request: Request, account_id: str, project_id: str) -> Done[DeletedProject]:
        """Deletes the project, and takes its id out of every grant; of a deleted account too.

        Every live token that held such a grant is a subject of the change, so that no replica keeps a mask for a project
        whose id somebody else may put next. If very many revoked tokens name it, most of their records forget it before,
        a portion in a change of its own: a call that ends in between is repeated, and goes on from there.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND; PROJECT_NOT_FOUND, also of another account's.
        """
        before = projects.Taken(0, 0)
        while not request.validate_only and await self._is_named_very_often(account_id, project_id):
            portion = await self._forget_portion(request, account_id, project_id)
            before += portion
            if portion.grants_changed < FORGOTTEN_AT_ONCE:
                break  # what is left are live tokens, whose number is bounded

        async def decide(transaction: Transaction) -> Decided[DeletedProject]:
            project = await _own_project(transaction, account_id, project_id)
            narrowed = await projects.delete(transaction, account_id, project_id)
            if request.validate_only:
                revoked = await projects.count_revoked(transaction, account_id, project_id, None)
            else:
                revoked = await projects.forget(transaction, account_id, project_id, None)
            taken = before + narrowed.taken + revoked
            subject = f"project:{project_id}"
            event = request.audit_event(
                "DeleteProject",
                subject,
                account_id,
                before={"display_name": project.display_name},
                after=_described(taken),
            )
            touched = (subject, *(f"token:{token_id}" for token_id in narrowed.token_ids))
            deleted = DeletedProject(project, taken.grants_changed, taken.grants_removed)
            return Decided(deleted, Change("DeleteProject", account_id, touched), event)

        return await self._administration.run(request, decide, accounts=(account_id,))

    async def _is_named_very_often(self, account_id: str, project_id: str) -> bool:
        most = FORGOTTEN_AT_ONCE
        async with self._database.reading() as connection:
            return await projects.count_named(connection, account_id, project_id, most + 1) > most

    async def _forget_portion(self, request: Request, account_id: str, project_id: str) -> Taken:
        async def decide(transaction: Transaction) -> Decided[Taken]:
            await _own_project(transaction, account_id, project_id)
            taken = await projects.forget(transaction, account_id, project_id, FORGOTTEN_AT_ONCE)
            subject = f"project:{project_id}"
            event = request.audit_event("DeleteProject", subject, account_id, after=_described(taken))
            change = Change("DeleteProject", account_id, (subject,)) if taken.grants_changed else None
            return Decided(taken, change, event)

        return (await self._administration.run(request, decide, accounts=(account_id,))).value

    async def list_projects(self, account_id: str, page: Page) -> list[Project]:
        """One page of an account's projects, by id; of a deleted account too.

        Raises:
            NotFound: ACCOUNT_NOT_FOUND.
        """
        async with self._database.reading() as connection:
            if await accounts.read(connection, account_id) is None:
                raise account_not_found(account_id)
            return await accounts.list_projects_page(connection, account_id, page)


async def _own_project(transaction: Transaction, account_id: str, project_id: str) -> Project:
    """The account's project, under the account's lock: it is put and deleted under that of the account that owns it.

    Raises:
        NotFound: ACCOUNT_NOT_FOUND; PROJECT_NOT_FOUND.
    """
    if await accounts.read(transaction.connection, account_id) is None:
        raise account_not_found(account_id)
    project = await accounts.read_project(transaction.connection, project_id)
    if project is None or project.account_id != account_id:
        raise _project_not_found(project_id)
    return project


def _described(taken: Taken) -> dict[str, Json]:
    return {"grants_changed": taken.grants_changed, "grants_removed": taken.grants_removed}


def _project_not_found(project_id: str) -> NotFound:
    return NotFound(
        "PROJECT_NOT_FOUND",
        f"the account has no project {project_id!r}",
        metadata={"project_id": project_id},
    )


def _project_taken(project_id: str) -> AlreadyExists:
    return AlreadyExists(
        "PROJECT_ID_TAKEN",
        f"project id {project_id!r} belongs to another account; a project never moves",
        metadata={"project_id": project_id},
    )
