"""What a service token may do with TokenAdmin in its own account, and what it leaves behind there (design section 5)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from doorward.v1 import token_admin_pb2 as pb
from doorward.v1.types_pb2 import Grant as GrantMessage
from doorward.v1.types_pb2 import TokenState
from doorward_server.model import Grant
from tests.support.inprocess import altered, footprint

if TYPE_CHECKING:
    from tests.support.places import Place, World


def on_all(permission_set: str) -> GrantMessage:
    return GrantMessage(permission_set=permission_set, all_projects=True)


def wanted(place: Place, *grants: GrantMessage, **fields: Any) -> pb.IssueTokenRequest:
    return pb.IssueTokenRequest(account_id=place.account_id, display_name="minted", grants=grants, **fields)


async def minted(world: World, place: Place, *grants: GrantMessage, **fields: Any) -> pb.IssueTokenResponse:
    answer: pb.IssueTokenResponse = await world.surface.ask(
        "TokenAdmin.IssueToken", wanted(place, *grants, **fields), place.credential
    )
    return answer


async def end_at(world: World, place: Place, span: timedelta) -> datetime:
    """Lets the place's caller expire so long from now; when."""
    expire_time = datetime.now(UTC) + span
    sql = "UPDATE tokens SET expire_time = $2 WHERE token_id = $1"
    await altered(world.database, sql, place.caller_id, expire_time, accounts=[place.account_id])
    return expire_time


async def test_a_token_issues_what_it_holds(world: World) -> None:
    place = await world.place()

    answer = await minted(world, place, place.on_first("jobs_viewer"), on_all("token_viewer"), allow_self_rotation=True)

    assert answer.token.created_by == f"token:{place.caller_id}"
    assert answer.token.account_id == place.account_id
    assert answer.token.state == TokenState.TOKEN_STATE_ACTIVE
    described = await world.surface.ask("TokenAdmin.DescribeSelf", pb.DescribeSelfRequest(), answer.secret)
    assert described.token == answer.token


async def test_who_received_a_secret_is_kept_beside_it(world: World) -> None:
    place = await world.place()

    answer = await minted(world, place, on_all("minter"))

    async with world.database.reading() as connection:
        event = await connection.fetchrow(
            "SELECT actor, action, account_id, on_behalf_of FROM audit_events WHERE subject = $1",
            f"token:{answer.token.token_id}",
        )
        received = await connection.fetchval(
            "SELECT issued_to FROM token_secrets WHERE token_id = $1", answer.token.token_id
        )
    assert event is not None
    assert tuple(event) == (f"token:{place.caller_id}", "IssueToken", place.account_id, "")
    assert received == f"token:{place.caller_id}"


async def test_a_chain_of_issuers_only_ever_narrows(world: World) -> None:
    place = await world.place()
    first = await minted(world, place, on_all("minter"), place.on_first("runner"))

    second = await world.surface.ask(
        "TokenAdmin.IssueToken", wanted(place, on_all("minter"), place.on_first("jobs_viewer")), first.secret
    )
    refusal = await world.surface.refused(
        "TokenAdmin.IssueToken", wanted(place, place.on_first("runner")), second.secret
    )

    assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "EXCEEDS_CALLER")
    on_first = f"on project {place.project_ids[0]}"
    assert refusal.metadata == {"excess": f"runs:read {on_first}; runs:write {on_first}"}
    # The token above it holds both.
    await world.surface.ask("TokenAdmin.IssueToken", wanted(place, place.on_first("runner")), first.secret)


@pytest.mark.parametrize("validate_only", [False, True])
@pytest.mark.parametrize(
    ("permission_set", "excess"),
    [
        ("billing_viewer", "billing:read at the account"),
        ("jobs_viewer", "jobs:read on all projects"),
        ("metadata_only", "metadata:read on all projects"),
    ],
)
async def test_what_exceeds_the_caller_is_named_and_not_issued(
    world: World, permission_set: str, excess: str, validate_only: bool
) -> None:
    place = await world.place()
    before = await footprint(world.database)

    refusal = await world.surface.refused(
        "TokenAdmin.IssueToken", wanted(place, on_all(permission_set), validate_only=validate_only), place.credential
    )

    assert (refusal.code, refusal.reason, refusal.metadata) == (
        "PERMISSION_DENIED",
        "EXCEEDS_CALLER",
        {"excess": excess},
    )
    assert await footprint(world.database) == before


