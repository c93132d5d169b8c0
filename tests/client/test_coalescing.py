"""Concurrent checks of one client travel together, and none of them notices but by the speed. Both dialects, real calls."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from doorward import errors
from doorward._batching import DEFAULT_BOUNDS, STRANGERS
from doorward.decisions import Ask, DenyReason
from tests.support.dialects import results_of
from tests.support.wire import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.dialects import Begun, Called, Dialect
    from tests.support.held import Arrived, Held

MOST = DEFAULT_BOUNDS.most_in_flight


def a_client(dialect: Dialect, held: Held, *familiar: str, **options: Any) -> Called:
    """A client that has checked these secrets before."""
    client = dialect.client("Authorizer", held.address, timeout=20.0, **options)
    for secret in familiar or ("s",):
        assert client.check(secret, "yes:read", project_id="before")
        assert held.next().method == "Check"
    return client


def begin(client: Called, name: str, permission: str = "yes:read", *, secret: str | None = None, **more: Any) -> Begun:
    """Begins a check of the familiar secret "s", or of another one."""
    return client.begin("check", "s" if secret is None else secret, permission, project_id=name, **more)


def fill(client: Called, held: Held) -> list[Arrived]:
    """As many calls under way, held back, as one line may have; what follows must wait."""
    held.hold()
    calls = []
    for number in range(MOST):
        begin(client, f"full-{number}")
        calls.append(held.next())
    return calls


def begun_one_by_one(client: Called, held: Held, *secrets: str) -> list[Begun]:
    """A check of each secret, each in a call of its own, which has arrived."""
    begun = []
    for secret in secrets:
        begun.append(begin(client, f"of {secret}", secret=secret))
        assert held.next().resources == [f"of {secret}"]
    return begun


def at_once(dialect: Dialect, client: Called, asked: list[tuple[str, str, str]]) -> list[Begun]:
    """Checks (secret, permission, project) that begin in the same moment."""
    return dialect.start_at_once([partial(client.client.check, s, p, project_id=name) for s, p, name in asked])


def wait_for(client: Called, number: int) -> None:
    """Returns once so many checks wait beside those that `fill` began, of which one went alone."""
    eventually(lambda: client.outstanding() == MOST - 1 + number)


def is_outstanding(client: Called, number: int) -> bool:
    return client.outstanding() == number


def test_a_check_that_meets_nobody_goes_at_once_and_alone(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    assert client.check("s", "yes:read", project_id="p")
    assert held.next().method == "Check"


def test_while_there_is_room_a_check_does_not_wait_for_others(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    assert [call.resources for call in fill(client, held)] == [[f"full-{number}"] for number in range(MOST)]


def test_those_that_wait_go_out_together_in_their_order(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    first, *_ = fill(client, held)
    begun = []
    for number in range(5):
        begun.append(begin(client, f"p{number}"))
        wait_for(client, number + 1)
    first.let_go()
    together = held.next()
    assert together.method == "BatchCheck"
    assert together.resources == [f"p{number}" for number in range(5)]
    held.let_go()
    assert all(one.result() for one in begun)


def test_checks_of_the_same_moment_share_a_call(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    begun = at_once(dialect, client, [("s", "yes:read", f"p{number}") for number in range(60)])
    assert all(results_of(begun))
    calls = held.so_far()
    assert sorted(name for call in calls for name in call.resources) == sorted(f"p{number}" for number in range(60))
    if dialect.is_aio:  # threads are never of the same moment
        assert len(calls) == 2


def test_each_caller_gets_its_own_answer(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held, *(f"s{number}" for number in range(7)))
    asked = [(f"s{number % 7}", ("yes:read", "no:read", "bad:read")[number % 3]) for number in range(300)]
    begun = at_once(dialect, client, [(secret, permission, "p") for secret, permission in asked])
    for (secret, permission), answer in zip(asked, results_of(begun), strict=True):
        if permission == "bad:read":
            assert isinstance(answer, errors.InvalidRequest)
            assert answer.reason == "INVALID_FIELDS"
        else:
            assert answer.allowed is (permission == "yes:read")
            assert answer.token_id == f"token of {secret}"
            assert answer.revision == "1.7"


def test_a_check_never_joins_a_call_that_is_under_way(dialect: Dialect, held: Held) -> None:
    """Test 42 of the faults: the batch was decided, revoke returns, the same check again is a new call."""
    client = a_client(dialect, held)
    calls = fill(client, held)
    before = begin(client, "again")
    wait_for(client, 1)
    calls[0].let_go()
    decided = held.next()
    assert decided.resources == ["again"]
    held.revoked.add("s")
    after = begin(client, "again")
    wait_for(client, 2)  # the one before is under way, in the place of what went alone
    calls[1].let_go()
    assert held.next().resources == ["again"]
    held.let_go()
    assert before.result().allowed
    assert after.result().reason is DenyReason.TOKEN_REVOKED


def test_one_bad_item_hurts_no_other(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    first, *_ = fill(client, held)
    begun = [begin(client, "p", permission) for permission in ("yes:read", "bad:read", "no:read")]
    wait_for(client, 3)
    first.let_go()
    held.let_go()
    allowed, bad, denied = begun
    assert allowed.result()
    assert isinstance(bad.error(), errors.InvalidRequest)
    assert denied.result().reason is DenyReason.PERMISSION_NOT_GRANTED


@pytest.mark.parametrize(("secret", "error"), [("s\udcff", UnicodeEncodeError), (7, TypeError)])
def test_what_cannot_be_sent_fails_its_own_caller(
    dialect: Dialect, held: Held, secret: Any, error: type[Exception]
) -> None:
    client = a_client(dialect, held)
    calls = fill(client, held)
    good = begin(client, "good")
    wait_for(client, 1)
    client.client._checks._familiar.add(secret)
    assert isinstance(begin(client, "bad", secret=secret).error(), error)
    calls[0].let_go()
    held.let_go()
    assert good.result()


def test_a_secret_of_any_size_hurts_no_other(dialect: Dialect, held: Held) -> None:
    large = "x" * (DEFAULT_BOUNDS.most_bytes + 1)
    client = a_client(dialect, held, "s", large)
    first, *_ = fill(client, held)
    begun = []
    for name, secret in (("a", "s"), ("b", large), ("c", "s")):
        begun.append(begin(client, name, secret=secret))
        wait_for(client, len(begun))
    first.let_go()
    assert held.next().resources == ["a"]
    held.let_go()
    assert {tuple(held.next().resources), tuple(held.next().resources)} == {("b",), ("c",)}
    assert all(one.result() for one in begun)


def test_a_failed_call_is_told_to_each_of_its_callers_as_an_error_of_their_own(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    first, *_ = fill(client, held)
    begun = [begin(client, f"p{number}") for number in range(3)]
    wait_for(client, 3)
    held.failures.append((grpc.StatusCode.RESOURCE_EXHAUSTED, "enough"))
    first.let_go()
    held.let_go()
    found = [one.error() for one in begun]
    assert [type(error) for error in found] == [errors.Exhausted] * 3
    assert len({id(error) for error in found}) == 3


def test_a_call_that_could_not_even_be_made_is_told_to_each_of_its_callers(dialect: Dialect, held: Held) -> None:
    def source() -> str:
        if is_sealed.is_set():
            raise OSError("sealed")
        return credential

    is_sealed = threading.Event()
    credential = held.a_credential()
    client = a_client(dialect, held, credential=source)
    first, *_ = fill(client, held)
    begun = [begin(client, f"p{number}") for number in range(3)]
    wait_for(client, 3)
    is_sealed.set()
    first.let_go()
    assert [type(one.error()) for one in begun] == [errors.CredentialUnreadable] * 3
    is_sealed.clear()
    held.let_go()
    assert client.check("s", "yes:read", project_id="after")


def test_each_caller_keeps_its_own_deadline_while_it_waits(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    calls = fill(client, held)
    patient = begin(client, "patient")
    hasty = begin(client, "hasty", timeout=0.05)
    assert isinstance(hasty.error(), errors.DeadlineExceeded)
    wait_for(client, 1)
    calls[0].let_go()
    assert held.next().resources == ["patient"]
    held.let_go()
    assert patient.result()


def test_each_caller_keeps_its_own_deadline_while_its_batch_is_under_way(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    calls = fill(client, held)
    patient, hasty = begin(client, "patient"), begin(client, "hasty", timeout=3.0)
    wait_for(client, 2)
    calls[0].let_go()
    batch = held.next()
    assert sorted(batch.resources) == ["hasty", "patient"]
    assert batch.seconds_left > 5.0  # that of the patient one
    assert isinstance(hasty.error(), errors.DeadlineExceeded)
    assert not patient.is_done
    held.let_go()
    assert patient.result()


def test_when_nobody_waits_any_more_the_call_is_given_up(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    calls = fill(client, held)
    begun = [begin(client, f"p{number}", timeout=0.3) for number in range(2)]
    wait_for(client, 2)
    calls[0].let_go()
    batch = held.next()
    assert [type(one.error()) for one in begun] == [errors.DeadlineExceeded] * 2
    assert batch.is_over.wait(10)
    held.let_go()
    assert client.check("s", "yes:read", project_id="after")


def test_who_was_cancelled_is_left_out(dialect: Dialect, held: Held) -> None:
    if not dialect.is_aio:
        return  # a thread cannot be cancelled
    client = a_client(dialect, held)
    calls = fill(client, held)
    stays, leaves = begin(client, "stays"), begin(client, "leaves")
    wait_for(client, 2)
    leaves.cancel()
    wait_for(client, 1)
    calls[0].let_go()
    assert held.next().resources == ["stays"]
    held.let_go()
    assert stays.result()


def test_who_is_cancelled_under_way_takes_no_other_along(dialect: Dialect, held: Held) -> None:
    if not dialect.is_aio:
        return
    client = a_client(dialect, held)
    calls = fill(client, held)
    leaves = begin(client, "leaves")
    wait_for(client, 1)
    stays = begin(client, "stays")  # behind the one that leaves
    wait_for(client, 2)
    calls[0].let_go()
    batch = held.next()
    leaves.cancel()
    wait_for(client, 1)
    assert not batch.is_over.is_set()
    held.let_go()
    assert stays.result()


def test_the_only_one_who_is_cancelled_ends_its_call(dialect: Dialect, held: Held) -> None:
    if not dialect.is_aio:
        return
    client = a_client(dialect, held)
    held.hold()
    for name in ("alone", "in a batch"):
        begun = begin(client, name)
        call = held.next()
        begun.cancel()
        assert call.is_over.wait(10)
        eventually(lambda: client.outstanding() == 0)


def test_a_batch_that_is_cancelled_before_it_runs_takes_no_room(dialect: Dialect, held: Held) -> None:
    if not dialect.is_aio:
        return
    client = a_client(dialect, held)

    async def begin_and_leave() -> None:
        alone = asyncio.ensure_future(client.client.check("s", "yes:read", project_id="alone"))
        joined = asyncio.ensure_future(client.client.check("s", "yes:read", project_id="joined"))
        await asyncio.sleep(0)
        (lane,) = (lane for lane in client.client._checks._lanes.values() if not lane.line.is_empty)
        lane._flush()
        (waiting,) = lane.line.outstanding()
        lane._leave(waiting)  # the task exists, and has not begun
        joined.cancel()
        await asyncio.gather(alone, joined, return_exceptions=True)

    for _ in range(MOST + 1):
        dialect.start(begin_and_leave).result(20)
    assert client.check("s", "yes:read", project_id="after")


def test_only_checks_of_one_demand_on_freshness_share_a_call(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    held.hold()
    demands: list[dict[str, Any]] = [{}, {"fully_consistent": True}, {"at_least_as_fresh": "1.5"}]
    for demand in demands:
        for number in range(MOST):
            begin(client, f"full-{number}", **demand)
            held.next()
        for number in range(2):
            begin(client, f"waits-{number}", **demand)
    eventually(lambda: client.outstanding() == 3 * (MOST - 1 + 2))
    held.let_go()
    seen: dict[str, set[str]] = {}
    for _ in demands:
        call = held.next()
        seen[str(call.request.consistency)] = set(call.resources)
    assert set(map(frozenset, seen.values())) == {frozenset({"waits-0", "waits-1"})}
    assert len(seen) == 3


def test_demands_that_nobody_makes_any_more_are_forgotten(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    for number in range(50):
        assert client.check("s", "yes:read", project_id="p", at_least_as_fresh=f"1.{number}")
    assert dialect.run(lambda: len(client.client._checks._lanes)) < 5


def test_a_strangers_check_holds_nobody_up(dialect: Dialect, held: Held) -> None:
    """What a new secret costs the server nobody knows; those that are known do not wait with it."""
    client = a_client(dialect, held, "s")
    held.hold()
    strangers = begun_one_by_one(client, held, *(f"new-{number}" for number in range(MOST + 1)))
    known = begin(client, "known")
    call = held.next()
    assert call.resources == ["known"]
    call.let_go()
    assert known.result()
    assert not any(one.is_done for one in strangers)
    held.let_go()
    assert all(one.result() for one in strangers)


def test_strangers_meet_only_when_there_are_many(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    held.hold()
    begun = begun_one_by_one(client, held, *(f"new-{number}" for number in range(STRANGERS.most_in_flight)))
    begun += [begin(client, f"more-{number}", secret=f"more-{number}") for number in range(3)]
    eventually(lambda: client.outstanding() == len(begun) - 1)
    held.let_go()
    assert sorted(held.next().resources) == ["more-0", "more-1", "more-2"]
    assert all(one.result() for one in begun)


def test_a_secret_that_is_not_recognized_stays_a_stranger(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    for _ in range(2):
        client.check("unknown", "new:read", project_id="p")
    assert "unknown" not in client.client._checks._familiar
    assert "s" in client.client._checks._familiar


def test_more_than_may_wait_are_refused_and_the_others_are_answered(dialect: Dialect, held: Held) -> None:
    client = dialect.client("Authorizer", held.address, timeout=20.0)
    client.with_bounds(bounds=replace(DEFAULT_BOUNDS, most_in_flight=1, most_waiting=2))
    assert client.check("s", "yes:read", project_id="before")
    held.next()
    held.hold()
    begun = [begin(client, "alone")]
    held.next()
    for number in range(2):
        begun.append(begin(client, f"p{number}"))
        eventually(partial(is_outstanding, client, number + 1))
    refused = begin(client, "one too many").error()
    assert isinstance(refused, errors.Exhausted)
    held.let_go()
    assert all(one.result() for one in begun)


def test_coalescing_can_be_turned_off(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held, coalesce=False)
    begun = at_once(dialect, client, [("s", "yes:read", f"p{number}") for number in range(20)])
    assert all(results_of(begun))
    assert {call.method for call in held.so_far()} == {"Check"}


def test_closing_ends_what_is_under_way_and_what_waits(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    held.hold()
    begun = begun_one_by_one(client, held, *("s" for _ in range(MOST)))
    begun += [begin(client, f"waits-{number}") for number in range(3)]
    begun += begun_one_by_one(client, held, "a stranger")
    wait_for(client, 3)
    client.close()
    assert [type(one.error()) for one in begun] == [errors.ClientClosed] * len(begun)
    assert isinstance(begin(client, "after").error(), errors.ClientClosed)


def test_many_checks_of_one_caller_are_calls_of_their_own(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    asks = [Ask(("yes:read", "no:read", "bad:read")[number % 3], project_id=f"p{number}") for number in range(1001)]
    decisions = client.check_many("s", asks)
    assert [bool(decision) for decision in decisions] == [ask.permission == "yes:read" for ask in asks]
    assert isinstance(decisions[2].error, errors.InvalidRequest)
    assert [len(call.resources) for call in (held.next(), held.next())] == [1000, 1]


def test_nothing_asked_is_nothing_sent(dialect: Dialect, held: Held) -> None:
    client = a_client(dialect, held)
    assert client.check_many("s", []) == []
    assert held.so_far() == []


CHECKS: list[Callable[[Called], Any]] = [
    lambda client: client.check("s", "yes:read"),
    lambda client: client.check("s", "yes:read", project_id="p", account_id="a"),
    lambda client: client.check("s", "yes:read", project_id="p", at_least_as_fresh="1.1", fully_consistent=True),
]


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_that_is_none_is_refused_here(dialect: Dialect, held: Held, check: Callable[[Called], Any]) -> None:
    client = a_client(dialect, held)
    with pytest.raises(ValueError, match=r"exactly one|give one"):
        check(client)
    assert client.check("s", "yes:read", project_id="after")
