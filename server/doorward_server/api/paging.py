"""Page tokens (AIP-158): opaque to callers, the key of the last row that was shown, bound to the list they came from.

A list pages by key, so that what is inserted or revoked meanwhile neither repeats nor skips a row.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from typing import TYPE_CHECKING, Final

from doorward_server.errors import InvalidArgument, Violation
from doorward_server.model import Page

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from doorward_server.api.fields import Fields

__all__ = ["DEFAULT_SIZE", "next_page_token", "page_of", "page_token_of", "part_of", "require_number", "require_pair"]

DEFAULT_SIZE: Final = 100
LONGEST_TOKEN: Final = 1024
# What keys are made of: ids, names, numbers, times. Anybody can make a token, and NUL or half a surrogate pair is no text
# to the database.
_KEY: Final = re.compile(r"[A-Za-z0-9_.:+-]{1,64}")


def page_of(
    fields: Fields, size: int, token: str, bound_to: Sequence[str], *, most: int, default: int = DEFAULT_SIZE
) -> Page:
    """The page that `size` and `token` ask for; `bound_to` is the RPC and its filters, which must not change between pages.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID.
    """
    checked_size = fields.page_size(size, most=most, default=min(default, most))
    if not token:
        return Page(checked_size)
    return Page(checked_size, _parsed(token, bound_to))


def require_number(page: Page) -> Page:
    """The same page, if its key is a number as this list's keys are.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID.
    """
    key = page.after
    if key is not None and not (len(key) == 1 and key[0].isascii() and key[0].isdecimal() and int(key[0]) < 2**63):
        raise _invalid()
    return page


def require_pair(page: Page, first: Callable[[str], object] = str, second: Callable[[str], object] = str) -> Page:
    """The same page, if its key has two parts as this list's keys have: `first` and `second` raise no ValueError for them.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID.
    """
    if page.after is None:
        return page
    if len(page.after) != 2:
        raise _invalid()
    try:
        first(page.after[0])
        second(page.after[1])
    except ValueError:
        raise _invalid() from None
    return page


def part_of(names: Sequence[str], page: Page) -> Sequence[str]:
    """The page's part of `names`, which are all there are, in the order in which they are listed.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID; the last page's name may have gone since.
    """
    if page.after is None:
        return names[: page.size]
    if page.after[0] not in names:
        raise _invalid()
    start = names.index(page.after[0]) + 1
    return names[start : start + page.size]


def next_page_token(page: Page, rows: int, last_key: Sequence[str], bound_to: Sequence[str]) -> str:
    """The token behind a page of `rows` rows; empty if it was the last one."""
    return page_token_of(None if rows < page.size else last_key, bound_to)


def page_token_of(key: Sequence[str] | None, bound_to: Sequence[str]) -> str:
    """The token of the page that begins behind `key`; empty without one."""
    if key is None:
        return ""
    text = json.dumps([_digest(bound_to), *key], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _parsed(token: str, bound_to: Sequence[str]) -> tuple[str, ...]:
    if len(token) > LONGEST_TOKEN or not token.isascii():
        raise _invalid()
    try:
        values = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        raise _invalid() from None
    if not isinstance(values, list) or len(values) < 2 or not all(_is_key(value) for value in values):
        raise _invalid()
    if values[0] != _digest(bound_to):
        raise _invalid()
    return tuple(values[1:])


def _is_key(value: object) -> bool:
    """Ids, names, numbers and times: whoever makes up a token must not get other text into a statement."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def _digest(bound_to: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(bound_to).encode()).hexdigest()[:16]


def _invalid() -> InvalidArgument:
    text = "must be the next_page_token of the page before, of a list with the same parameters"
    return InvalidArgument(
        "PAGE_TOKEN_INVALID", f"page_token: {text}", violations=(Violation("page_token", text, "PAGE_TOKEN_INVALID"),)
    )
