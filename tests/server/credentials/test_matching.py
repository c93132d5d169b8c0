"""The comparison of digests, against an oracle that reads like the design's sentence."""

from __future__ import annotations

import ast
import hmac
import inspect
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doorward.core.secret import Secret, SecretKind, generate, new_id
from doorward_server.credentials import matching
from doorward_server.credentials.matching import MatchResult, matches
from doorward_server.credentials.pepper import PepperRing

if TYPE_CHECKING:
    from doorward.core.entries import SecretEntry

NOW_US = 1_000
KEYS = {"k_old": bytes(range(32)), "k_now": bytes(range(1, 33))}
RING = PepperRing(KEYS, "k_now")
LOST_KEY = bytes(range(2, 34))


def a_secret() -> Secret:
    return generate(SecretKind.TOKEN, new_id())


def stored(version: int, secret: Secret, key_id: str = "k_now", not_after_us: int | None = None) -> SecretEntry:
    key = KEYS.get(key_id, LOST_KEY)
    return (version, hmac.digest(key, secret.reveal().encode(), "sha256"), key_id, not_after_us)


def test_right_text_matches_its_version() -> None:
    old, new = a_secret(), a_secret()
    secrets = (stored(1, old), stored(2, new))

    assert matches(secrets, RING, old.reveal(), NOW_US) == MatchResult(1, "k_now", ())
    assert matches(secrets, RING, new.reveal().encode(), NOW_US) == MatchResult(2, "k_now", ())


def test_wrong_text_is_wrong_without_bcrypt() -> None:
    result = matches((stored(1, a_secret()), stored(2, a_secret())), RING, a_secret().reveal(), NOW_US)

    assert result.is_wrong
    assert result.undecided == ()


@pytest.mark.parametrize("position", [0, 15, 31])
def test_digest_that_differs_in_one_byte_does_not_match(position: int) -> None:
    secret = a_secret()
    version, digest, key_id, not_after_us = stored(1, secret)
    assert digest is not None
    altered = bytes(byte ^ (i == position) for i, byte in enumerate(digest))

    assert matches(((version, altered, key_id, not_after_us),), RING, secret.reveal(), NOW_US).is_wrong


@pytest.mark.parametrize("length", [0, 1, 31])
def test_beginning_of_the_digest_does_not_match(length: int) -> None:
    secret = a_secret()
    version, digest, key_id, not_after_us = stored(1, secret)
    assert digest is not None

    assert matches(((version, digest[:length], key_id, not_after_us),), RING, secret.reveal(), NOW_US).is_wrong


def test_match_names_the_key_so_that_an_old_digest_can_be_written_anew() -> None:
    secret = a_secret()

    assert matches((stored(1, secret, "k_old"),), RING, secret.reveal(), NOW_US).pepper_id == "k_old"


def test_without_a_digest_under_a_present_key_only_bcrypt_can_say() -> None:
    secret = a_secret()
    never_digested: SecretEntry = (1, None, None, None)

    result = matches((never_digested, stored(2, secret, "k_lost")), RING, secret.reveal(), NOW_US)

    assert result == MatchResult(None, None, (2, 1))
    assert not result.is_wrong


def test_match_stands_although_another_version_is_undecided() -> None:
    secret = a_secret()

    result = matches((stored(1, secret), stored(2, a_secret(), "k_lost")), RING, secret.reveal(), NOW_US)

    assert result == MatchResult(1, "k_now", (2,))


@pytest.mark.parametrize(("not_after_us", "version"), [(NOW_US - 1, None), (NOW_US, None), (NOW_US + 1, 1)])
def test_rotated_out_secret_counts_until_its_end_and_not_at_it(not_after_us: int, version: int | None) -> None:
    secret = a_secret()

    assert matches((stored(1, secret, not_after_us=not_after_us),), RING, secret.reveal(), NOW_US).version == version


def test_ended_version_without_a_digest_asks_for_no_bcrypt() -> None:
    assert matches(((1, None, None, NOW_US),), RING, a_secret().reveal(), NOW_US).is_wrong


def test_token_without_a_secret_is_never_recognized() -> None:
    assert matches((), RING, a_secret().reveal(), NOW_US).is_wrong


TEXTS = tuple(a_secret() for _ in range(3))


@st.composite
def an_entry(draw: st.DrawFn) -> SecretEntry:
    not_after_us = draw(st.sampled_from([None, NOW_US - 1, NOW_US, NOW_US + 1]))
    version = draw(st.integers(1, 9))
    if draw(st.booleans()):
        key_id = draw(st.sampled_from(["k_old", "k_now", "k_lost"]))
        return stored(version, draw(st.sampled_from(TEXTS)), key_id, not_after_us)
    return (version, None, None, not_after_us)


@settings(deadline=None)
@given(
    secrets=st.lists(an_entry(), max_size=4, unique_by=lambda entry: entry[0]).map(tuple),
    presented=st.sampled_from(TEXTS),
)
def test_agrees_with_the_oracle(secrets: tuple[SecretEntry, ...], presented: Secret) -> None:
    live = [entry for entry in secrets if entry[3] is None or entry[3] > NOW_US]
    right = [
        entry
        for entry in live
        if entry[2] in KEYS and entry[1] == hmac.digest(KEYS[entry[2]], presented.reveal().encode(), "sha256")
    ]
    newest = max(right, default=(None, None, None, None))
    undecided = sorted((entry[0] for entry in live if entry[2] not in KEYS), reverse=True)

    result = matches(secrets, RING, presented.reveal(), NOW_US)

    assert result == MatchResult(newest[0], newest[2], tuple(undecided))


def test_every_live_version_is_compared_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    real = hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    secret = a_secret()
    secrets = tuple(stored(version, secret if version == 3 else a_secret()) for version in (1, 2, 3))

    matches(secrets, RING, secret.reveal(), NOW_US)

    assert sorted(compared) == sorted(entry[1] for entry in secrets if entry[1] is not None)


def test_nothing_but_compare_digest_compares_digests() -> None:
    """`==`, `in`, slices, `startswith` and the like stop at the first difference; none of them is in the module."""
    tree = ast.parse(inspect.getsource(matching))

    operators = {type(operator) for node in ast.walk(tree) if isinstance(node, ast.Compare) for operator in node.ops}
    called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]

    assert operators <= {ast.Is, ast.IsNot, ast.LtE}  # of None, and of times
    assert called.count("hmac.compare_digest") == 1
    assert set(called) == {
        "dataclass",
        "hmac.compare_digest",
        "ring.digest_under",
        "sorted",
        "undecided.append",
        "tuple",
        "MatchResult",
    }
