"""What a warm Check allowed is given again only for the same bytes of the same caller, at the same position, in time."""

from __future__ import annotations

import pytest

from doorward.core.history import Position
from doorward_server.api import answered
from doorward_server.api.answered import LONGEST, Answer, Answered
from doorward_server.api.recalled import REFRESHED_NS

END_NS = 1_000_000_000_000
NOW_US = 1_800_000_000_000_000
HERE = Position(7, b"nonce...")
EQUAL = Position(7, b"nonce...")
ANSWER = Answer(HERE, END_NS, NOW_US + 5, "t", b"response")


class Kept(Answered):
    """Asked as `warm.py` does it."""

    def put(self, credential: str | None, request: bytes, answer: Answer) -> None:
        key = self.key_of(credential, request)
        if key is not None:
            self.keep(key, answer)

    def get(
        self, credential: str | None, request: bytes, position: Position | None, end_ns: int, now_us: int
    ) -> Answer | None:
        key = self.key_of(credential, request)
        return None if key is None else self.find(key, position, end_ns, now_us)


@pytest.fixture
def kept() -> Kept:
    kept = Kept()
    kept.put("Bearer caller", b"request", ANSWER)
    return kept


def test_the_same_question_of_the_same_caller_has_the_same_answer(kept: Kept) -> None:
    assert kept.get("Bearer caller", b"request", HERE, END_NS, NOW_US) is ANSWER


@pytest.mark.parametrize(
    ("credential", "request_bytes"),
    [
        ("Bearer caller", b"request."),
        ("Bearer caller", b"reques"),
        ("Bearer caller", b""),
        ("Bearer callers", b"request"),
        ("Bearer calle", b"rrequest"),
        ("Bearer caller\0request", b""),
        ("", b"request"),
        (None, b"request"),
    ],
)
def test_another_question_or_another_caller_has_none(kept: Kept, credential: str | None, request_bytes: bytes) -> None:
    assert kept.get(credential, request_bytes, HERE, END_NS, NOW_US) is None


@pytest.mark.parametrize("position", [Position(8, b"nonce..."), Position(7, b"another."), EQUAL, None])
def test_any_change_ends_it_and_so_does_another_registration(kept: Kept, position: Position | None) -> None:
    """Also one at an equal position: what was held then is not what is held now."""
    assert kept.get("Bearer caller", b"request", position, END_NS, NOW_US) is None


def test_it_ends_with_the_first_thing_of_it_that_ends(kept: Kept) -> None:
    assert kept.get("Bearer caller", b"request", HERE, END_NS, NOW_US + 4) is ANSWER
    assert kept.get("Bearer caller", b"request", HERE, END_NS, NOW_US + 5) is None


def test_it_is_made_anew_from_time_to_time(kept: Kept) -> None:
    assert kept.get("Bearer caller", b"request", HERE, END_NS + REFRESHED_NS, NOW_US) is ANSWER
    assert kept.get("Bearer caller", b"request", HERE, END_NS + REFRESHED_NS + 1, NOW_US) is None


def test_what_is_too_long_or_of_nobody_is_not_kept() -> None:
    kept = Kept()
    kept.put("c", b"r" * (LONGEST - 1), ANSWER)
    kept.put("c", b"r" * LONGEST, ANSWER)
    kept.put(None, b"request", ANSWER)

    assert len(kept._known) == 1
    assert kept.get("c", b"r" * (LONGEST - 1), HERE, END_NS, NOW_US) is ANSWER


def test_it_is_bounded_and_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answered, "CAPACITY", 3)
    kept = Kept()
    for number in range(10):
        kept.put("Bearer caller", b"secret %d" % number, ANSWER)

    assert 0 < len(kept._known) <= 3
    assert all(len(key) == 32 and b"secret" not in key for key in kept._known)
    assert Answered().key_of("c", b"r") != Answered().key_of("c", b"r")