async def test_a_token_that_ends_issues_none_that_ends_later(world: World) -> None:
    place = await world.place()
    end = await end_at(world, place, timedelta(days=1))
    grant = on_all("minter")

    refusals = [
        await world.surface.refused("TokenAdmin.IssueToken", request, place.credential)
        for request in (
            wanted(place, grant),
            wanted(place, grant, ttl=timedelta(days=1, minutes=1)),
            wanted(place, grant, expire_time=end + timedelta(microseconds=1)),
        )
    ]
    answers = [
        await minted(world, place, grant, ttl=timedelta(hours=23)),
        await minted(world, place, grant, expire_time=end),
    ]

    assert {refusal.reason for refusal in refusals} == {"EXCEEDS_CALLER"}
    assert {refusal.metadata["excess"] for refusal in refusals} == {f"a life beyond {end.isoformat()}"}
    assert answers[1].token.expire_time.ToDatetime(UTC) == end


async def test_a_token_without_self_rotation_issues_none_with_it(world: World) -> None:
    place = await world.place()
    without = await minted(world, place, on_all("minter"))

    refusal = await world.surface.refused(
        "TokenAdmin.IssueToken", wanted(place, on_all("minter"), allow_self_rotation=True), without.secret
    )

    assert (refusal.reason, refusal.metadata) == ("EXCEEDS_CALLER", {"excess": "allow_self_rotation"})


async def test_a_token_is_told_every_violation_as_an_operator_is(world: World) -> None:
    """Another account's project is one that its own account does not have, as an unknown one is."""
    place, other = await world.place(), await world.place()
    request = wanted(
        place,
        GrantMessage(permission_set="jobs_viewer", project_ids=[other.project_ids[0]]),
        GrantMessage(permission_set="nosuch", all_projects=True),
        GrantMessage(permission_set="billing_viewer", project_ids=[place.project_ids[0]]),
    )

    refusal = await world.surface.refused("TokenAdmin.IssueToken", request, place.credential)

    assert refusal.bad_fields == [
        ("grants[0].project_ids[0]", "PROJECT_NOT_IN_ACCOUNT"),
        ("grants[1].permission_set", "PERMISSION_SET_UNKNOWN"),
        ("grants[2]", "GRANT_WITHOUT_EFFECT"),
    ]


async def test_a_token_revokes_one_that_holds_more_and_lives_longer(world: World) -> None:
    """Stopping needs `service_tokens:write` and no more."""
    place = await world.place()
    await end_at(world, place, timedelta(hours=1))
    greater = await world.issue(place.account_id, Grant("everything", None), allow_self_rotation=True)

    answer = await world.surface.ask(
        "TokenAdmin.RevokeToken",
        pb.RevokeTokenRequest(token_id=greater.subject_id, reason="seen in a log"),
        place.credential,
    )

    assert (answer.token.state, answer.token.revoke_reason) == (TokenState.TOKEN_STATE_REVOKED, "seen in a log")
    refusal = await world.surface.refused("TokenAdmin.DescribeSelf", pb.DescribeSelfRequest(), greater.reveal())
    assert refusal.reason == "CREDENTIAL_UNRECOGNIZED"


async def test_a_token_that_only_reads_sees_its_account_and_changes_nothing(world: World) -> None:
    place = await world.place()
    reader = (await world.issue(place.account_id, Grant("token_viewer", None))).reveal()
    before = await footprint(world.database)

    listed = await world.surface.ask("TokenAdmin.ListTokens", pb.ListTokensRequest(account_id=place.account_id), reader)
    shown = await world.surface.ask("TokenAdmin.GetToken", pb.GetTokenRequest(token_id=place.target_id), reader)
    sets = await world.surface.ask(
        "TokenAdmin.ListPermissionSets", pb.ListPermissionSetsRequest(account_id=place.account_id), reader
    )
    awaited = await world.surface.ask("TokenAdmin.AwaitPropagation", pb.AwaitPropagationRequest(revision="1.1"), reader)
    refusal = await world.surface.refused("TokenAdmin.IssueToken", wanted(place, on_all("token_viewer")), reader)

    assert shown.token in listed.tokens
    assert {place.caller_id, place.target_id} < {token.token_id for token in listed.tokens}
    assert [found.name for found in sets.permission_sets if found.covered][:2] == ["everything", "minter"]
    assert awaited.propagation.revision == "1.1"
    assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")
    assert refusal.message.endswith("IssueToken without service_tokens:write")
    assert await footprint(world.database) == before


async def test_what_others_have_is_not_listed(world: World) -> None:
    place, other = await world.place(), await world.place()

    listed = await world.surface.ask(
        "TokenAdmin.ListTokens", pb.ListTokensRequest(account_id=place.account_id), place.credential
    )

    assert {token.token_id for token in listed.tokens} == {place.caller_id, place.target_id}
    assert other.target_id not in {token.token_id for token in listed.tokens}
