"""The pepper keys: digests of secrets under them, and the edits of their file (design section 4, Peppers).

The file has one statement a line, `key <id> <32 bytes in base64>` or `current <id>`; blank lines and lines that begin
with `#` are kept as they are. A ring is one reading of it, and no `repr`, exception or traceback shows a key. Digests
need no further separation: the text of every secret begins with the prefix of its kind.

`app.py` loads or creates the file, `recognition` and the use cases take digests, `sealing` derives keys, `doorward pepper
…` edits. Whether digests still depend on a key only the database knows: whoever calls `retire` asks there first.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from doorward_server.credentials import pepper_file
from doorward_server.credentials.pepper_file import Content, PepperInvalid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["KEY_BYTES", "PepperInvalid", "PepperRing", "activate", "add", "create", "load", "retire"]

KEY_BYTES: Final = 32
_KEY_ID: Final = re.compile(r"[a-z0-9_]{1,32}")
_FINGERPRINT_LABEL: Final = b"doorward pepper fingerprint"  # no secret's text: those begin with their prefix
_DERIVATION_LABEL: Final = b"doorward pepper derivation"
_HEADER: Final = (
    "# Doorward's pepper keys. Whoever has this file and the database can test guesses of a secret; whoever has only",
    "# one of them cannot. Keep a copy apart from the database's: without its key a digest is useless.",
    "# Change it with `doorward pepper add | activate | retire`.",
)


class PepperRing:
    """The keys of one pepper file. Immutable; shows key ids and never a key; cannot be pickled."""

    __slots__ = ("_current_id", "_keys")

    def __init__(self, keys: dict[str, bytes], current_id: str) -> None:
        self._keys = keys
        self._current_id = current_id

    @property
    def current_id(self) -> str:
        """The id of the key that new digests are made under."""
        return self._current_id

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Every key's id, in the file's order."""
        return tuple(self._keys)

    def digest(self, text: bytes | str) -> tuple[str, bytes]:
        """The current key's id, and the HMAC-SHA256 of `text` under it: what is stored with a secret."""
        return self._current_id, hmac.digest(self._keys[self._current_id], _as_bytes(text), "sha256")

    def digest_under(self, key_id: str, text: bytes | str) -> bytes | None:
        """The HMAC-SHA256 of `text` under that key; None if the file has none of this id."""
        if key_id not in self._keys:
            return None
        return hmac.digest(self._keys[key_id], _as_bytes(text), "sha256")

    def derive(self, key_id: str, info: bytes) -> bytes | None:
        """32 bytes by HKDF-SHA256 (RFC 5869) from that key and `info`; None if the file has none of this id.

        For keys of other uses, apart from each other and from every digest. Whoever knows the pepper key but not `info`
        knows nothing of them.
        """
        if key_id not in self._keys:
            return None
        hkdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=_DERIVATION_LABEL, info=info)
        return hkdf.derive(self._keys[key_id])

    def fingerprints(self) -> dict[str, str]:
        """For each key id 64 hex digits that tell keys apart and nothing of the key: what `state` keeps."""
        return {key_id: hmac.digest(key, _FINGERPRINT_LABEL, "sha256").hex() for key_id, key in self._keys.items()}

    def __repr__(self) -> str:
        return f"PepperRing(current_id={self.current_id!r}, key_ids={self.key_ids!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PepperRing holds keys and is not pickled")


def load(path: Path) -> PepperRing:
    """The ring of that file.

    Raises:
        PepperInvalid: the file is missing, open to others, too long, or a line of it is wrong.
    """
    return _ring_of(path, pepper_file.read(path))


def create(path: Path) -> PepperRing:
    """Makes the file with one new key, which is current; mode 0600, whole or not at all.

    Raises:
        PepperInvalid: it exists already (and is left alone), or cannot be written.
    """
    key_id = _new_id()
    pepper_file.create(path, Content((*_HEADER, f"current {key_id}", _key_line(key_id))))
    return load(path)


def add(path: Path) -> str:
    """Adds a new key and returns its id. It is not current yet, so that every server can be given the file first.

    Raises:
        PepperInvalid: the file cannot be used or written, or is full.
    """
    key_id = _new_id()
    _edit(path, lambda content, _: Content((*content.lines, _key_line(key_id))))
    return key_id


