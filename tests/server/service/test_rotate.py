"""Rotation: who lives on at any succession, and what a rotation that was authorized a moment ago must see again."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given, settings
from hypothesis import strategies as st

from doorward.v1.token_admin_pb2 import (
    DescribeSelfRequest,
    RotateSelfRequest,
    RotateTokenRequest,
    UpdateTokenRequest,
)
from doorward.v1.types_pb2 import ServiceToken
from doorward_server.failpoints import Failpoint
from doorward_server.model import Grant
from doorward_server.service.rotate import succession
from doorward_server.storage.token_secrets import LiveSecret
from tests.support.inprocess import altered, footprint
from tests.support.issuing import revoke
from tests.support.replica import paused

if TYPE_CHECKING:
    from tests.support.places import Place, World

START = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = Duration(seconds=3600)


@settings(deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(min_value=0, max_value=2_592_000), st.integers(min_value=0, max_value=3_000_000)),
        max_size=12,
    )
)
def test_after_any_succession_at_most_two_live_and_no_end_is_ever_moved_back(steps: list[tuple[int, int]]) -> None:
    """Each step rotates with an overlap, after a while; both in seconds."""
    ends: dict[int, datetime | None] = {1: None}
    now = START
    for overlap_s, after_s in steps:
        now += timedelta(seconds=after_s)
        live = [LiveSecret(version, end) for version, end in ends.items() if end is None or end > now]
        before = dict(ends)

        decided = succession(live, now, timedelta(seconds=overlap_s))

        assert set(decided) == {secret.version for secret in live}
        ends.update(decided)
        ends[max(ends) + 1] = None
        assert sum(end is None or end > now for end in ends.values()) <= 2
        for version, end in before.items():
            settled = ends[version]
            assert settled is not None
            assert end is None or settled <= end
            assert settled <= now + timedelta(seconds=overlap_s) or settled == end


async def rotated(world: World, place: Place, **fields: Any) -> Any:
    request = RotateTokenRequest(token_id=place.target_id, **{"overlap": Duration(), **fields})
    return await world.surface.call("TokenAdmin.RotateToken", request, place.credential)


async def test_a_token_rotates_what_it_holds_and_receives_it(world: World) -> None:
    place = await world.place()

    answer = await rotated(world, place)

    async with world.database.reading() as connection:
        received = await connection.fetchval(
            "SELECT issued_to FROM token_secrets WHERE token_id = $1 AND version = 2", place.target_id
        )
    assert answer.secret.startswith(f"dwst_{place.target_id}_")
    assert received == f"token:{place.caller_id}"


async def test_a_token_does_not_rotate_what_exceeds_it_not_even_what_is_suspended(world: World) -> None:
    """A secret of a token whose grant is suspended is worth that grant once the plan covers it again."""
    place = await world.place()
    greater = await world.issue(place.account_id, Grant("everything", None))
    sql = "UPDATE accounts SET plan = 'small' WHERE account_id = $1"
    await altered(world.database, sql, place.account_id, accounts=[place.account_id])
    before = await footprint(world.database)

    refusal = await world.surface.refused(
        "TokenAdmin.RotateToken", RotateTokenRequest(token_id=greater.subject_id, overlap=HOUR), place.credential
    )

    assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "EXCEEDS_CALLER")
    assert await footprint(world.database) == before


@pytest.mark.parametrize("rpc", ["RotateToken", "RotateSelf"])
async def test_a_rotation_that_waits_while_its_caller_is_revoked_is_refused(world: World, rpc: str) -> None:
    place = await world.place()
    request: Any = RotateTokenRequest(token_id=place.target_id, overlap=HOUR)
    if rpc == "RotateSelf":
        request = RotateSelfRequest(overlap=HOUR)

    with paused(Failpoint.MUTATION_AFTER_AUTHN) as pause:
        rotating = asyncio.ensure_future(world.surface.call(f"TokenAdmin.{rpc}", request, place.credential))
        await pause.reached.wait()
        await revoke(world.database, place.account_id, place.caller_id)
        pause.release()
        refusal = await rotating

    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")
    assert await versions(world, place.caller_id) == await versions(world, place.target_id) == [1]


async def versions(world: World, token_id: str) -> list[int]:
    async with world.database.reading() as connection:
        found = await connection.fetch("SELECT version FROM token_secrets WHERE token_id = $1 ORDER BY 1", token_id)
    return [row["version"] for row in found]


async def test_a_secret_that_was_rotated_out_meanwhile_rotates_nothing_any_more(world: World) -> None:
    """The version that was presented is looked at again under the lock, not only the token."""
    place = await world.place()
    first = await world.surface.ask("TokenAdmin.RotateSelf", RotateSelfRequest(overlap=HOUR), place.credential)

    with paused(Failpoint.MUTATION_AFTER_AUTHN) as pause:
        rotating = asyncio.ensure_future(
            world.surface.call("TokenAdmin.RotateSelf", RotateSelfRequest(overlap=HOUR), place.credential)
        )
        await pause.reached.wait()
        sql = "UPDATE token_secrets SET not_after = clock_timestamp() WHERE token_id = $1 AND version = 1"
        await altered(world.database, sql, place.caller_id, accounts=[place.account_id])
        pause.release()
        refusal = await rotating

    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")
    assert await versions(world, place.caller_id) == [1, 2]
    await world.surface.ask("TokenAdmin.DescribeSelf", DescribeSelfRequest(), first.secret)


async def test_a_token_that_lost_self_rotation_meanwhile_does_not_rotate_itself(world: World) -> None:
    place = await world.place()

    with paused(Failpoint.MUTATION_AFTER_AUTHN) as pause:
        rotating = asyncio.ensure_future(
            world.surface.call("TokenAdmin.RotateSelf", RotateSelfRequest(overlap=HOUR), place.credential)
        )
        await pause.reached.wait()
        sql = "UPDATE tokens SET allow_self_rotation = false WHERE token_id = $1"
        await altered(world.database, sql, place.caller_id, accounts=[place.account_id])
        pause.release()
        refusal = await rotating

    assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")
    assert await versions(world, place.caller_id) == [1]


async def test_a_token_that_was_widened_meanwhile_is_not_rotated_by_who_holds_less(world: World) -> None:
    place = await world.place()

    with paused(Failpoint.MUTATION_AFTER_AUTHN) as pause:
        rotating = asyncio.ensure_future(rotated(world, place))
        await pause.reached.wait()
        sql = "UPDATE grants SET permission_set = 'everything' WHERE token_id = $1"
        await altered(world.database, sql, place.target_id, accounts=[place.account_id])
        pause.release()
        refusal = await rotating

    assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "EXCEEDS_CALLER")
    assert await versions(world, place.target_id) == [1]


async def test_what_is_refused_anyway_costs_no_hashing(world: World) -> None:
    """bcrypt stands still: what waits for it would not be answered."""
    place = await world.place()
    without = (await world.issue(place.account_id, Grant("minter", None))).reveal()

    with paused(Failpoint.BCRYPT_BEFORE_RESULT) as pause:
        unknown = await world.surface.refused(
            "TokenAdmin.RotateToken", RotateTokenRequest(token_id="nobody", overlap=HOUR), place.credential
        )
        forbidden = await world.surface.refused("TokenAdmin.RotateSelf", RotateSelfRequest(overlap=HOUR), without)

    assert (unknown.reason, forbidden.reason) == ("TOKEN_NOT_FOUND", "CALLER_NOT_PERMITTED")
    assert pause.count == 0


async def test_an_update_takes_the_expiry_of_the_token_as_it_is_under_the_lock(world: World) -> None:
    """The caller ends sooner than it did when it was recognized: what it gives must end by then."""
    place = await world.place()
    end = datetime.now(UTC) + timedelta(days=1)
    request = UpdateTokenRequest(token=ServiceToken(token_id=place.target_id, display_name="mine"))

    with paused(Failpoint.MUTATION_AFTER_AUTHN) as pause:
        updating = asyncio.ensure_future(world.surface.call("TokenAdmin.UpdateToken", request, place.credential))
        await pause.reached.wait()
        sql = "UPDATE tokens SET expire_time = $2 WHERE token_id = $1"
        await altered(world.database, sql, place.caller_id, end, accounts=[place.account_id])
        pause.release()
        refusal = await updating

    assert (refusal.reason, refusal.metadata) == ("EXCEEDS_CALLER", {"excess": f"a life beyond {end.isoformat()}"})
