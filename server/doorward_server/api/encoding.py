"""Decisions in protobuf's wire format, written by hand: a message object would cost as much as all the rest of a check.

Fields 1 to 4 of CheckResponse and of BatchCheckResult are the same: allowed, reason, token_id, account_id. Their ids and
a revision are ASCII, at most 64 characters, so all of it is ASCII and each length but the whole one is a single byte; a
test compares it with protobuf's own encoding. Called by `checks.py` and `authorizer.py` (design section 11).
"""

from __future__ import annotations

from typing import Final, TypeAlias

from doorward.core.matrix import DenyReason

__all__ = ["delimited", "encode_check", "encode_result"]

# Reason, token id, account id: a `Decision`, or as much.
Decided: TypeAlias = tuple[DenyReason, str, str]
# Field 1 (allowed) is true, or field 2 (reason) says why not; by the reason's number.
_VERDICTS: Final = tuple("\x08\x01" if reason is DenyReason.ALLOWED else f"\x10{chr(reason)}" for reason in DenyReason)
# One byte for a length below 128.
_LENGTHS: Final = tuple(chr(length) for length in range(128))
# Field 1 of BatchCheckResponse, length-delimited.
_RESULT_TAG: Final = "\n"


def encode_check(decision: Decided, revision: str) -> bytes:
    """The CheckResponse of a decision; its field 5 is the revision."""
    return f"{_body(decision)}*{_LENGTHS[len(revision)]}{revision}".encode("ascii")


def encode_result(decision: Decided) -> bytes:
    """The decision as one of the results of a BatchCheckResponse."""
    body = _body(decision)
    if len(body) < len(_LENGTHS):
        return f"{_RESULT_TAG}{_LENGTHS[len(body)]}{body}".encode("ascii")
    return delimited(body.encode("ascii"))


def delimited(message: bytes, tag: bytes = _RESULT_TAG.encode()) -> bytes:
    """An encoded message as a field of another; without a tag as one of the results of a BatchCheckResponse."""
    length, prefix = len(message), bytearray(tag)
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + message


def _body(decision: Decided) -> str:
    reason, token_id, account_id = decision
    if not token_id:
        return _VERDICTS[reason]
    return f'{_VERDICTS[reason]}\x1a{_LENGTHS[len(token_id)]}{token_id}"{_LENGTHS[len(account_id)]}{account_id}'
