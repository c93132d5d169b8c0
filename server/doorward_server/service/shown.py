"""Tokens as they are answered: with what it takes to tell their state, and which of their grants are suspended.

A mutation makes this inside its transaction. What is read after the barrier may fail, and then a call whose change was made
and awaited would fail with it, and a new secret be lost (design section 7: after the rows the database is not needed).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from doorward.core.catalog import Catalog
    from doorward_server.model import Token

__all__ = ["Shown"]


@dataclass(frozen=True, slots=True)
class Shown:
    """Tokens of one account, its plan, the catalog, and the database's time.

    Those of a deleted account count as revoked, without a write to any.
    """

    tokens: Sequence[Token]
    catalog: Catalog
    plan: str
    now: datetime
    account_deleted: bool = False

    def at_revision(self, number: int) -> Shown:
        """The same, written by the change `number`, which is known only after the tokens were."""
        return replace(self, tokens=[replace(token, revision=number) for token in self.tokens])
