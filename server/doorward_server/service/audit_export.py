"""What `doorward audit export` writes: the audit as lines of JSON, or what must be done again after a restore (design 7).

A database that was restored from a backup knows nothing of what was revoked since: it is active again. `revocations` reads
the former database's audit (or what was exported of it in time) and tells, for each thing that was taken away, the calls
that take it away once more; `doorward audit replay` makes them. What no call can repeat (a rotation, a narrower grant) is
told in words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from doorward.core.revision import Revision
from doorward_server.storage import audit_chain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from datetime import datetime

    from doorward_server.storage.audit_chain import ChainedEvent
    from doorward_server.storage.pool import Database

__all__ = ["Since", "exported", "replays"]

TOKEN_ADMIN: Final = "doorward.v1.TokenAdmin/"  # noqa: S105 - a service's name
ACCOUNT_ADMIN: Final = "doorward.v1.AccountAdmin/"
SYSTEM_ADMIN: Final = "doorward.v1.SystemAdmin/"

REVOKING: Final = frozenset(
    {"RevokeToken", "RevokeSelf", "BatchRevokeTokens", "RevokeTokensByFilter", "ReportLeakedToken"}
)
# What ends for good, and what can be taken back: of that only what still holds at the end is done again.
ENDING: Final = {
    "DeleteAccount": ACCOUNT_ADMIN,
    "DeleteProject": ACCOUNT_ADMIN,
    "RevokeOperator": SYSTEM_ADMIN,
}
STOPPING: Final = {
    "DisableToken": TOKEN_ADMIN,
    "SuspendAccount": ACCOUNT_ADMIN,
}
RESUMING: Final = frozenset({"EnableToken", "ResumeAccount"})
BY_HAND: Final = {
    "RotateToken": "the secret of before works again, and the one that it was replaced by is unknown: rotate the token",
    "RotateSelf": "the secret of before works again, and the one that it was replaced by is unknown: rotate the token",
    "ReportLeakedToken": "the secret that was reported works again: rotate or revoke the token",
    "UpdateToken": "the token is as it was before: see whether that is more than it should hold",
    "PutAccount": "the account is as it was before: see whether its plan was another",
    "ApplyCatalog": "the catalog is the one of before: apply it anew",
}
# Of these only a change of what is named here can have taken something away.
NARROWING: Final = {
    "UpdateToken": ("grants", "expire_time", "allow_self_rotation"),
    "PutAccount": ("plan",),
}


@dataclass(frozen=True, slots=True)
class Since:
    """From where on: behind a revision, or from a time on; neither: from the start."""

    revision: Revision | None = None
    time: datetime | None = None

    def includes(self, stored: ChainedEvent) -> bool:
        """Whether the event is later."""
        after = self.revision
        if after is None:
            return True
        return (stored.epoch, stored.number) > (after.epoch, after.number)


async def exported(database: Database, since: Since) -> AsyncIterator[dict[str, Any]]:
    """Every event since then, in the chain's order, with all that the chain is made of."""
    async for stored in _events(database, since):
        yield {**_head(stored), "on_behalf_of": stored.event.on_behalf_of, "peer": stored.event.peer,
               "tokens": list(stored.event.tokens), "before": stored.event.before, "after": stored.event.after,
               "chain": stored.chain.hex()}  # fmt: skip


async def replays(database: Database, since: Since) -> AsyncIterator[dict[str, Any]]:
    """What was taken away since then, in order; what could be taken back and still holds comes last.

    `replay` has calls, by RPC and request, of which a repeat does no harm; `by_hand` says what to see to where there is none.
    """
    standing = _Standing()
    async for stored in _events(database, since):
        for line in standing.lines_of(stored):
            yield line
    for line in standing.reversible.values():
        yield line


@dataclass(slots=True)
class _Standing:
    """What the events so far have come to."""

    reversible: dict[str, dict[str, Any]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    # Unknown to the backup, and so nothing to revoke.
    issued: set[str] = field(default_factory=set)

    def lines_of(self, stored: ChainedEvent) -> Iterator[dict[str, Any]]:
        """What is certain now."""
        event = stored.event
        kind, _, subject_id = event.subject.partition(":")
        if event.before is None and event.after is None and not event.tokens:
            return  # a repeat, which found nothing to do
        if event.action == "IssueToken":
            self.issued.add(subject_id)
        elif event.action in RESUMING:
            self.reversible.pop(event.subject, None)
        elif event.action in STOPPING:
            if subject_id not in self.issued:
                self.reversible[event.subject] = _line(stored, [_call(STOPPING[event.action], stored)])
        elif event.action in ENDING:
            self.reversible.pop(event.subject, None)
            # A large project is deleted in several changes.
            if event.subject not in self.ended:
                self.ended.add(event.subject)
                yield _line(stored, [_call(ENDING[event.action], stored)])
        elif event.action in REVOKING and not _ended_a_former_secret_alone(stored):
            yield from self._revoked(stored)
        elif (
            event.action in BY_HAND
            and _may_have_narrowed(stored)
            and not (kind == "token" and subject_id in self.issued)
        ):
            yield {**_line(stored, []), "by_hand": BY_HAND[event.action]}

    def _revoked(self, stored: ChainedEvent) -> Iterator[dict[str, Any]]:
        event = stored.event
        kind, _, subject_id = event.subject.partition(":")
        token_ids = [subject_id] if kind == "token" else []
        reason = (event.after or {}).get("reason")
        given = {"reason": reason} if isinstance(reason, str) and reason else {}
        calls = []
        for token_id in [*token_ids, *event.tokens]:
            self.reversible.pop(f"token:{token_id}", None)
            if token_id not in self.issued:
                calls.append({"rpc": TOKEN_ADMIN + "RevokeToken", "request": {"token_id": token_id, **given}})
        if calls:
            yield _line(stored, calls)


def _ended_a_former_secret_alone(stored: ChainedEvent) -> bool:
    """Of a leaked secret that was superseded the token lives on."""
    return stored.event.action == "ReportLeakedToken" and (stored.event.after or {}).get("state") != "revoked"


def _may_have_narrowed(stored: ChainedEvent) -> bool:
    names, event = NARROWING.get(stored.event.action), stored.event
    if names is None:
        return True
    # What was not there before is unknown to the backup.
    before, after = event.before, event.after or {}
    return before is not None and any(before.get(name) != after.get(name) for name in names)


async def _events(database: Database, since: Since) -> AsyncIterator[ChainedEvent]:
    async with database.reading() as connection:
        end = await audit_chain.read_chain_end(connection)
    async for stored in audit_chain.events_in_order(database, end.last_event_id, since.time):
        if since.includes(stored):
            yield stored


def _head(stored: ChainedEvent) -> dict[str, Any]:
    event = stored.event
    return {
        "event_id": stored.event_id,
        "event_time": stored.time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "revision": str(Revision(stored.epoch, stored.number)),
        "account_id": event.account_id,
        "actor": event.actor,
        "action": event.action,
        "subject": event.subject,
    }


def _line(stored: ChainedEvent, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {**_head(stored), "replay": calls}


def _call(service: str, stored: ChainedEvent) -> dict[str, Any]:
    """The same call once more."""
    kind, _, subject_id = stored.event.subject.partition(":")
    request = {f"{kind}_id": subject_id}
    if kind == "project" and stored.event.account_id is not None:
        request["account_id"] = stored.event.account_id
    return {"rpc": service + stored.event.action, "request": request}
