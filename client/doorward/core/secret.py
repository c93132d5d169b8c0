"""The text of a secret: `dwst_<16 base62 of public id>_<32 random base62><6 base62 of CRC-32>`, 60 characters.

A scanner can match the form, and a mistyped secret is refused by its checksum without a lookup. A `Secret` never shows
its text unless `reveal` is called: not in repr, str, format, pickle or a traceback. Nothing here knows whether a secret
is right. Used wherever a secret enters or leaves the process (design section 4).
"""

import re
import secrets
import zlib
from enum import StrEnum
from hmac import compare_digest
from typing import Final, NoReturn

ALPHABET: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
LENGTH: Final = 60
_ID_LENGTH: Final = 16
_RANDOM_LENGTH: Final = 32  # of 62 characters: 190 bits
_CHECKSUM_LENGTH: Final = 6  # 62**6 > 2**32
_ID: Final = re.compile(rf"[0-9A-Za-z]{{{_ID_LENGTH}}}")
_REST: Final = rf"_[0-9A-Za-z]{{{_ID_LENGTH}}}_[0-9A-Za-z]{{{_RANDOM_LENGTH + _CHECKSUM_LENGTH}}}"
_HIDDEN: Final = "***"


class SecretKind(StrEnum):
    """What a secret is for; the value is its prefix."""

    TOKEN = "dwst"  # noqa: S105 a prefix, not a secret
    OPERATOR = "dwop"


_FORM: Final = {kind: re.compile(kind.value + _REST) for kind in SecretKind}
# The look-ahead takes no character, so that a secret that begins within another's form is found too.
_ANYWHERE: Final = re.compile(f"(?=((?:{'|'.join(kind.value for kind in SecretKind)}){_REST}))")


class Secret:
    """A well-formed secret. Equality takes constant time; it has no hash, so it is never the key of a map."""

    __slots__ = ("_kind", "_subject_id", "_text")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, kind: SecretKind, subject_id: str, text: str) -> None:
        self._kind = kind
        self._subject_id = subject_id
        self._text = text

    @property
    def kind(self) -> SecretKind:
        """Whether it is a token's or an operator's."""
        return self._kind

    @property
    def subject_id(self) -> str:
        """The public id in it: 16 characters."""
        return self._subject_id

    def reveal(self) -> str:
        """The text itself, for the one answer that shows it and for hashing."""
        return self._text

    def __repr__(self) -> str:
        return _HIDDEN

    def __str__(self) -> str:
        return _HIDDEN

    def __format__(self, format_spec: str) -> str:
        return _HIDDEN

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return compare_digest(self._text, other._text)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret can be neither pickled nor copied")


def new_id() -> str:
    """A random public id, 16 base62 characters."""
    return _random_text(_ID_LENGTH)


def generate(kind: SecretKind, subject_id: str) -> Secret:
    """A new random secret of this id.

    Raises:
        ValueError: subject_id is not 16 base62 characters.
    """
    if _ID.fullmatch(subject_id) is None:
        raise ValueError("the public id in a secret has 16 characters of 0-9, A-Z, a-z")
    body = f"{kind.value}_{subject_id}_{_random_text(_RANDOM_LENGTH)}"
    return Secret(kind, subject_id, body + _checksum(body))


def find_secret(text: str | bytes, kind: SecretKind) -> Secret | None:
    """The secret that text is, checksum included, or None. Whatever the text, this takes bounded time."""
    if len(text) != LENGTH or not text.isascii():
        return None
    plain = text.decode("ascii") if isinstance(text, bytes) else text
    if _FORM[kind].fullmatch(plain) is None or not _checksum_fits(plain):
        return None
    begin = len(kind.value) + 1
    return Secret(kind, plain[begin : begin + _ID_LENGTH], plain)


def contains_secret(text: str) -> bool:
    """Whether a well-formed secret of any kind stands anywhere in text."""
    return any(_checksum_fits(match[1]) for match in _ANYWHERE.finditer(text))


def _checksum_fits(text: str) -> bool:
    return _checksum(text[:-_CHECKSUM_LENGTH]) == text[-_CHECKSUM_LENGTH:]


def _checksum(body: str) -> str:
    """CRC-32 in base62, most significant digit first."""
    rest = zlib.crc32(body.encode("ascii"))
    digits = []
    for _ in range(_CHECKSUM_LENGTH):
        rest, digit = divmod(rest, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


def _random_text(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
