"""The credential of a client: taken from a value, a file that is replaced, a callable; never shown."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest

from doorward import errors
from doorward._caller import Caller
from doorward._credentials import LOOK_EVERY_NS, FromFile, credential_of
from doorward.core.secret import SecretKind, generate, new_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from doorward._credentials import Metadata


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.ns = 0

    def now_ns(self) -> int:
        return self.ns

    def next_look(self) -> None:
        self.ns += LOOK_EVERY_NS


def a_credential() -> str:
    return generate(SecretKind.OPERATOR, new_id()).reveal()


def bearer(credential: str) -> Metadata:
    return (("authorization", f"Bearer {credential}"),)


def put(path: Path, text: str) -> None:
    """Replaces a file in one step, as whoever rotates should."""
    beside = path.with_suffix(".new")
    beside.write_text(text)
    beside.replace(path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "caller.token"


def test_a_value_is_sent_as_it_is_without_the_space_around_it() -> None:
    credential = a_credential()
    assert credential_of(f" {credential}\n").metadata() == bearer(credential)


def test_a_service_token_may_call_too() -> None:
    secret = generate(SecretKind.TOKEN, new_id()).reveal()
    assert credential_of(secret).metadata() == bearer(secret)


def test_none_sends_nothing() -> None:
    assert credential_of(None).metadata() == ()


@pytest.mark.parametrize("spoil", [lambda text: text[:-1], lambda text: f"{text}x", lambda _: "/etc/caller.token"])
def test_a_value_that_is_no_credential_is_refused_at_once_and_not_shown(spoil: Callable[[str], str]) -> None:
    given = spoil(a_credential())
    with pytest.raises(ValueError, match="credential itself") as caught:
        credential_of(given)
    assert given not in str(caught.value)


def test_a_file_is_read_and_its_replacement_within_a_look(file: Path, clock: Clock) -> None:
    first, second = a_credential(), a_credential()
    put(file, f"{first}\n")
    source = FromFile(file, clock)
    assert source.metadata() == bearer(first)
    put(file, second)
    clock.next_look()
    assert source.metadata() == bearer(second)


def test_a_file_is_looked_at_once_a_second_at_most(file: Path, clock: Clock) -> None:
    first, second = a_credential(), a_credential()
    put(file, first)
    source = FromFile(file, clock)
    source.metadata()
    put(file, second)
    clock.ns += LOOK_EVERY_NS - 1
    assert source.metadata() == bearer(first)


def test_metadata_is_the_same_object_while_the_credential_is_the_same(file: Path, clock: Clock) -> None:
    credential = a_credential()
    put(file, credential)
    source = FromFile(file, clock)
    first = source.metadata()
    put(file, credential)
    clock.next_look()
    assert source.metadata() is first


def test_after_a_refusal_the_file_is_read_at_the_next_call(file: Path, clock: Clock) -> None:
    first, second = a_credential(), a_credential()
    put(file, first)
    source = FromFile(file, clock)
    source.metadata()
    put(file, second)
    source.refused()
    assert source.metadata() == bearer(second)


def test_after_a_refusal_a_file_is_read_even_if_it_looks_the_same(file: Path, clock: Clock) -> None:
    first, second = a_credential(), a_credential()
    file.write_text(first)
    times = file.stat()
    source = FromFile(file, clock)
    source.metadata()
    with file.open("r+") as same:
        same.write(second)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    clock.next_look()
    assert source.metadata() == bearer(first)
    source.refused()
    assert source.metadata() == bearer(second)


@pytest.mark.parametrize("change", ["gone", "half", "empty", "a directory"])
def test_while_the_file_holds_none_the_one_before_stays_in_use(
    file: Path, clock: Clock, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = a_credential(), a_credential()
    put(file, first)
    source = FromFile(file, clock)
    source.metadata()
    file.unlink()
    if change == "half":
        file.write_text(second[:30])
    elif change == "empty":
        file.write_text("")
    elif change == "a directory":
        file.mkdir()
    with caplog.at_level(logging.WARNING, "doorward"):
        for _ in range(3):
            clock.next_look()
            assert source.metadata() == bearer(first)
    assert len(caplog.records) == 1
    assert second[:20] not in caplog.text
    if change == "a directory":
        file.rmdir()
    put(file, second)
    clock.next_look()
    assert source.metadata() == bearer(second)


def test_a_file_that_never_held_one_is_an_error_that_names_it_and_is_looked_at_again(file: Path, clock: Clock) -> None:
    source = FromFile(file, clock)
    with pytest.raises(errors.CredentialUnreadable, match=file.name):
        source.metadata()
    put(file, a_credential())
    source.metadata()


def test_a_callable_is_asked_every_time() -> None:
    credentials = [a_credential() for _ in range(3)]
    left = iter(credentials)
    source = credential_of(lambda: next(left))
    assert [source.metadata() for _ in credentials] == [bearer(one) for one in credentials]


def test_of_a_callable_metadata_is_the_same_object_while_its_answer_is() -> None:
    credential = a_credential()
    source = credential_of(lambda: credential)
    assert source.metadata() is source.metadata()


@pytest.mark.parametrize("answer", ["", "nonsense", None])
def test_a_callable_that_has_none_is_an_error(answer: str | None) -> None:
    source = credential_of(lambda: answer)  # type: ignore[arg-type, return-value] # what callers get wrong
    with pytest.raises(errors.CredentialUnreadable):
        source.metadata()


def test_a_callable_that_fails_is_an_error_with_its_cause() -> None:
    def fails() -> str:
        raise OSError("vault is sealed")

    with pytest.raises(errors.CredentialUnreadable) as caught:
        credential_of(fails).metadata()
    assert isinstance(caught.value.__cause__, OSError)


def test_no_source_shows_its_credential(file: Path) -> None:
    credential = a_credential()
    put(file, credential)
    for given in (credential, file, lambda: credential):
        source = credential_of(given)
        source.metadata()
        caller = Caller(source, 1.0, tuple)
        caller.metadata()
        assert credential not in f"{source!r}{source}{caller!r}{caller}"


def test_who_acts_for_somebody_sends_that_too() -> None:
    credential = a_credential()
    caller = Caller.of(credential, None, 1.0, tuple)
    assert caller.acting_for("alice@example.com").metadata() == (
        *bearer(credential),
        ("on-behalf-of", "alice@example.com"),
    )
    assert caller.metadata() == bearer(credential)


@pytest.mark.parametrize("whom", ["", "älice", "a\nb"])
def test_whom_is_what_grpc_can_carry(whom: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        Caller.of(None, None, 1.0, tuple).acting_for(whom)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 86_401])
def test_a_default_timeout_is_a_number_of_seconds(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Caller.of(None, timeout, 1.0, tuple)


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), 86_401])
def test_a_timeout_is_a_number_of_seconds(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Caller.of(None, None, 1.0, tuple).seconds(timeout)


@pytest.mark.parametrize("timeout", [0, -0.5])
def test_when_no_time_is_left_the_deadline_is_over(timeout: float) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        Caller.of(None, None, 1.0, tuple).seconds(timeout)


def test_every_call_has_a_deadline() -> None:
    assert Caller.of(None, None, 1.5, tuple).seconds(None) == 1.5
    assert Caller.of(None, 3.0, 1.5, tuple).seconds(None) == 3.0
    assert Caller.of(None, 3.0, 1.5, tuple).seconds(0.2) == 0.2


def test_several_calls_share_one_deadline() -> None:
    left = Caller.of(None, None, 5.0, tuple).budget(None)
    first = left()
    assert 0 < left() <= first <= 5.0
