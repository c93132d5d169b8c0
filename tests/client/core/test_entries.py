"""Entries are exact tuples that the garbage collector does not follow, and share what is equal."""

import gc

import pytest

from doorward.core import entries
from doorward.core.catalog import Catalog
from doorward.core.entries import (
    AccountState,
    Grant,
    SecretEntry,
    TokenEntry,
    account_entry,
    find_live_secret,
    operator_entry,
    shared,
    token_entry,
)
from doorward.core.matrix import compile_token


def untracked(value: object) -> bool:
    """Whether value and all it holds, if tuples, are off the collector's lists and of no subclass."""
    if isinstance(value, tuple):
        return type(value) is tuple and not gc.is_tracked(value) and all(untracked(part) for part in value)
    return not gc.is_tracked(value)


def collect_deeply() -> None:
    for _ in range(6):  # a tuple is looked at before or after those in it; one pass more for each nesting
        gc.collect()


def a_token(*grants: Grant) -> TokenEntry:
    secrets: list[SecretEntry] = [(1, b"d" * 32, "pepper", None), (2, None, None, 5)]
    return token_entry("A" * 16, "acme", revoked=False, disabled=True, expire_us=5, secrets=secrets, grants=grants)


def test_compiled_tokens_are_off_the_collectors_lists() -> None:
    catalog = Catalog.build(
        {
            "schema": 1,
            "version": "1",
            "account_resources": {"billing": {"title": "Billing", "actions": ["read", "write"]}},
            "project_resources": {"jobs": {"title": "Jobs", "actions": ["read", "write"]}},
            "permission_sets": {
                "covered": {"title": "Covered", "write": ["*"]},
                "uncovered": {"title": "Uncovered", "read": ["*"]},
            },
            "plans": {"team": {"title": "Team", "permission_sets": ["covered"]}},
        },
        1,
    )
    many = tuple(f"p{number}" for number in range(300))
    tokens = [
        a_token(),
        a_token(Grant("covered", None)),
        a_token(Grant("covered", ("p1", "p2")), Grant("uncovered", None)),
        a_token(Grant("covered", many), Grant("uncovered", many)),
    ]
    compiled = [compile_token(token, catalog, "team") for token in tokens]

    collect_deeply()

    assert [untracked(token) for token in (*tokens, *compiled)] == [True] * 8


def test_accounts_and_operators_are_off_the_collectors_lists() -> None:
    account = account_entry("acme", "team", AccountState.SUSPENDED)
    operator = operator_entry("O" * 16, "admin", revoked=False, expire_us=None, secrets=[(1, b"d", "pepper", None)])

    collect_deeply()

    assert untracked(account)
    assert untracked(operator)


@pytest.mark.parametrize(
    ("version", "now_us", "found"),
    [(1, 99, True), (1, 100, False), (1, 101, False), (2, 10**18, True), (3, 0, False)],
)
def test_a_secret_is_live_until_its_end(version: int, now_us: int, found: bool) -> None:
    secrets = ((1, b"old", "pepper", 100), (2, b"new", "pepper", None))

    secret = find_live_secret(secrets, version, now_us)

    assert (secret is not None and secret[0] == version) is found


def test_equal_values_are_shared_and_what_is_kept_for_it_is_bounded() -> None:
    first, second = (tuple(f"p{number}" for number in (1, 2)) for _ in range(2))
    assert shared(first) is shared(second)

    for number in range(3 * entries._SHARED_LIMIT):
        shared(10**9 + number)

    assert len(entries._shared) <= entries._SHARED_LIMIT


def test_long_tuples_are_not_kept_for_sharing() -> None:
    long = tuple(f"p{number}" for number in range(1_000))

    assert shared(long) is long
    assert long not in entries._shared
