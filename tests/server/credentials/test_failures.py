"""What is remembered of wrong secrets, with times that are numbers."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from doorward.core.secret import Secret, SecretKind, generate, new_id
from doorward_server.credentials.failures import FIRST_BACK_OFF_NS, LONGEST_BACK_OFF_NS, QUIET_NS, Failures

HASH = "a stored hash"


def a_secret() -> Secret:
    return generate(SecretKind.TOKEN, new_id())


def test_wrong_presentation_is_held_for_that_hash_and_subject_only() -> None:
    failures, secret = Failures(), a_secret()

    failures.record_failure("a", [failures.proof_of("a", secret, HASH)], 0)

    assert failures.holds(failures.proof_of("a", secret, HASH))
    assert not failures.holds(failures.proof_of("a", secret, "a later hash"))
    assert not failures.holds(failures.proof_of("b", secret, HASH))
    assert not failures.holds(failures.proof_of("a", a_secret(), HASH))


def test_proof_of_one_process_says_nothing_in_another() -> None:
    secret = a_secret()

    assert Failures().proof_of("a", secret, HASH) != Failures().proof_of("a", secret, HASH)


def test_back_off_doubles_up_to_the_longest() -> None:
    failures, now_ns, lengths = Failures(), 0, []

    for _ in range(8):
        failures.record_failure("a", [], now_ns)
        lengths.append(failures.back_off_ns("a", now_ns))
        now_ns += lengths[-1]

    assert lengths[:3] == [FIRST_BACK_OFF_NS, 2 * FIRST_BACK_OFF_NS, 4 * FIRST_BACK_OFF_NS]
    assert lengths[-1] == LONGEST_BACK_OFF_NS


def test_back_off_is_over_at_its_end_and_is_the_subjects_own() -> None:
    failures = Failures()

    failures.record_failure("a", [], 0)

    assert failures.back_off_ns("a", FIRST_BACK_OFF_NS - 1) == 1
    assert failures.back_off_ns("a", FIRST_BACK_OFF_NS) == 0
    assert failures.back_off_ns("b", 0) == 0


def test_success_ends_the_back_off() -> None:
    failures = Failures()
    failures.record_failure("a", [], 0)
    failures.record_failure("a", [], 0)

    failures.record_success("a")
    assert failures.back_off_ns("a", 0) == 0

    failures.record_failure("a", [], 0)
    assert failures.back_off_ns("a", 0) == FIRST_BACK_OFF_NS


def test_failure_after_a_quiet_time_is_a_first_one_again() -> None:
    failures = Failures()
    failures.record_failure("a", [], 0)
    failures.record_failure("a", [], 0)

    failures.record_failure("a", [], QUIET_NS)

    assert failures.back_off_ns("a", QUIET_NS) == FIRST_BACK_OFF_NS


@settings(deadline=None)
@given(subjects=st.lists(st.integers(0, 6), max_size=60), asked=st.integers(0, 6))
def test_bounded_and_the_newest_are_kept(subjects: list[int], asked: int) -> None:
    failures = Failures(capacity=4)
    kept: list[int] = []

    for subject in subjects:
        failures.record_failure(str(subject), [b"%d" % subject], 0)
        kept = [*[other for other in kept if other != subject], subject][-4:]

    assert len(failures) == len(kept)
    assert failures.back_off_ns(str(asked), 0) > 0 or asked not in kept
    assert failures.back_off_ns(str(asked), 0) == 0 or asked in kept


def test_repeated_presentation_is_kept_longer_than_one_that_nobody_repeats() -> None:
    failures = Failures(capacity=2)
    failures.record_failure("a", [b"repeated"], 0)
    failures.record_failure("b", [b"once"], 0)

    assert failures.holds(b"repeated")
    failures.record_failure("c", [b"new"], 0)

    assert failures.holds(b"repeated")
    assert not failures.holds(b"once")


def test_endless_failures_cost_a_bounded_number() -> None:
    failures = Failures()

    for _ in range(10_000):
        failures.record_failure("a", [], 0)

    assert failures.back_off_ns("a", 0) == LONGEST_BACK_OFF_NS
