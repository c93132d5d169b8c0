"""What every use case that changes something needs: who asks, until when, and the parts to do it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from doorward_server.model import Caller, Json

from doorward_server.model import AuditEvent, CallerKind

__all__ = ["Request"]


@dataclass(frozen=True, slots=True)
class Request:
    """One authenticated request to change something. `until_ns`: the caller's deadline, a clock reading.

    `method` is the RPC's path, and `needs_permission` the permission without which a service token may not call it.
    """

    caller: Caller
    peer: str
    on_behalf_of: str
    until_ns: int | None
    validate_only: bool = False
    method: str = ""
    needs_permission: str | None = None

    @property
    def operators_share(self) -> tuple[str, ...]:
        """The caller's own row, locked so that it cannot be revoked while this commits."""
        return (self.caller.subject_id,) if self.caller.kind is CallerKind.OPERATOR else ()

    def audit_event(
        self,
        action: str,
        subject: str,
        account_id: str | None,
        *,
        before: Mapping[str, Json] | None = None,
        after: Mapping[str, Json] | None = None,
    ) -> AuditEvent:
        """The audit event of what this request does."""
        return AuditEvent(
            actor=self.caller.actor,
            action=action,
            subject=subject,
            account_id=account_id,
            before=before,
            after=after,
            on_behalf_of=self.on_behalf_of,
            peer=self.peer,
        )
