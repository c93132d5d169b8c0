"""Repeats when something went wrong in between: the answer to COMMIT was lost, the change was not made, a key is missing."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.duration_pb2 import Duration

from doorward.v1.token_admin_pb2 import IssueTokenRequest, RotateSelfRequest, RotateTokenRequest
from doorward_server import failpoints
from doorward_server.credentials import pepper
from doorward_server.failpoints import Failpoint
from doorward_server.model import Grant
from tests.support.inprocess import altered, footprint
from tests.support.issuing import revoke
from tests.support.replica import paused
from tests.support.wire import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.places import Place, World

HOUR = Duration(seconds=3600)
RPCS = ["IssueToken", "RotateToken", "RotateSelf"]


@pytest.fixture(autouse=True)
def nothing_armed() -> Iterator[None]:
    """Disarms what a test armed."""
    yield
    for point in Failpoint:
        failpoints.disarm(point)


def a_request(rpc: str, place: Place) -> Any:
    request_id = str(uuid.uuid4())
    if rpc == "IssueToken":
        grants = [place.on_first("jobs_viewer")]
        return IssueTokenRequest(
            account_id=place.account_id, display_name="minted", grants=grants, request_id=request_id
        )
    if rpc == "RotateToken":
        return RotateTokenRequest(token_id=place.target_id, overlap=HOUR, request_id=request_id)
    return RotateSelfRequest(overlap=HOUR, request_id=request_id)


async def secrets_made(world: World) -> int:
    async with world.database.reading() as connection:
        found: int = await connection.fetchval("SELECT count(*) FROM token_secrets")
    return found


def raising(error: Exception) -> Any:
    async def stop() -> None:
        raise error

    return stop


@pytest.mark.parametrize("rpc", RPCS)
async def test_a_change_whose_commit_was_never_acknowledged_is_told_by_its_repeat(world: World, rpc: str) -> None:
    """It was committed, and the caller got COMMIT_UNKNOWN: the repeat has the secret, and nothing was made twice."""
    place = await world.place()
    request, before = a_request(rpc, place), await secrets_made(world)
    failpoints.arm(Failpoint.MUTATION_ACK_LOST, raising(OSError("the line broke")))
    refusal = await world.surface.refused(f"TokenAdmin.{rpc}", request, place.credential)
    failpoints.disarm(Failpoint.MUTATION_ACK_LOST)

    answers = [await world.surface.ask(f"TokenAdmin.{rpc}", request, place.credential) for _ in range(2)]

    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "COMMIT_UNKNOWN")
    assert len({answer.secret for answer in answers}) == 1
    assert await secrets_made(world) == before + 1


@pytest.mark.parametrize("rpc", RPCS)
async def test_a_change_that_was_not_made_keeps_no_answer_and_is_made_by_its_repeat(world: World, rpc: str) -> None:
    place = await world.place()
    request, before = a_request(rpc, place), await footprint(world.database)
    failpoints.arm(Failpoint.MUTATION_BEFORE_COMMIT, raising(OSError("the server goes away")))
    refusal = await world.surface.call(f"TokenAdmin.{rpc}", request, place.credential)
    failpoints.disarm(Failpoint.MUTATION_BEFORE_COMMIT)
    assert isinstance(refusal, Refusal)
    assert await footprint(world.database) == before

    answer = await world.surface.ask(f"TokenAdmin.{rpc}", request, place.credential)

    assert answer.secret
    async with world.database.reading() as connection:
        assert await connection.fetchval("SELECT count(*) FROM idempotent_responses") == 1


@pytest.mark.parametrize("rpc", RPCS)
async def test_a_repeat_is_an_event_and_no_change(world: World, rpc: str) -> None:
    """Written, so that a deposed primary cannot answer one; and no replica has anything to apply."""
    place = await world.place()
    request = a_request(rpc, place)
    first = await world.surface.ask(f"TokenAdmin.{rpc}", request, place.credential)
    before = await footprint(world.database)

    again = await world.surface.ask(f"TokenAdmin.{rpc}", request, place.credential)

    after = await footprint(world.database)
    assert again.propagation.revision == first.propagation.revision
    moved = [place for place, (was, is_now) in enumerate(zip(before, after, strict=True)) if was != is_now]
    assert moved == [1, 3]  # the head of the audit's chain, and the number of its events
    async with world.database.reading() as connection:
        event = await connection.fetchrow(
            "SELECT actor, action, subject, before, after FROM audit_events ORDER BY event_id DESC LIMIT 1"
        )
    assert event is not None
    assert tuple(event) == (f"token:{place.caller_id}", rpc, f"token:{again.token.token_id}", None, None)


@pytest.mark.parametrize("rpc", ["IssueToken", "RotateToken"])
async def test_a_repeat_that_waits_while_its_caller_is_revoked_gets_nothing(world: World, rpc: str) -> None:
    place = await world.place()
    request = a_request(rpc, place)
    await world.surface.ask(f"TokenAdmin.{rpc}", request, place.credential)

    with paused(Failpoint.MUTATION_AFTER_AUTHN) as pause:
        repeating = asyncio.ensure_future(world.surface.call(f"TokenAdmin.{rpc}", request, place.credential))
        await pause.reached.wait()
        await revoke(world.database, place.account_id, place.caller_id)
        pause.release()
        refusal = await repeating

    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "CREDENTIAL_UNRECOGNIZED")


@pytest.mark.parametrize("rpc", ["IssueToken", "RotateToken"])
async def test_a_caller_that_was_narrowed_gets_no_secret_of_what_it_could_give_before(world: World, rpc: str) -> None:
    place = await world.place()
    request = a_request(rpc, place)
    first = await world.surface.ask(f"TokenAdmin.{rpc}", request, place.credential)
    sql = "UPDATE grants SET permission_set = 'metadata_only' WHERE token_id = $1 AND permission_set = 'jobs_admin'"
    await altered(world.database, sql, place.caller_id, accounts=[place.account_id])

    refusal = await world.surface.refused(f"TokenAdmin.{rpc}", request, place.credential)

    on_first = f"on project {place.project_ids[0]}"
    assert (refusal.reason, refusal.metadata) == ("EXCEEDS_CALLER", {"excess": f"jobs:read {on_first}"})
    assert first.secret not in refusal.text


async def test_an_id_tells_another_caller_nothing(world: World) -> None:
    """To it a used id is a fresh one: the same answers, whether the request is the one that it came with or not."""
    place = await world.place()
    other = (await world.issue(place.account_id, Grant("minter", None), Grant("jobs_admin", None))).reveal()
    request = a_request("RotateToken", place)
    await world.surface.ask("TokenAdmin.RotateToken", request, place.credential)
    wrong = IssueTokenRequest(
        account_id=place.account_id,
        display_name="n",
        grants=[place.on_first("everything")],
        request_id=request.request_id,
    )
    fresh = IssueTokenRequest()
    fresh.CopyFrom(wrong)
    fresh.request_id = str(uuid.uuid4())

    used = await world.surface.refused("TokenAdmin.IssueToken", wrong, other)
    unused = await world.surface.refused("TokenAdmin.IssueToken", fresh, other)
    answer = await world.surface.ask("TokenAdmin.RotateToken", request, other)

    assert used == unused
    assert used.reason == "EXCEEDS_CALLER"
    assert answer.secret


async def test_without_the_key_that_it_was_sealed_under_a_repeat_tells_nothing_and_makes_nothing(
    world: World, tmp_path: Path
) -> None:
    """Another server of the deployment whose pepper file is behind. It is a fault, and no reason to issue a second token."""
    place = await world.place()
    request = a_request("IssueToken", place)
    key_file = tmp_path / "pepper.keys"
    first = await world.surface.ask("TokenAdmin.IssueToken", request, place.credential)
    before = await footprint(world.database)
    async with world.database.reading() as connection:
        sealed = await connection.fetchval("SELECT sealed FROM idempotent_responses")
        changed = sealed.replace(pepper.load(key_file).current_id.encode(), b"k_missing_")
        await connection.execute("UPDATE idempotent_responses SET sealed = $1", changed)

    refusal = await world.surface.refused("TokenAdmin.IssueToken", request, place.credential)

    assert (refusal.code, refusal.reason) == ("INTERNAL", "INTERNAL")
    assert first.secret not in refusal.text
    assert await footprint(world.database) == before
