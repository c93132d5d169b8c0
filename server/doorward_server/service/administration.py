"""What every change that only operators make has in common: lock, look at the operator again, decide, commit, wait.

Used by the use cases of accounts, projects, operators and the catalog. Those of tokens, which tokens may call too, have
`token_mutations.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from doorward_server.storage.changes import Committed, Decided, Transaction, commit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from doorward_server.service.callers import Callers
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done, Mutations
    from doorward_server.storage.pool import Database

__all__ = ["Administration"]

T = TypeVar("T")


class Administration:
    """Runs the decisions of operators."""

    def __init__(self, database: Database, mutations: Mutations, callers: Callers) -> None:
        self._database = database
        self._mutations = mutations
        self._callers = callers

    async def run(
        self,
        request: Request,
        decide: Callable[[Transaction], Awaitable[Decided[T]]],
        *,
        accounts: Sequence[str] = (),
        operators_update: Sequence[str] = (),
        stamped: Callable[[T, int], T] | None = None,
    ) -> Done[T]:
        """Runs `decide` under the locks of these rows; with `request.validate_only` leaves nothing behind.

        `stamped` puts the change's number, known only after the decision, into what it came to. `decide` may run several
        times.

        Raises:
            Unauthenticated: the operator that calls was revoked since it was recognized, or has expired.
        """

        async def decided(transaction: Transaction) -> Decided[T]:
            await self._callers.recheck(transaction, request.caller)
            return await decide(transaction)

        async def transaction() -> Committed[T]:
            committed = await commit(
                self._database,
                decided,
                accounts=accounts,
                operators_share=request.operators_share,
                operators_update=operators_update,
                dry_run=request.validate_only,
            )
            if stamped is None or not committed.changed or request.validate_only:
                return committed
            return replace(committed, value=stamped(committed.value, committed.revision.number))

        if request.validate_only:
            return await self._mutations.validate(transaction)
        return await self._mutations.run(transaction, request.until_ns)