def activate(path: Path, key_id: str) -> None:
    """Makes that key the current one: new digests are made under it. A repeat changes nothing.

    Raises:
        PepperInvalid: the file has no such key, or cannot be used or written.
    """

    def change(content: Content, ring: PepperRing) -> Content:
        _require_known(path, ring, key_id)
        return Content(
            tuple(f"current {key_id}" if line.split()[:1] == ["current"] else line for line in content.lines)
        )

    _edit(path, change)


def retire(path: Path, key_id: str) -> None:
    """Takes that key out of the file: a digest under it can be compared no more.

    Raises:
        PepperInvalid: it is the current key, the file has no such key, or cannot be used or written.
    """

    def change(content: Content, ring: PepperRing) -> Content:
        _require_known(path, ring, key_id)
        if key_id == ring.current_id:
            raise PepperInvalid(path, f"{key_id} is the current key; activate another before it is retired")
        return Content(tuple(line for line in content.lines if line.split()[:2] != ["key", key_id]))

    _edit(path, change)


def _edit(path: Path, change: Callable[[Content, PepperRing], Content]) -> None:
    """Replaces the file by what `change` makes of it, if both can be loaded."""

    def checked(content: Content) -> Content:
        changed = change(content, _ring_of(path, content))
        _ring_of(path, changed)  # a new id may be taken, once in four billion
        return changed

    pepper_file.replace(path, checked)


def _require_known(path: Path, ring: PepperRing, key_id: str) -> None:
    if key_id not in ring.key_ids:
        # Not repeated in the message: whoever pasted a key in the id's place would find it in a log.
        raise PepperInvalid(path, f"has no key of this id; it has {', '.join(ring.key_ids)}")


@dataclass(frozen=True, slots=True)
class _Problem:
    text: str
    line: int | None = None


def _ring_of(path: Path, content: Content) -> PepperRing:
    parsed = _parse(content)
    if isinstance(parsed, _Problem):
        raise PepperInvalid(path, parsed.text, parsed.line)
    return parsed


def _parse(content: Content) -> PepperRing | _Problem:
    """The ring, or the first thing that is wrong. Raises nothing: its local variables hold keys."""
    keys: dict[str, bytes] = {}
    current: str | None = None
    current_line = 0
    for number, line in enumerate(content.lines, start=1):
        match line.split():
            case []:
                continue
            case [word, *_] if word.startswith("#"):
                continue
            case ["current", key_id]:
                if current is not None:
                    return _Problem(f"names a current key, as line {current_line} does; keep one of them", number)
                current, current_line = key_id, number
            case ["key", key_id, encoded]:
                problem = _add_key(keys, key_id, encoded)
                if problem:
                    return _Problem(problem, number)
            case _:
                return _Problem("is no statement; expected `key <id> <32 bytes in base64>` or `current <id>`", number)
    if not keys:
        return _Problem("has no key; expected a line `key <id> <32 bytes in base64>`")
    if current is None:
        return _Problem(f"names no current key; expected a line `current <id>` with one of {', '.join(keys)}")
    if current not in keys:
        return _Problem(f"names a current key that the file lacks; it has {', '.join(keys)}", current_line)
    return PepperRing(keys, current)


def _add_key(keys: dict[str, bytes], key_id: str, encoded: str) -> str | None:
    """Puts the key into `keys`, or says what is wrong with it."""
    if not _KEY_ID.fullmatch(key_id):
        return "has no proper key id; expected 1 to 32 of a-z, 0-9 and _"
    if key_id in keys:
        return f"has the id {key_id} a second time; every key has its own"
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return f"key {key_id} is not in base64; expected 44 characters that encode {KEY_BYTES} bytes"
    if len(key) != KEY_BYTES:
        return f"key {key_id} has {len(key)} bytes; expected {KEY_BYTES} random ones"
    if key in keys.values():
        return f"key {key_id} is another id's key again; every key is its own"
    keys[key_id] = key
    return None


def _new_id() -> str:
    return f"k_{secrets.token_hex(4)}"


def _key_line(key_id: str) -> str:
    return f"key {key_id} {base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode('ascii')}"


def _as_bytes(text: bytes | str) -> bytes:
    # A lone surrogate has a digest too (that nothing has): UnicodeEncodeError would carry the text.
    return text.encode(errors="surrogatepass") if isinstance(text, str) else text
