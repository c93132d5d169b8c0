"""bcrypt itself, with real hashes."""

from __future__ import annotations

import traceback

import pytest

from doorward.core.secret import LENGTH, Secret, SecretKind, generate, new_id
from doorward_server.credentials.bcrypt_calls import BCRYPT_MAX_BYTES, Bcrypt, HashMalformed, require_well_formed

CHEAP = Bcrypt(cost=4)


def a_secret() -> Secret:
    return generate(SecretKind.TOKEN, new_id())


def test_hash_is_of_its_secret_and_of_no_other() -> None:
    secret = a_secret()

    bcrypt_hash = CHEAP.hash(secret)

    assert CHEAP.check(secret, bcrypt_hash)
    assert not CHEAP.check(a_secret(), bcrypt_hash)


def test_cost_is_ten_as_designed() -> None:
    assert Bcrypt().hash(a_secret()).startswith("$2b$10$")


def test_each_hash_has_a_salt_of_its_own() -> None:
    secret = a_secret()

    assert CHEAP.hash(secret) != CHEAP.hash(secret)


@pytest.mark.parametrize("position", [5, 59])
def test_every_character_counts_to_the_last(position: int) -> None:
    secret = a_secret()
    text = secret.reveal()
    other = "a" if text[position] != "a" else "b"
    altered = Secret(secret.kind, secret.subject_id, text[:position] + other + text[position + 1 :])

    assert not CHEAP.check(altered, CHEAP.hash(secret))


def test_text_beyond_bcrypts_bound_is_refused_and_not_cut() -> None:
    assert LENGTH <= BCRYPT_MAX_BYTES
    longest = Secret(SecretKind.TOKEN, new_id(), "x" * BCRYPT_MAX_BYTES)
    too_long = Secret(SecretKind.TOKEN, new_id(), "x" * (BCRYPT_MAX_BYTES + 1))

    bcrypt_hash = CHEAP.hash(longest)
    for call in (lambda: CHEAP.hash(too_long), lambda: CHEAP.check(too_long, bcrypt_hash)):
        with pytest.raises(ValueError, match="more than 72 bytes") as raised:
            call()
        shown = "".join(traceback.TracebackException.from_exception(raised.value, capture_locals=True).format())
        assert too_long.reveal() not in shown


def test_own_hashes_are_well_formed() -> None:
    require_well_formed([CHEAP.hash(a_secret()), CHEAP.hash(a_secret())])


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "$2b$10$",
        "$2b$04$" + 52 * "a",
        "$2b$04$" + 54 * "a",
        "$2b$04$" + 53 * "a" + "\n",
        "$2b$03$" + 53 * "a",
        "$2b$15$" + 53 * "a",  # a minute of the only thread
        "$2b$31$" + 53 * "a",  # a month
        "$2x$10$" + 53 * "a",
        "$2b$10$" + 52 * "a" + "ä",
    ],
)
def test_damaged_hash_is_refused_unshown(damaged: str) -> None:
    with pytest.raises(HashMalformed) as raised:
        require_well_formed([CHEAP.hash(a_secret()), damaged])

    assert not damaged or damaged not in str(raised.value)
