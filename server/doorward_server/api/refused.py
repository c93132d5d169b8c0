"""Which refused calls are worth a record, and what it says of them (design section 5).

Failed credentials and missing rights always, and what a change was refused for: no such thing, or not in the present state.
Not what is wrong with a request's form, nor what only came at a bad moment. Every listener hands the statuses that it
sends to `RefusedCalls`; what a status does not tell, `wrapper.py` has noted on the error that it was made from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward_server.api.access import TABLE
from doorward_server.api.fields import Fields
from doorward_server.service.refusals import ANONYMOUS
from doorward_server.telemetry import redact

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from doorward_server.api.errors import Status
    from doorward_server.errors import Refused
    from doorward_server.model import Caller
    from doorward_server.service.refusals import Refusals

__all__ = ["RefusedCalls", "note_circumstances"]

ALWAYS: Final = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
OF_CHANGES: Final = frozenset({"NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION"})
# The one bound that the caller runs into by itself; the others are about load.
OF_CHANGES_BY_REASON: Final = frozenset({"TOO_MANY_LIVE_TOKENS"})

# Where a request, or the metadata of an error, says what it is about; the first that is there counts.
SUBJECTS: Final = (
    ("token_id", "token:"),
    ("project_id", "project:"),
    ("operator_id", "operator:"),
    ("account_id", "account:"),
)
APPLY_CATALOG: Final = "/doorward.v1.SystemAdmin/ApplyCatalog"
OF_ITSELF: Final = "Self"


class RefusedCalls:
    """Takes note of refused calls."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    def take_note(self, path: str, status: Status, peer: str) -> None:
        """`status` was answered to a call of `path` from the address `peer`. Costs a look, where nothing is recorded."""
        if status.code not in ALWAYS and not _is_refused_change(path, status):
            return
        actor, account_id = status.asked_by or (ANONYMOUS, None)
        self._refusals.record(
            actor=actor,
            action=path.rpartition("/")[2],
            subject=status.about,
            account_id=account_id,
            reason=status.reason,
            peer=peer,
        )


def note_circumstances(refused: Refused, path: str, caller: Caller | None, request: Message | None) -> None:
    """Notes on the error who was refused, and what the request is about, for the record."""
    if caller is not None:
        account_id = caller.account_id or (None if request is None else _id_in(request, "account_id")) or None
        refused.asked_by = (caller.actor, account_id)
    refused.about = _subject(refused, path, caller, request)


def _is_refused_change(path: str, status: Status) -> bool:
    access = TABLE.get(path)
    if access is None or not access.changes:
        return False
    return status.code in OF_CHANGES or status.reason in OF_CHANGES_BY_REASON


def _subject(refused: Refused, path: str, caller: Caller | None, request: Message | None) -> str:
    """As the audit would name it; empty if nobody said, or said it wrong: an id that is none may be anything, a secret too."""
    for key, kind in SUBJECTS:
        subject_id = refused.metadata.get(key) or (None if request is None else _id_in(request, key))
        if subject_id and _is_id(subject_id):
            return kind + subject_id
    if path == APPLY_CATALOG:
        return "catalog:"
    return caller.actor if caller is not None and path.endswith(OF_ITSELF) else ""


def _id_in(request: Message, name: str) -> str:
    """The id of this name in the request, or in the token that it carries; empty if it is not there or none."""
    for holder in (request, getattr(request, "token", None)):
        value = getattr(holder, name, "")
        if isinstance(value, str) and _is_id(value):
            return value
    return ""


def _is_id(text: str) -> bool:
    """What is most of a secret has an id's form too."""
    return Fields.fits_identifier(text) and redact(text) == text
