"""Changes that only operators make, in races: the caller is read again under the locks, and what a catalog lacks is unused.

Every such RPC, stopped between authentication and transaction, meanwhile its operator is revoked; and ApplyCatalog beside
changes that are just about to commit.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import pytest

from doorward.v1 import account_admin_pb2, system_admin_pb2, token_admin_pb2, types_pb2
from doorward.v1.types_pb2 import Grant
from doorward_server.api.access import TABLE
from doorward_server.catalog.load import builtin_text
from doorward_server.failpoints import Failpoint
from doorward_server.model import OperatorRole
from doorward_server.service import projects
from doorward_server.service.operators import create_operators, new_operator
from tests.support.inprocess import altered, footprint, served
from tests.support.replica import paused
from tests.support.wire import Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from google.protobuf.message import Message

    from doorward_server.storage.pool import Database
    from tests.support.inprocess import Surface

ADMIN: Final = types_pb2.OPERATOR_ROLE_ADMIN
# Of an account `acme` with a project `p1`, and an operator `target`.
CHANGES: Final[dict[str, Callable[[str], Message]]] = {
    "AccountAdmin.PutAccount": lambda _: account_admin_pb2.PutAccountRequest(
        account_id="acme", display_name="New", plan="team"
    ),
    "AccountAdmin.SuspendAccount": lambda _: account_admin_pb2.SuspendAccountRequest(account_id="acme"),
    "AccountAdmin.ResumeAccount": lambda _: account_admin_pb2.ResumeAccountRequest(account_id="acme"),
    "AccountAdmin.DeleteAccount": lambda _: account_admin_pb2.DeleteAccountRequest(account_id="acme"),
    "AccountAdmin.PutProject": lambda _: account_admin_pb2.PutProjectRequest(
        account_id="acme", project_id="p2", display_name="New"
    ),
    "AccountAdmin.DeleteProject": lambda _: account_admin_pb2.DeleteProjectRequest(account_id="acme", project_id="p1"),
    "SystemAdmin.ApplyCatalog": lambda _: system_admin_pb2.ApplyCatalogRequest(catalog=builtin_text()),
    "SystemAdmin.CreateOperator": lambda _: system_admin_pb2.CreateOperatorRequest(role=ADMIN, display_name="New"),
    "SystemAdmin.RevokeOperator": lambda target: system_admin_pb2.RevokeOperatorRequest(operator_id=target),
}


class Desk:
    """The method table, an admin who calls, and another operator, `target`."""

    def __init__(self, surface: Surface, admin_id: str, credential: str, target_id: str) -> None:
        self.surface = surface
        self.database: Database = surface.database
        self.admin_id = admin_id
        self.credential = credential
        self.target_id = target_id

    async def call(self, name: str, request: Message) -> Any:
        """The answer, or the refusal."""
        return await self.surface.call(name, request, self.credential)

    async def change(self, name: str) -> Any:
        """One of `CHANGES`."""
        return await self.call(name, CHANGES[name](self.target_id))

    async def issue(self, permission_set: str, *project_ids: str) -> Any:
        """Issues a token in `acme`."""
        grant = Grant(permission_set=permission_set, project_ids=project_ids, all_projects=not project_ids)
        request = token_admin_pb2.IssueTokenRequest(account_id="acme", display_name="t", grants=[grant])
        return await self.call("TokenAdmin.IssueToken", request)

    async def take(self, sql: str) -> None:
        """Alters the operator that calls."""
        await altered(self.database, sql, self.admin_id)


@pytest.fixture
async def desk(database: Database, tmp_path: Path) -> AsyncIterator[Desk]:
    async with served(database, tmp_path) as surface:
        admin, target = (new_operator(surface.ring, OperatorRole.ADMIN, "An admin") for _ in range(2))
        await create_operators(database, [admin, target])
        desk = Desk(surface, admin.secret.subject_id, admin.secret.reveal(), target.secret.subject_id)
        put = account_admin_pb2.PutAccountRequest(account_id="acme", display_name="Acme", plan="enterprise")
        project = account_admin_pb2.PutProjectRequest(account_id="acme", project_id="p1", display_name="P")
        for name, request in (("AccountAdmin.PutAccount", put), ("AccountAdmin.PutProject", project)):
            assert not isinstance(await desk.call(name, request), Refusal)
        yield desk


def test_every_change_that_operators_alone_make_is_in_this_table() -> None:
    named = {
        path.removeprefix("/doorward.v1.").replace("/", ".")
        for path, access in TABLE.items()
        if access.roles == {OperatorRole.ADMIN} and not access.tokens
    }
    assert named == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(
    "taken",
    [
        "UPDATE operators SET revoke_time = clock_timestamp() WHERE operator_id = $1",
        "UPDATE operators SET expire_time = clock_timestamp() WHERE operator_id = $1",
        "UPDATE operators SET role = 'auditor' WHERE operator_id = $1",
        "DELETE FROM operators WHERE operator_id = $1",
    ],
    ids=["revoked", "expired", "of another role", "gone"],
)
async def test_an_operator_that_is_none_any_more_at_the_commit_changes_nothing(
    desk: Desk, name: str, taken: str
) -> None:
    with paused(Failpoint.MUTATION_AFTER_AUTHN) as pause:
        calling = asyncio.ensure_future(desk.change(name))
        await pause.reached.wait()
        await desk.take(taken)
        before = await footprint(desk.database)
        pause.release()
        refusal = await calling

    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")
    assert await footprint(desk.database) == before


@pytest.mark.parametrize("name", CHANGES)
async def test_without_that_each_is_made(desk: Desk, name: str) -> None:
    before = await footprint(desk.database)

    answer = await desk.change(name)

    assert answer.HasField("propagation")
    assert await footprint(desk.database) != before


# ---- a catalog beside changes that are about to commit


def without_job_runner() -> system_admin_pb2.ApplyCatalogRequest:
    head, _, rest = builtin_text().partition("[permission_sets.job_runner]")
    return system_admin_pb2.ApplyCatalogRequest(catalog=head + rest[rest.index("\n[") + 1 :])


async def waiting(database: Database, count: int) -> None:
    """Returns once so many sessions wait for a lock."""
    async with database.reading() as connection:
        while await connection.fetchval("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted") < count:
            pass


async def test_a_set_that_is_just_being_granted_is_in_use(desk: Desk) -> None:
    """The token's change comes first in the log; so the catalog, which waited for it, sees the token."""
    with paused(Failpoint.MUTATION_BEFORE_COMMIT) as pause:
        issuing = asyncio.ensure_future(desk.issue("job_runner"))
        await pause.reached.wait()
        applying = asyncio.ensure_future(desk.call("SystemAdmin.ApplyCatalog", without_job_runner()))
        await waiting(desk.database, 1)
        pause.release()
        issued, refusal = await issuing, await applying

    assert issued.token.token_id
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.metadata) == ("CATALOG_IN_USE", {"permission_sets": "job_runner"})


