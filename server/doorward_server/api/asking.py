"""Who asks, under the lease that their call captured first: what every RPC of Authorizer that may wait runs in (design 7).

The caller is verified by each attempt, in the step that decides, and so is what a service token must hold to call: nobody
is admitted beforehand, and whoever was revoked while something was brought is refused. Called by the modules of `api/`
that serve Authorizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from doorward.core.entries import TOKEN_COMPILED
from doorward_server.api.access import TABLE
from doorward_server.api.wrapper import require_admitted
from doorward_server.model import CallerKind
from doorward_server.replica.caches import Missing
from doorward_server.service.delegation import not_permitted, require_permission
from doorward_server.service.freshness import LATEST_KNOWN, Demand

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward.core.catalog import Catalog
    from doorward.core.revision import Revision
    from doorward.v1 import types_pb2
    from doorward_server.api.fields import Fields
    from doorward_server.api.methods import Peer
    from doorward_server.model import Caller
    from doorward_server.service.authorize import AllMissing, Authorizer
    from doorward_server.service.callers import Callers

__all__ = ["Asked", "Asking", "demand_of"]

T = TypeVar("T")


class Asked(NamedTuple):
    """One attempt: who asks, the catalog in force, the time for expiry, and what bcrypt has said no to so far."""

    caller: Caller
    catalog: Catalog
    now_us: int
    refuted: set[bytes]


class Asking:
    """Runs attempts."""

    def __init__(self, authorizer: Authorizer, callers: Callers) -> None:
        self._authorizer = authorizer
        self._callers = callers

    async def admitted(self, path: str, peer: Peer) -> None:
        """Lets nobody past who may not call `path`, before anything of the request is looked at."""
        await self.under_lease(path, peer, lambda _asked: True)

    async def under_lease(
        self, path: str, peer: Peer, attempt: Callable[[Asked], T | Missing | AllMissing]
    ) -> tuple[T, Revision]:
        """What `attempt` answers once nothing is missing, and the revision that it was answered from.

        Raises:
            Unauthenticated, PermissionDenied: the caller proves nobody, or may not call `path`.
            Unavailable: NO_LEASE, or what was missing could not be brought.
            Refused: whatever `attempt` raises.
        """

        def whole(now_us: int, refuted: set[bytes]) -> T | Missing | AllMissing:
            caller = self._callers.find(peer.credential, now_us, refuted)
            if isinstance(caller, Missing):
                return caller
            require_admitted(path, TABLE[path], caller)
            catalog = self._authorizer.find_catalog()
            if isinstance(catalog, Missing):
                return catalog
            if caller.kind is CallerKind.TOKEN:
                missing = self._find_unheld(path, caller, catalog, refuted)
                if missing is not None:
                    return missing
            return attempt(Asked(caller, catalog, now_us, refuted))

        return await self._authorizer.under_lease(whole)

    def _find_unheld(self, path: str, caller: Caller, catalog: Catalog, refuted: set[bytes]) -> Missing | None:
        """What is missing to tell whether a service token holds what `path` needs; None: it holds it.

        Raises:
            PermissionDenied: CALLER_NOT_PERMITTED.
        """
        permission = TABLE[path].needs_permission
        held = self._authorizer.find_token(caller.subject_id, catalog, refuted)
        if isinstance(held, Missing):
            return held
        if held is None or permission is None:
            raise not_permitted(caller, path, permission)
        require_permission(caller, held[0][TOKEN_COMPILED], catalog, path, permission)
        return None


def demand_of(consistency: types_pb2.Consistency, fields: Fields) -> Demand:
    """How fresh an answer must be; what is wrong with that is noted."""
    which = consistency.WhichOneof("requirement")
    if which is None:
        return LATEST_KNOWN
    if which == "at_least_as_fresh":
        return Demand(at_least=fields.revision("consistency.at_least_as_fresh", consistency.at_least_as_fresh))
    if not getattr(consistency, which):
        fields.wrong(f"consistency.{which}", "must be true, or left out: false demands nothing", "FIELD_MALFORMED")
    return Demand(fully=True) if which == "fully_consistent" else LATEST_KNOWN
