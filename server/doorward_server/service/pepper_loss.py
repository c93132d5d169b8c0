"""A pepper key that is lost for good: the use case behind `doorward pepper declare-lost` (design section 4, Peppers).

Every secret has a bcrypt hash beside its digest. Without the key its digest cannot be compared any more, so its next
presentation is proved by bcrypt, once, and gets a digest under the current key. Nothing is revoked and nobody needs a new
secret. Done on the database itself, without a caller and without a server; the audit keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward_server.model import AuditEvent
from doorward_server.service.operators import DIRECT_ACTOR
from doorward_server.storage import peppers, state
from doorward_server.storage.changes import Decided, commit

if TYPE_CHECKING:
    from doorward_server.storage.changes import Transaction
    from doorward_server.storage.peppers import Dependents
    from doorward_server.storage.pool import Database

__all__ = ["KeyUnknown", "declare_lost"]


class KeyUnknown(Exception):
    """The database does not know a key of this id; `known` are those that it does."""

    def __init__(self, known: tuple[str, ...]) -> None:
        super().__init__("no such pepper key")
        self.known = known


async def declare_lost(database: Database, key_id: str) -> Dependents:
    """Servers start without the key from now on; what depends on it.

    Raises:
        KeyUnknown.
        Unavailable: the database did not answer.
    """

    async def decide(transaction: Transaction) -> Decided[Dependents]:
        dependents = await peppers.declare_lost(transaction, key_id)
        if dependents is None:
            raise KeyUnknown(tuple(await state.read_fingerprints(transaction.connection)))
        event = AuditEvent(
            actor=DIRECT_ACTOR,
            action="DeclarePepperLost",
            subject=f"pepper:{key_id}",
            account_id=None,
            before={"token_secrets": dependents.token_secrets, "operators": dependents.operators},
        )
        return Decided(dependents, None, event)

    return (await commit(database, decide)).value
