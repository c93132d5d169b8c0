"""The form of a secret, and that its text shows nowhere by itself."""

import copy
import io
import json
import logging
import pickle
import re
import string
import traceback
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorward.core.secret import (
    ALPHABET,
    Secret,
    SecretKind,
    contains_secret,
    find_secret,
    generate,
    new_id,
)

KINDS = list(SecretKind)


def a_secret(kind: SecretKind = SecretKind.TOKEN) -> Secret:
    return generate(kind, new_id())


def well_formed(kind: str, subject_id: str, random: str) -> str:
    """A secret's text made by another hand: CRC-32 in base62 by powers instead of divisions one by one."""
    body = f"{kind}_{subject_id}_{random}"
    checksum = zlib.crc32(body.encode())
    alphabet = string.digits + string.ascii_uppercase + string.ascii_lowercase
    return body + "".join(alphabet[checksum // 62**power % 62] for power in range(5, -1, -1))


# ---- the form


@pytest.mark.parametrize("kind", KINDS)
def test_a_generated_secret_has_the_form_of_its_kind(kind: SecretKind) -> None:
    for _ in range(200):
        secret = a_secret(kind)
        assert re.fullmatch(kind.value + r"_[0-9A-Za-z]{16}_[0-9A-Za-z]{38}", secret.reveal())
        assert len(secret.reveal()) == 60
        assert secret.reveal()[5:21] == secret.subject_id


def test_the_kinds_are_told_apart_by_their_prefix() -> None:
    assert {kind.name: kind.value for kind in SecretKind} == {"TOKEN": "dwst", "OPERATOR": "dwop"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encode", [str, lambda text: text.encode("ascii")])
def test_a_generated_secret_is_found_again(kind: SecretKind, encode: Callable[[str], Any]) -> None:
    secret = a_secret(kind)

    found = find_secret(encode(secret.reveal()), kind)

    assert found is not None
    assert (found.kind, found.subject_id, found.reveal()) == (kind, secret.subject_id, secret.reveal())


def test_two_secrets_and_two_ids_differ() -> None:
    subject_id = new_id()

    assert generate(SecretKind.TOKEN, subject_id).reveal() != generate(SecretKind.TOKEN, subject_id).reveal()
    assert len({new_id() for _ in range(1_000)}) == 1_000


def test_every_character_of_the_alphabet_is_drawn() -> None:
    drawn = "".join(a_secret().reveal()[22:54] for _ in range(200))

    assert set(drawn) == set(ALPHABET) == set(string.digits + string.ascii_letters)


@given(st.text(ALPHABET, min_size=16, max_size=16), st.text(ALPHABET, min_size=32, max_size=32))
def test_what_another_hand_makes_by_the_design_is_found(subject_id: str, random: str) -> None:
    found = find_secret(well_formed("dwst", subject_id, random), SecretKind.TOKEN)

    assert found is not None
    assert found.subject_id == subject_id


@pytest.mark.parametrize(
    "subject_id", ["", "a" * 15, "a" * 17, "a" * 15 + "_", "a" * 15 + "é", "a" * 15 + "\n", "a" * 15 + "٣"]
)
def test_only_a_public_id_makes_a_secret(subject_id: str) -> None:
    with pytest.raises(ValueError, match="16 characters"):
        generate(SecretKind.TOKEN, subject_id)


# ---- what is refused


@pytest.mark.parametrize("kind", KINDS)
def test_every_change_of_one_character_is_refused(kind: SecretKind) -> None:
    text = a_secret(kind).reveal()
    other_characters = {*ALPHABET, "_", "-", " ", "\n", "\0", "é", "٣", "ａ"}

    found = [
        changed
        for place in range(len(text))
        for character in sorted(other_characters - {text[place]})
        if find_secret(changed := text[:place] + character + text[place + 1 :], kind) is not None
    ]

    assert found == []


def test_every_swap_of_two_neighbours_is_refused() -> None:
    text = a_secret().reveal()
    swapped = {text[:n] + text[n + 1] + text[n] + text[n + 2 :] for n in range(len(text) - 1)} - {text}

    assert [changed for changed in swapped if find_secret(changed, SecretKind.TOKEN) is not None] == []


def test_every_shorter_or_longer_text_is_refused() -> None:
    text = a_secret().reveal()
    others = [text[:length] for length in range(60)] + [text[begin:] for begin in range(1, 61)]
    others += [text + more for more in ("0", "a", "\n", " ", "\0", text)] + [
        less + text for less in (" ", "\n", "Bearer ")
    ]

    assert [other for other in others if find_secret(other, SecretKind.TOKEN) is not None] == []


@pytest.mark.parametrize("prefix", ["dwop", "DWST", "dwsT", "dws", "dwstt", "", "gh"])
def test_another_prefix_is_refused_also_with_its_own_checksum(prefix: str) -> None:
    text = well_formed(prefix, new_id(), a_secret().reveal()[22:54])

    assert find_secret(text, SecretKind.TOKEN) is None


def test_a_secret_of_one_kind_is_none_of_the_other() -> None:
    assert find_secret(a_secret(SecretKind.OPERATOR).reveal(), SecretKind.TOKEN) is None
    assert find_secret(a_secret(SecretKind.TOKEN).reveal(), SecretKind.OPERATOR) is None


@pytest.mark.parametrize(
    "text", ["", "dwst_", "é" * 60, "\ud800" * 60, "０" * 60, "a" * 60, "_" * 60, "a" * 10_000_000]
)
def test_text_that_is_no_secret_is_refused(text: str) -> None:
    assert find_secret(text, SecretKind.TOKEN) is None


@pytest.mark.parametrize("text", [b"", b"\xff" * 60, b"\0" * 60, b"dwst_" + b"\xc3\xa9" * 27 + b"a", b"a" * 10_000_000])
def test_bytes_that_are_no_secret_are_refused(text: bytes) -> None:
    assert find_secret(text, SecretKind.TOKEN) is None


@given(st.text() | st.binary(), st.sampled_from(KINDS))
def test_no_other_text_is_found(text: str | bytes, kind: SecretKind) -> None:
    assert find_secret(text, kind) is None


# ---- a secret in other text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("around", ["{}", "deploy key {} of ci", "x{}x", "{}\n", "é{}é", "dwst_{}", '{{"k": "{}"}}'])
def test_a_secret_is_seen_in_any_text(kind: SecretKind, around: str) -> None:
    assert contains_secret(around.format(a_secret(kind).reveal()))


def test_a_secret_is_seen_behind_what_only_looks_like_one() -> None:
    text = a_secret().reveal()
    mistyped = text[:-1] + ("0" if text[-1] != "0" else "1")

    assert not contains_secret(mistyped)
    assert contains_secret(f"{mistyped} {text}")
    assert contains_secret(mistyped[:22] + text)  # begins within another's form


@given(st.text())
def test_ordinary_text_contains_no_secret(text: str) -> None:
    assert not contains_secret(text)


# ---- the text shows nowhere


def logged(secret: Secret) -> str:
    stream = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(stream))
    logger.warning("secret %s %r", secret, secret)
    logger.warning({"secret": secret})
    return stream.getvalue()


def traced(secret: Secret) -> str:
    def fails(held: Secret) -> None:
        raise RuntimeError(held)

    try:
        fails(secret)
    except RuntimeError as error:
        return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    raise AssertionError


SHOWN: dict[str, Callable[[Secret], str]] = {
    "repr": repr,
    "str": str,
    "format": format,
    "format with a width": lambda secret: f"{secret:>80}",
    "f-string": lambda secret: f"{secret} {secret!r} {secret!s} {secret!a}",
    "percent": lambda secret: "%s %r" % (secret, secret),  # noqa: UP031
    "in a container": lambda secret: repr({"secret": [secret]}),
    "logging": logged,
    "traceback with locals": traced,
}


@pytest.mark.parametrize("how", list(SHOWN))
def test_shown_in_any_way_a_secret_hides_its_text(how: str) -> None:
    secret = a_secret()

    shown = SHOWN[how](secret)

    assert "***" in shown
    assert secret.subject_id not in shown
    assert secret.reveal()[22:54] not in shown


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_secret_cannot_be_pickled(protocol: int) -> None:
    secret = a_secret()

    with pytest.raises(TypeError, match="neither pickled nor copied") as raised:
        pickle.dumps(secret, protocol)

    assert secret.reveal() not in str(raised.value)


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, json.dumps, vars, hash, iter, len, bytes])
def test_nothing_general_takes_a_secret_apart(take: Callable[[Any], Any]) -> None:
    secret = a_secret()

    with pytest.raises(TypeError) as raised:
        take(secret)

    assert secret.reveal() not in str(raised.value)


def test_a_refused_public_id_is_not_repeated_in_the_error() -> None:
    text = a_secret().reveal()

    with pytest.raises(ValueError, match="16 characters") as raised:
        generate(SecretKind.TOKEN, text)

    assert text not in str(raised.value)


def test_secrets_are_equal_if_their_texts_are() -> None:
    secret = a_secret()
    again = find_secret(secret.reveal(), SecretKind.TOKEN)

    assert secret == again
    assert secret != a_secret()
    assert secret != secret.reveal()
