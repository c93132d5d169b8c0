"""The shape of a request's fields: every violation is collected, none stops the others (design section 3, Errors).

What depends on the catalog or on an account is checked in `service/`, under the locks.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeVar

from doorward.core.revision import Revision, RevisionMalformed
from doorward.core.secret import contains_secret
from doorward_server.errors import InvalidArgument, Violation
from doorward_server.model import Grant

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from google.protobuf import duration_pb2, timestamp_pb2

    from doorward.v1 import types_pb2

__all__ = ["Fields"]

M = TypeVar("M", bound=IntEnum)

_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
LONGEST_DISPLAY_NAME: Final = 200
LONGEST_DESCRIPTION: Final = 2000
LONGEST_REASON: Final = 500
LONGEST_LABEL_KEY: Final = 63
LONGEST_LABEL_VALUE: Final = 255
LONGEST_SECRET: Final = 128
# The last instant that a Timestamp and PostgreSQL can both say (RFC 3339).
_LAST_SECOND: Final = 253402300799
# Where the driver writes PostgreSQL's `infinity` instead, which no load can turn into a number.
_NO_INSTANT: Final = datetime.max.replace(tzinfo=UTC)
_LONGEST_TTL: Final = timedelta(days=36500)


class Fields:
    """Collects what is wrong with one request."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def wrong(self, field: str, description: str, reason: str) -> None:
        """One more violation."""
        self._violations.append(Violation(field, description, reason))

    @property
    def are_right(self) -> bool:
        """Whether nothing is wrong so far."""
        return not self._violations

    def refusal(self) -> InvalidArgument:
        """The error with all of them; there must be one."""
        return InvalidArgument.of(tuple(self._violations))

    def done(self) -> None:
        """Ends the collecting.

        Raises:
            InvalidArgument: INVALID_FIELDS, with all of them.
        """
        if self._violations:
            raise InvalidArgument.of(tuple(self._violations))

    async def done_with(self, further: Callable[[], Awaitable[Sequence[Violation]]]) -> None:
        """Like `done`, but a refusal also names what `further()` finds: what only the catalog or the account can tell.

        Of a field that is wrong already nothing more is said. Raises what `further` raises, too.
        """
        if self._violations:
            told = {violation.field for violation in self._violations}
            self._violations += [violation for violation in await further() if violation.field not in told]
        self.done()

    def identifier(self, field: str, value: str) -> str:
        """An id: 1 to 64 of A-Z a-z 0-9 _ -. Empty when it is wrong, so that nobody looks it up."""
        if not value:
            self.wrong(field, "is required: 1 to 64 of the characters A-Z a-z 0-9 _ -", "FIELD_REQUIRED")
        elif not _ID.fullmatch(value):
            reason = "FIELD_TOO_LONG" if len(value) > 64 else "FIELD_MALFORMED"
            self.wrong(field, "must be 1 to 64 of the characters A-Z a-z 0-9 _ -", reason)
        elif contains_secret(value):
            # A secret has the form of an id: repeated in an error or kept as a name, it would stand there in the clear.
            text = "is a secret; a token or an operator is named by its public id alone"
            self.wrong(field, text, "FIELD_CONTAINS_SECRET")
        else:
            return value
        return ""

    @staticmethod
    def fits_identifier(value: str) -> bool:
        """Whether `value` has the form of an id and is no secret, without noting anything."""
        return _ID.fullmatch(value) is not None and not contains_secret(value)

    def name(self, field: str, value: str, *, example: str) -> str:
        """A name of the catalog: a plan's or a permission set's."""
        if not value:
            self.wrong(field, f"is required, for example {example}", "FIELD_REQUIRED")
        elif not _NAME.fullmatch(value):
            reason = "FIELD_TOO_LONG" if len(value) > 63 else "FIELD_MALFORMED"
            self.wrong(field, f"must be a name: a-z 0-9 _, at most 63 characters, for example {example}", reason)
        return value

    def enumerated(self, field: str, value: int, kind: type[M], names: Iterable[str]) -> M | None:
        """A member of an enum; 0 means any."""
        if value == 0:
            return None
        if value not in {member.value for member in kind}:
            known = ", ".join(name for name in names if not name.endswith("_UNSPECIFIED"))
            self.wrong(field, f"has the unknown value {value}; it may be {known}", "FIELD_OUT_OF_RANGE")
            return None
        return kind(value)

    def text(self, field: str, value: str, *, longest: int, required: bool = False) -> str:
        """Text for people: at most `longest` characters, no control characters, no secret in it."""
        if required and not value.strip():
            self.wrong(field, f"is required: 1 to {longest} characters", "FIELD_REQUIRED")
        elif len(value) > longest:
            self.wrong(field, f"has {len(value)} characters; at most {longest} are allowed", "FIELD_TOO_LONG")
        elif any(unicodedata.category(character) in {"Cc", "Cs"} and character not in "\n\t" for character in value):
            self.wrong(field, "must not contain control characters", "FIELD_MALFORMED")
        elif contains_secret(value):
            self.wrong(field, "contains a secret; secrets must never be written down here", "FIELD_CONTAINS_SECRET")
        return value

    def secret(self, field: str, value: str) -> bytes:
        """A presented secret: whatever it is, at most 128 bytes. What it says is not repeated."""
        encoded = value.encode()
        if not encoded:
            self.wrong(field, "is required: the secret that was presented", "FIELD_REQUIRED")
        elif len(encoded) > LONGEST_SECRET:
            self.wrong(field, f"has {len(encoded)} bytes; at most {LONGEST_SECRET} are allowed", "FIELD_TOO_LONG")
        return encoded

    def labels(self, field: str, values: Mapping[str, str], *, most: int) -> dict[str, str]:
        """Labels: keys of 1 to 63 characters, values of at most 255."""
        if len(values) > most:
            self.wrong(field, f"has {len(values)} labels; at most {most} are allowed", "TOO_MANY_ITEMS")
            return {}
        for key, value in values.items():
            place = f"{field}[{key[:LONGEST_LABEL_KEY]!r}]"
            if contains_secret(key):
                self.wrong(field, "a key contains a secret", "FIELD_CONTAINS_SECRET")
                continue
            if len(key) > LONGEST_LABEL_KEY:
                self.wrong(
                    place,
                    f"the key has {len(key)} characters; at most {LONGEST_LABEL_KEY} are allowed",
                    "FIELD_TOO_LONG",
                )
            elif not _LABEL_KEY.fullmatch(key):
                form = "1 to 63 of A-Z a-z 0-9 . _ / -, beginning and ending with a letter or digit"
                self.wrong(place, f"the key must be {form}", "FIELD_MALFORMED")
            self.text(place, value, longest=LONGEST_LABEL_VALUE)
        return dict(values)

    def grants(
        self, field: str, values: Sequence[types_pb2.Grant], *, most: int, most_projects: int
    ) -> tuple[Grant, ...]:
        """Grants by shape: a set's name, and exactly one of all projects and a list of them."""
        if not values:
            self.wrong(
                field, f"is required: 1 to {most} grants; a token without any would give nothing", "FIELD_REQUIRED"
            )
        elif len(values) > most:
            self.wrong(field, f"has {len(values)} grants; at most {most} are allowed", "TOO_MANY_ITEMS")
            return ()
        return tuple(
            self._grant(f"{field}[{index}]", value, most_projects=most_projects) for index, value in enumerate(values)
        )

    def expiry(
        self,
        expire_time: timestamp_pb2.Timestamp | None,
        ttl: duration_pb2.Duration | None,
        *,
        field: str = "expire_time",
    ) -> tuple[datetime | None, timedelta | None]:
        """An instant (`field`) or a span from now; that it lies ahead is checked with the database's time."""
        if expire_time is not None:
            if not -62135596800 <= expire_time.seconds <= _LAST_SECOND or not 0 <= expire_time.nanos < 1_000_000_000:
                self.wrong(field, "must be a time between the years 1 and 9999", "FIELD_OUT_OF_RANGE")
                return None, None
            instant = expire_time.ToDatetime(tzinfo=UTC)
            if instant == _NO_INSTANT:
                self.wrong(field, "is the last microsecond there is; leave it out for never", "FIELD_OUT_OF_RANGE")
            return instant, None
        if ttl is None:
            return None, None
        same_sign = ttl.seconds == 0 or ttl.nanos == 0 or (ttl.seconds > 0) == (ttl.nanos > 0)
        if not same_sign or abs(ttl.nanos) >= 1_000_000_000 or abs(ttl.seconds) > _LONGEST_TTL.total_seconds():
            self.wrong("ttl", "must be a span of at most 100 years (36500 days)", "FIELD_OUT_OF_RANGE")
            return None, None
        span = ttl.ToTimedelta()
        if span <= timedelta(0):
            self.wrong("ttl", "must be positive", "FIELD_OUT_OF_RANGE")
        return None, span

    def revision(self, field: str, value: str) -> Revision | None:
        """A revision as answers carry it."""
        if not value:
            self.wrong(field, "is required: a revision as an answer gave it, for example 1.42", "FIELD_REQUIRED")
            return None
        try:
            return Revision.parse(value)
        except RevisionMalformed:
            self.wrong(
                field, "must be a revision as an answer gave it: <epoch>.<number>, for example 1.42", "FIELD_MALFORMED"
            )
            return None

    def page_size(self, value: int, *, most: int, default: int) -> int:
        """AIP-158: 0 means the default, and more than the most means the most."""
        if value < 0:
            self.wrong("page_size", f"must not be negative; 0 means {default}, at most {most}", "FIELD_OUT_OF_RANGE")
        return min(value, most) or default

    def _grant(self, place: str, value: types_pb2.Grant, *, most_projects: int) -> Grant:
        self.name(f"{place}.permission_set", value.permission_set, example="job_admin")
        project_ids = list(value.project_ids)
        if value.all_projects and project_ids:
            self.wrong(place, "has both all_projects and project_ids; set exactly one of them", "FIELD_CONFLICT")
        elif not value.all_projects and not project_ids:
            text = "has neither all_projects nor project_ids; set exactly one of them (empty never means all)"
            self.wrong(place, text, "FIELD_REQUIRED")
        if len(project_ids) > most_projects:
            text = f"has {len(project_ids)} projects; at most {most_projects} are allowed in one grant"
            self.wrong(f"{place}.project_ids", text, "TOO_MANY_ITEMS")
            return Grant(value.permission_set, None)
        seen: dict[str, int] = {}
        identifiers: list[str] = []
        for index, project_id in enumerate(project_ids):
            identifiers.append(self.identifier(f"{place}.project_ids[{index}]", project_id))
            if project_id in seen:
                text = f"{project_id!r} stands in project_ids[{seen[project_id]}] already"
                self.wrong(f"{place}.project_ids[{index}]", text, "FIELD_DUPLICATE")
            seen.setdefault(project_id, index)
        return Grant(value.permission_set, None if value.all_projects else tuple(identifiers))
