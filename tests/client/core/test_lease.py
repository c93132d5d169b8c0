"""Leases and the database's time, with numbers instead of seconds."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorward.core.history import History
from doorward.core.lease import RHO, DatabaseTime, DatabaseTimeUnknown, Lease, LeaseState, length_ns, stretched_ns

S = 1_000_000_000
HOLD_MS = 5_000
LENGTH = 4 * S  # HOLD_MS / 1.25
T0 = 100 * S


@pytest.fixture
def history() -> History:
    history = History()
    history.start(1, 7, b"seven")
    return history


@pytest.fixture
def lease() -> LeaseState:
    return LeaseState()


def renewed(lease: LeaseState, history: History, t0_ns: int = T0) -> LeaseState:
    assert lease.answered(t0_ns, t0_ns + 1, HOLD_MS, 7, b"seven")
    assert lease.promote(history)
    return lease


# ---- lengths


@pytest.mark.parametrize(("hold_ms", "expected"), [(5_000, 4 * S), (500, S * 2 // 5), (300_000, 240 * S), (1, 800_000)])
def test_a_lease_is_the_hold_divided_by_rho(hold_ms: int, expected: int) -> None:
    assert length_ns(hold_ms) == expected


def test_rho_covers_two_clocks_ten_percent_off() -> None:
    assert Fraction(RHO) >= Fraction(11, 9)


@given(st.integers(0, 10**18))
def test_stretching_errs_to_the_longer_side_by_less_than_one(span_ns: int) -> None:
    assert 0 <= stretched_ns(span_ns) - span_ns * Fraction(5, 4) < 1


@given(st.integers(500, 300_000))
def test_a_lease_is_over_within_the_hold_on_any_two_clocks(hold_ms: int) -> None:
    slowest_replica, fastest_revoker = Fraction(9, 10), Fraction(11, 10)

    true_length = length_ns(hold_ms) / slowest_replica

    assert true_length * fastest_revoker <= hold_ms * 1_000_000


# ---- the lease


def test_without_a_renewal_there_is_no_lease(lease: LeaseState, history: History) -> None:
    assert lease.capture(0) is None
    assert not lease.promote(history)


def test_a_lease_counts_from_before_the_renewal_was_sent(lease: LeaseState, history: History) -> None:
    renewed(lease, history)

    assert lease.capture(T0 + 1) == T0 + LENGTH
    assert lease.capture(T0 + LENGTH - 1) == T0 + LENGTH
    assert lease.capture(T0 + LENGTH) is None


def test_a_check_is_answered_only_before_the_end_it_captured(lease: LeaseState, history: History) -> None:
    end_ns = renewed(lease, history).capture(T0 + 1)
    assert end_ns is not None
    renewed(lease, history, T0 + 2 * S)

    assert lease.still_good(end_ns, T0 + LENGTH - 1)
    assert not lease.still_good(end_ns, T0 + LENGTH)  # the newer lease is good, but is not this check's


def test_an_answer_gives_no_lease_before_its_position_is_applied(lease: LeaseState, history: History) -> None:
    assert lease.answered(T0, T0 + 1, HOLD_MS, 8, b"eight")

    assert not lease.promote(history)
    assert lease.capture(T0 + 2) is None
    assert lease.pending == Lease(T0 + LENGTH, 8, b"eight")

    history.append(8, b"eight")
    assert lease.promote(history)
    assert lease.capture(T0 + 2) == T0 + LENGTH
    assert lease.pending is None


def test_a_position_that_was_passed_is_applied(lease: LeaseState, history: History) -> None:
    lease.answered(T0, T0 + 1, HOLD_MS, 7, b"seven")
    history.append(8, b"eight")

    assert lease.promote(history)


def test_a_renewal_of_another_history_is_never_promoted(lease: LeaseState, history: History) -> None:
    renewed(lease, history)
    lease.answered(T0 + S, T0 + S + 1, HOLD_MS, 8, b"eight of a deposed primary")
    history.append(8, b"eight")

    assert not lease.promote(history)
    assert lease.capture(T0 + S + 2) == T0 + LENGTH  # the former lease stays good to its own end
    assert lease.capture(T0 + LENGTH) is None


def test_a_renewal_whose_nonce_is_forgotten_is_not_promoted(lease: LeaseState) -> None:
    history = History(tail_length=2)
    history.start(1, 7, b"seven")
    lease.answered(T0, T0 + 1, HOLD_MS, 7, b"seven")
    history.append(8, b"eight")
    history.append(9, b"nine")

    assert not lease.promote(history)


@pytest.mark.parametrize(("late_ns", "taken"), [(LENGTH - 1, True), (LENGTH, False), (LENGTH + 1, False)])
def test_an_answer_later_than_a_lease_is_long_is_ignored(
    lease: LeaseState, history: History, late_ns: int, taken: bool
) -> None:
    assert lease.answered(T0, T0 + late_ns, HOLD_MS, 7, b"seven") is taken
    assert lease.promote(history) is taken


def test_an_ignored_answer_leaves_the_pending_one(lease: LeaseState) -> None:
    lease.answered(T0, T0 + 1, HOLD_MS, 8, b"eight")
    pending = lease.pending

    assert not lease.answered(T0 - S, T0 + LENGTH, HOLD_MS, 7, b"seven")
    assert not lease.answered(T0 - S, T0 + 1, HOLD_MS, 7, b"seven")  # would end earlier
    assert lease.pending is pending


def test_a_later_answer_takes_the_place_of_the_pending_one(lease: LeaseState) -> None:
    lease.answered(T0, T0 + 1, HOLD_MS, 8, b"eight")

    assert lease.answered(T0 + S, T0 + S + 1, HOLD_MS, 9, b"nine")
    assert lease.pending == Lease(T0 + S + LENGTH, 9, b"nine")


def test_the_later_end_wins(lease: LeaseState, history: History) -> None:
    renewed(lease, history, T0 + S)
    renewed(lease, history, T0)  # an answer overtaken by a newer one

    assert lease.capture(T0 + S) == T0 + S + LENGTH


def test_drop_gives_up_lease_and_pending(lease: LeaseState, history: History) -> None:
    renewed(lease, history)
    lease.answered(T0 + S, T0 + S + 1, HOLD_MS, 7, b"seven")

    lease.drop()

    assert lease.capture(T0 + 1) is None
    assert not lease.promote(history)


def test_nothing_is_promoted_before_a_registration(lease: LeaseState) -> None:
    lease.answered(T0, T0 + 1, HOLD_MS, 0, b"zero")

    assert not lease.promote(History())


# ---- the database's time

DB = 1_800_000_000_000_000


def test_before_the_first_answer_the_databases_time_is_unknown() -> None:
    with pytest.raises(DatabaseTimeUnknown):
        DatabaseTime().latest_us(T0)


def test_local_time_since_the_statement_was_sent_counts_rho_fold() -> None:
    time = DatabaseTime()
    time.observe(DB, T0, T0 + S)

    assert time.latest_us(T0) == DB
    assert time.latest_us(T0 + 4 * S) == DB + 5_000_000
    assert time.latest_us(T0 + 1) == DB + 1  # rounded to the later side


def test_a_newer_answer_gives_a_closer_bound() -> None:
    time = DatabaseTime()
    time.observe(DB, T0, T0)
    time.observe(DB + 4_000_000, T0 + 4 * S, T0 + 4 * S)

    assert time.latest_us(T0 + 4 * S) == DB + 5_000_000  # what was reached is not taken back
    assert time.latest_us(T0 + 8 * S) == DB + 4_000_000 + 5_000_000


def test_the_bound_does_not_run_ahead_with_the_life_of_the_process() -> None:
    time = DatabaseTime()
    for second in range(100_000):
        time.observe(DB + second * 1_000_000, T0 + second * S, T0 + second * S)

    assert time.latest_us(T0 + 99_999 * S) - (DB + 99_999_000_000) <= 250_000


def test_a_database_clock_set_back_holds_the_time_still() -> None:
    time = DatabaseTime()
    time.observe(DB, T0, T0)
    time.observe(DB - 3_600_000_000, T0 + S, T0 + S)

    assert time.latest_us(T0 + S) == DB + 1_250_000
    assert time.latest_us(T0 + 2 * S) == DB + 1_250_000


def test_a_database_clock_set_forward_is_followed_at_once() -> None:
    time = DatabaseTime()
    time.observe(DB, T0, T0)
    time.observe(DB + 3_600_000_000, T0 + S, T0 + S)

    assert time.latest_us(T0 + S) == DB + 3_600_000_000


STEPS = st.lists(st.tuples(st.integers(0, 3 * S), st.integers(0, S), st.integers(-5_000_000, 5_000_000)), max_size=30)


@given(STEPS)
def test_time_never_goes_backwards_and_is_never_below_the_newest_answer(steps: list[tuple[int, int, int]]) -> None:
    time, now_ns, latest_us, database_us = DatabaseTime(), T0, 0, DB
    for passed_ns, round_trip_ns, jump_us in steps:
        t0_ns = now_ns + passed_ns
        now_ns = t0_ns + round_trip_ns
        database_us += (passed_ns + round_trip_ns) // 1_000 + jump_us
        if latest_us:
            assert time.latest_us(now_ns) >= latest_us
            latest_us = time.latest_us(now_ns)
        time.observe(database_us, t0_ns, now_ns)
        assert time.latest_us(now_ns) >= max(latest_us, database_us)
        latest_us = time.latest_us(now_ns)


@given(st.integers(0, 100 * S), st.fractions(Fraction(9, 11), Fraction(11, 9)))
def test_the_databases_clock_never_shows_more(passed_ns: int, rate: Fraction) -> None:
    time = DatabaseTime()
    time.observe(DB, T0, T0)

    assert time.latest_us(T0 + passed_ns) >= int(DB + passed_ns * rate / 1_000)
