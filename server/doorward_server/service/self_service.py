"""A token acting on itself (contract: TokenAdmin.DescribeSelf, RevokeSelf): needs no permission, and names no id.

Who calls is the whole request, so that whoever holds a secret can see what it is worth and end it (design section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from doorward.core.entries import SECRET_NOT_AFTER_US, find_live_secret
from doorward_server.service.callers import unrecognized
from doorward_server.storage import changes, tokens

if TYPE_CHECKING:
    from doorward_server.model import Caller
    from doorward_server.service.context import Request
    from doorward_server.service.mutations import Done
    from doorward_server.service.revoke import Revoke
    from doorward_server.service.shown import Shown
    from doorward_server.service.tokens import Tokens
    from doorward_server.storage.pool import Database

__all__ = ["Described", "SelfService"]


@dataclass(frozen=True, slots=True)
class Described:
    """The token that calls. `secret_expire_us`: when the secret it called with ends, None if that is the current one."""

    shown: Shown
    secret_expire_us: int | None


class SelfService:
    """The use cases."""

    def __init__(self, database: Database, tokens: Tokens, revoke: Revoke) -> None:
        self._database = database
        self._tokens = tokens
        self._revoke = revoke

    async def describe_self(self, caller: Caller) -> Described:
        """The token whose secret was presented.

        Raises:
            Unauthenticated: the secret was rotated out since it was recognized.
        """
        async with self._database.reading() as connection:
            stored = (await tokens.load(connection, caller.subject_id)).token
            now_us = (await changes.read_end(connection)).database_us
        if stored is None or caller.secret_version is None:
            raise unrecognized()
        secret = find_live_secret(stored.secrets, caller.secret_version, now_us)
        if secret is None:
            raise unrecognized()
        return Described(await self._tokens.get_token(caller, caller.subject_id), secret[SECRET_NOT_AFTER_US])

    async def revoke_self(self, request: Request, reason: str) -> Done[Shown]:
        """Revokes the token whose secret was presented, for good.

        Raises:
            Unauthenticated: it was revoked since it was recognized.
        """
        return await self._revoke.revoke_token(request, request.caller.subject_id, reason, "RevokeSelf")