async def test_a_set_that_is_just_going_cannot_be_granted(desk: Desk) -> None:
    """The catalog comes first; so the token, which was decided under the former one, is decided anew."""
    with paused(Failpoint.MUTATION_BEFORE_COMMIT) as pause:
        applying = asyncio.ensure_future(desk.call("SystemAdmin.ApplyCatalog", without_job_runner()))
        await pause.reached.wait()
        issuing = asyncio.ensure_future(desk.issue("job_runner"))
        await waiting(desk.database, 1)
        pause.release()
        applied, refusal = await applying, await issuing

    assert applied.catalog_version == 2
    assert isinstance(refusal, Refusal)
    assert refusal.bad_fields == [("grants[0].permission_set", "PERMISSION_SET_UNKNOWN")]


async def test_while_a_catalog_is_applied_others_only_wait(desk: Desk) -> None:
    """Accounts, projects, operators and tokens alike; nobody deadlocks with the lock that it takes early."""
    names = [name for name in CHANGES if name not in {"SystemAdmin.ApplyCatalog", "AccountAdmin.DeleteAccount"}]
    with paused(Failpoint.MUTATION_BEFORE_COMMIT) as pause:
        applying = asyncio.ensure_future(desk.call("SystemAdmin.ApplyCatalog", CHANGES["SystemAdmin.ApplyCatalog"]("")))
        await pause.reached.wait()
        others = [asyncio.ensure_future(desk.change(name)) for name in names]
        await waiting(desk.database, 2)
        assert not any(other.done() for other in others)
        pause.release()
        answers = await asyncio.gather(applying, *others)

    assert [answer for answer in answers if isinstance(answer, Refusal)] == []


# ---- a project that very many revoked tokens name


async def test_a_deletion_that_ended_between_two_portions_is_repeated_and_completes(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projects, "FORGOTTEN_AT_ONCE", 2)
    for _ in range(5):
        issued = await desk.issue("member", "p1")
        await desk.call("TokenAdmin.RevokeToken", token_admin_pb2.RevokeTokenRequest(token_id=issued.token.token_id))
    kept = await desk.issue("member", "p1")
    name = "AccountAdmin.DeleteProject"
    with paused(Failpoint.MUTATION_AFTER_AUTHN) as pause:
        calling = asyncio.ensure_future(desk.change(name))
        await pause.reached.wait()
        calling.cancel()
        pause.release()
        await asyncio.gather(calling, return_exceptions=True)

    answer = await desk.change(name)

    grants = "SELECT count(*) FROM grants WHERE scope = 'p1'"
    async with desk.database.reading() as connection:
        assert await connection.fetchval(grants) == 0
    assert (answer.grants_changed, answer.grants_removed) == (4, 4)
    read = await desk.call("TokenAdmin.GetToken", token_admin_pb2.GetTokenRequest(token_id=kept.token.token_id))
    assert list(read.token.grants) == []
