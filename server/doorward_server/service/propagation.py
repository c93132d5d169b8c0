"""Waiting for a change that was made before (contract: TokenAdmin.AwaitPropagation)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward_server.service.freshness import check_revision
from doorward_server.storage import changes

if TYPE_CHECKING:
    from doorward.core.revision import Revision
    from doorward_server.model import Propagation
    from doorward_server.service.mutations import Mutations
    from doorward_server.storage.pool import Database

__all__ = ["AwaitPropagation"]


class AwaitPropagation:
    """The use case."""

    def __init__(self, database: Database, mutations: Mutations) -> None:
        self._database = database
        self._mutations = mutations

    async def await_propagation(self, revision: Revision, until_ns: int | None) -> Propagation:
        """Returns once nobody answers from before `revision`; it may be any change's.

        Raises:
            FailedPrecondition: REVISION_OF_ANOTHER_EPOCH, REVISION_BEYOND_END.
            DeadlineExceeded: PROPAGATION_NOT_AWAITED; call again.
        """
        async with self._database.reading() as connection:
            end = await changes.read_end(connection)
        check_revision(revision, end.epoch, end.number)
        return await self._mutations.await_propagation(revision, until_ns)
