"""Revisions have one text each, and an order within an epoch only."""

import operator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorward.core.revision import EpochMismatch, Revision, RevisionMalformed

EPOCHS = st.integers(1, 2**63 - 1)
NUMBERS = st.integers(0, 2**63 - 1)
ORDERS = [operator.lt, operator.le, operator.gt, operator.ge]


@given(EPOCHS, NUMBERS)
def test_the_text_of_a_revision_is_parsed_to_it(epoch: int, number: int) -> None:
    revision = Revision(epoch, number)

    assert str(revision) == f"{epoch}.{number}"
    assert Revision.parse(str(revision)) == revision


@given(st.text(max_size=50) | st.from_regex(r"\A[0-9+\- _]{1,22}\.[0-9+\- _]{1,22}\Z"))
def test_only_the_canonical_text_is_parsed(text: str) -> None:
    try:
        revision = Revision.parse(text)
    except RevisionMalformed:
        return
    assert str(revision) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "1", "1.", ".1", "1.1.1", "0.1", "-1.1", "1.-1", "+1.1", "01.1", "1.01", "1.00", " 1.1", "1.1 ", "1.1\n",
        "1 .1", "1_0.1", "1.1_0", "1,1", "１.1", "1.٣", "1e3.1", "0x1.1", "9223372036854775808.1",
        "1.9223372036854775808", "1." + "1" * 5_000, "None", "1.1\x00",
    ],
)  # fmt: skip
def test_a_text_that_is_no_revision_is_malformed(text: str) -> None:
    with pytest.raises(RevisionMalformed) as raised:
        Revision.parse(text)

    assert "<epoch>.<number>" in str(raised.value) or "2**63" in str(raised.value)
    assert isinstance(raised.value, ValueError)


def test_the_ends_of_the_range_are_revisions() -> None:
    assert Revision.parse("1.0") == Revision(1, 0)
    assert Revision.parse(f"{2**63 - 1}.{2**63 - 1}") == Revision(2**63 - 1, 2**63 - 1)


@pytest.mark.parametrize(("epoch", "number"), [(0, 1), (-1, 1), (2**63, 1), (1, -1), (1, 2**63)])
def test_numbers_out_of_range_make_no_revision(epoch: int, number: int) -> None:
    with pytest.raises(ValueError, match=r"2\*\*63"):
        Revision(epoch, number)


@given(EPOCHS, NUMBERS, NUMBERS)
def test_within_an_epoch_the_number_orders(epoch: int, one: int, other: int) -> None:
    for order in ORDERS:
        assert order(Revision(epoch, one), Revision(epoch, other)) is order(one, other)
    assert (Revision(epoch, one) == Revision(epoch, other)) is (one == other)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("number", [0, 5, 9])
def test_across_epochs_there_is_no_order(order: Any, number: int) -> None:
    with pytest.raises(EpochMismatch):
        order(Revision(1, 5), Revision(2, number))

    assert Revision(1, 5) != Revision(2, 5)


def test_a_revision_is_a_value() -> None:
    revision: Any = Revision(1, 2)

    assert {revision, Revision(1, 2)} == {revision}
    with pytest.raises(FrozenInstanceError):
        revision.number = 3
