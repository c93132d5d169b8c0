"""Places: accounts under the catalog with narrow minting sets, each with a token that calls and one that it is about.

    async def test_…(world: World):
        place = await world.place()
        refusal = await world.surface.refused("TokenAdmin.RotateToken", …, place.credential)

Made without a server's bcrypt, so that a test can have a hundred of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from doorward.v1.types_pb2 import Grant as GrantMessage
from doorward_server.model import Grant
from tests.support import minting
from tests.support.database import put_account
from tests.support.inprocess import apply_catalog, served
from tests.support.issuing import issue, put_project

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from doorward.core.secret import Secret
    from doorward_server.storage.pool import Database
    from tests.support.inprocess import Surface


@dataclass(frozen=True)
class Place:
    """An account on the plan `large` with two projects.

    The token that calls mints (`minter` on all projects), edits jobs on the first project (`jobs_admin`) and may rotate
    itself; the one that it is about sees jobs there (`jobs_viewer`). Neither expires.
    """

    account_id: str
    caller_id: str
    credential: str
    target_id: str

    @property
    def project_ids(self) -> tuple[str, str]:
        return f"{self.account_id}-p1", f"{self.account_id}-p2"

    def on_first(self, permission_set: str) -> GrantMessage:
        """A grant on the first project."""
        return GrantMessage(permission_set=permission_set, project_ids=self.project_ids[:1])


class World:
    """A surface under that catalog; a new place for each case."""

    def __init__(self, surface: Surface) -> None:
        self.surface = surface
        self._places = 0

    @property
    def database(self) -> Database:
        return self.surface.database

    async def place(self, *, disabled: bool = False) -> Place:
        """A new place; `disabled`: the token that it is about is."""
        self._places += 1
        account_id = f"acc{self._places}"
        await put_account(self.database, account_id, "large")
        for project in ("p1", "p2"):
            await put_project(self.database, account_id, f"{account_id}-{project}")
        first = (f"{account_id}-p1",)
        held = (Grant("jobs_admin", first), Grant("minter", None))
        caller = await self.issue(account_id, *held, allow_self_rotation=True)
        target = await self.issue(account_id, Grant("jobs_viewer", first), disabled=disabled)
        return Place(account_id, caller.subject_id, caller.reveal(), target.subject_id)

    async def issue(self, account_id: str, *grants: Grant, **fields: Any) -> Secret:
        """One more token there, issued by an operator; `fields`: of its record."""
        return await issue(self.database, self.surface.ring, account_id, grants=grants, **fields)


@pytest.fixture
async def world(database: Database, tmp_path: Path) -> AsyncIterator[World]:
    """A world of the test's own."""
    await apply_catalog(database, minting.TOML)
    async with served(database, tmp_path) as surface:
        yield World(surface)
