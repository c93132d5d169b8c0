"""What is recalled is of this pair, as it is now, bounded, and no secret."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from doorward.core.entries import account_entry, operator_entry, token_entry
from doorward.core.history import History, Position
from doorward.core.proofs import Proofs
from doorward.core.secret import SecretKind, generate, new_id
from doorward.core.token_table import CATALOG_KEY, Tables
from doorward_server.api import recalled
from doorward_server.api.recalled import NEVER_US, REFRESHED_NS, Found, Recalled, until_us
from doorward_server.catalog.load import builtin_text, load_catalog

if TYPE_CHECKING:
    from doorward.core.catalog import Catalog
    from doorward.core.entries import OperatorEntry, SecretEntry
    from doorward_server.service.authorize import Holder

CATALOG: Catalog = load_catalog(builtin_text(), 1)
END_NS = 1_000_000_000_000
NOW_US = 1_800_000_000_000_000
HERE = Position(7, b"nonce...")
LATER = Position(8, b"nonce...")


def a_holder(*secrets: SecretEntry) -> Holder:
    token = token_entry("t", "acme", revoked=False, disabled=False, expire_us=None, secrets=secrets, grants=())
    return token, account_entry("acme", "team", 1)


def an_operator(expire_us: int | None = None, *secrets: SecretEntry) -> OperatorEntry:
    return operator_entry("o", "CALLER", revoked=False, expire_us=expire_us, secrets=secrets)


class Memory:
    """Tables with one of each, and what is recalled over them."""

    def __init__(self, until: int = NEVER_US) -> None:
        self.tables = Tables()
        self.found = Found(HERE, END_NS, until, CATALOG, a_holder(), an_operator())
        token, account = self.found.holder
        self.tables.tokens.put_beside("t", token)
        self.tables.accounts.put_beside("acme", account)
        self.tables.operators.put_beside("o", self.found.operator)
        self.tables.catalogs.put_beside(CATALOG_KEY, CATALOG)
        self.recalled = Recalled(self.tables, Proofs(1).proof_of)
        self.recalled.keep("Bearer caller", "secret", self.found)

    def find(
        self,
        credential: str | None = "Bearer caller",
        text: str = "secret",
        *,
        position: Position = HERE,
        end_ns: int = END_NS,
        now_us: int = NOW_US,
    ) -> Found | None:
        return self.recalled.find(credential, text, position, end_ns, now_us)


def test_what_was_found_is_recalled() -> None:
    memory = Memory()

    assert memory.find() is memory.found


def test_only_this_pair_is_recalled() -> None:
    memory = Memory()

    assert memory.find("Bearer other") is None
    assert memory.find(text="other") is None
    assert memory.find(None) is None
    assert memory.find("Bearer callerse", "cret") is None


@pytest.mark.parametrize("subject", ["token:t", "account:acme", "operator:o", "catalog:", "planet:mars"])
def test_nothing_is_recalled_across_a_change_to_it(subject: str) -> None:
    memory = Memory()

    memory.tables.apply([subject])

    assert memory.find(position=LATER) is None
    assert memory.find(position=LATER) is None


def test_nor_when_an_equal_entry_was_loaded_since() -> None:
    memory = Memory()
    memory.tables.apply(["operator:o"])
    memory.tables.operators.put_beside("o", an_operator())

    assert memory.find(position=LATER) is None


def test_it_is_recalled_across_a_change_to_something_else_and_then_of_the_new_position() -> None:
    memory = Memory()

    memory.tables.apply(["token:other", "project:p1"])

    for _ in range(2):
        again = memory.find(position=LATER)
        assert again is not None
        assert again == replace(memory.found, position=LATER)
        assert again.position is LATER


def test_an_equal_position_of_another_registration_is_another_one() -> None:
    memory = Memory()
    history = History()
    history.start(1, HERE.number, HERE.nonce)
    assert history.applied == HERE

    memory.tables.clear()

    assert history.applied is not None
    assert memory.find(position=history.applied) is None


def test_the_tables_see_from_time_to_time_that_it_is_in_use() -> None:
    memory = Memory()

    assert memory.find(end_ns=END_NS + REFRESHED_NS) is memory.found
    again = memory.find(end_ns=END_NS + REFRESHED_NS + 1)
    assert again == replace(memory.found, end_ns=END_NS + REFRESHED_NS + 1)


def test_it_ends_when_the_first_proof_ends() -> None:
    memory = Memory(until=NOW_US)

    assert memory.find(now_us=NOW_US - 1) is memory.found
    assert memory.find(now_us=NOW_US) is None


@pytest.mark.parametrize(
    ("operator", "holder", "expected"),
    [
        (an_operator(), a_holder((1, None, None, None)), NEVER_US),
        (an_operator(NOW_US + 5), a_holder((1, None, None, None)), NOW_US + 5),
        (an_operator(None, (1, None, None, NOW_US + 4)), a_holder(), NOW_US + 4),
        (an_operator(NOW_US + 5), a_holder((1, None, None, NOW_US + 3), (2, None, None, None)), NOW_US + 3),
        (an_operator(), a_holder((1, None, None, NOW_US), (2, None, None, NOW_US + 9)), NOW_US + 9),
    ],
)
def test_the_first_proof_to_end_is_the_callers_or_one_of_the_tokens(
    operator: OperatorEntry, holder: Holder, expected: int
) -> None:
    assert until_us(operator, holder, NOW_US) == expected


def test_what_is_too_long_is_never_kept() -> None:
    memory = Memory()
    memory.recalled.keep("Bearer caller", "s" * 128, memory.found)

    assert memory.find(text="s" * 128) is None


def test_a_real_pair_is_short_enough() -> None:
    memory = Memory()
    caller, secret = (generate(kind, new_id()).reveal() for kind in (SecretKind.OPERATOR, SecretKind.TOKEN))
    memory.recalled.keep(f"Bearer {caller}", secret, memory.found)

    assert memory.find(f"Bearer {caller}", secret) is memory.found


def test_it_is_bounded_and_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalled, "CAPACITY", 3)
    memory = Memory()
    for number in range(10):
        memory.recalled.keep("Bearer caller", f"secret {number}", memory.found)

    assert len(memory.recalled._known) <= 3
    assert all(len(key) == 32 and b"secret" not in key for key in memory.recalled._known)
