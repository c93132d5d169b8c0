"""The caller of a change is read again under the change's locks: what it was when it was recognized counts for nothing.

Every change that a token may make, stopped between authentication and transaction, meanwhile its caller is taken away
something, by each of the ways there are: then it is refused, and nothing is written. Over the whole method table.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import uuid4

import pytest

from doorward.core.revision import Revision
from doorward.v1 import token_admin_pb2 as pb
from doorward.v1.types_pb2 import ServiceToken
from doorward_server.api.access import TABLE
from doorward_server.failpoints import Failpoint
from doorward_server.service.callers import Callers
from doorward_server.service.catalogs import Catalogs
from doorward_server.service.context import Request
from doorward_server.storage import changes
from tests.support import minting
from tests.support.database import put_account
from tests.support.inprocess import RPCS, altered, apply_catalog, footprint
from tests.support.issuing import issue
from tests.support.replica import paused, running
from tests.support.stepped import eventually
from tests.support.wire import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from google.protobuf.message import Message

    from doorward_server.storage.changes import Decided, Transaction
    from doorward_server.storage.pool import Database
    from tests.support.places import Place, World

ANSWERED: Final = "answered"
UNRECOGNIZED: Final = "CREDENTIAL_UNRECOGNIZED"
NOT_PERMITTED: Final = "CALLER_NOT_PERMITTED"
EXCEEDS: Final = "EXCEEDS_CALLER"


def _named(place: Place) -> pb.RevokeTokensByFilterRequest:
    return pb.RevokeTokensByFilterRequest(account_id=place.account_id, permission_set="jobs_viewer")


def _renamed(place: Place) -> pb.UpdateTokenRequest:
    request = pb.UpdateTokenRequest(token=ServiceToken(token_id=place.target_id, display_name="renamed"))
    request.update_mask.paths.append("display_name")
    return request


def _rotated(place: Place) -> pb.RotateTokenRequest:
    request = pb.RotateTokenRequest(token_id=place.target_id)
    request.overlap.FromTimedelta(timedelta(hours=1))
    return request


def _rotated_self(_place: Place) -> pb.RotateSelfRequest:
    request = pb.RotateSelfRequest()
    request.overlap.FromTimedelta(timedelta(hours=1))
    return request


# What hands out: bounded by what the caller holds.
HANDING_OUT: Final[dict[str, Callable[[Place], Message]]] = {
    "IssueToken": lambda place: pb.IssueTokenRequest(
        account_id=place.account_id, display_name="new", grants=[place.on_first("jobs_viewer")]
    ),
    "UpdateToken": _renamed,
    "RotateToken": _rotated,
    "EnableToken": lambda place: pb.EnableTokenRequest(token_id=place.target_id),
}
# What takes away: needs service_tokens:write and no more.
STOPPING: Final[dict[str, Callable[[Place], Message]]] = {
    "DisableToken": lambda place: pb.DisableTokenRequest(token_id=place.target_id),
    "RevokeToken": lambda place: pb.RevokeTokenRequest(token_id=place.target_id),
    "BatchRevokeTokens": lambda place: pb.BatchRevokeTokensRequest(
        account_id=place.account_id, token_ids=[place.target_id]
    ),
    "RevokeTokensByFilter": _named,
}
# What a token does to itself: needs no permission.
OF_ITSELF: Final[dict[str, Callable[[Place], Message]]] = {
    "RevokeSelf": lambda _place: pb.RevokeSelfRequest(),
    "RotateSelf": _rotated_self,
}
REPEATABLE: Final = ("IssueToken", "RotateToken", "RotateSelf")
CHANGES: Final = {**HANDING_OUT, **STOPPING, **OF_ITSELF}
READS: Final[dict[str, Callable[[Place], Message]]] = {
    "GetToken": lambda place: pb.GetTokenRequest(token_id=place.target_id),
    "ListTokens": lambda place: pb.ListTokensRequest(account_id=place.account_id),
    "ListPermissionSets": lambda place: pb.ListPermissionSetsRequest(account_id=place.account_id),
    "ListAuditEvents": lambda place: pb.ListAuditEventsRequest(account_id=place.account_id),
    "AwaitPropagation": lambda _place: pb.AwaitPropagationRequest(revision="1.1"),
}
READS_ITSELF: Final[dict[str, Callable[[Place], Message]]] = {"DescribeSelf": lambda _place: pb.DescribeSelfRequest()}


class Taken(NamedTuple):
    """What is taken from the caller (`$1` its id, or its account's), and what its changes then come to."""

    sql: str
    of_account: bool = False


# It proves nobody any more.
GONE: Final = {
    "revoked": Taken("UPDATE tokens SET revoke_time = clock_timestamp() WHERE token_id = $1"),
    "disabled": Taken("UPDATE tokens SET disabled = true WHERE token_id = $1"),
    "expired": Taken("UPDATE tokens SET expire_time = clock_timestamp() WHERE token_id = $1"),
    "rotated out": Taken(
        "WITH former AS (UPDATE token_secrets SET not_after = clock_timestamp() WHERE token_id = $1 RETURNING *) "
        "INSERT INTO token_secrets (token_id, version, bcrypt_hash, digest, pepper_id, issued_to) "
        "SELECT token_id, version + 1, bcrypt_hash, sha256(digest), pepper_id, issued_to FROM former "
        "ORDER BY version DESC LIMIT 1"
    ),
    "secret removed": Taken("DELETE FROM token_secrets WHERE token_id = $1"),
    "account suspended": Taken("UPDATE accounts SET state = 'suspended' WHERE account_id = $1", of_account=True),
    "account deleted": Taken("UPDATE accounts SET state = 'deleted' WHERE account_id = $1", of_account=True),
}
# It holds what the RPC needs no more; `minter` is what gave it.
NARROWED: Final = {
    "may only read": Taken("UPDATE grants SET permission_set = 'token_viewer' WHERE token_id = $1 AND scope = '*'"),
    "lost the set": Taken("DELETE FROM grants WHERE token_id = $1 AND permission_set = 'minter'"),
    "lost every grant": Taken("DELETE FROM grants WHERE token_id = $1"),
    "on a project only": Taken(
        "UPDATE grants SET scope = account_id || '-p1' WHERE token_id = $1 AND permission_set = 'minter'"
    ),
    "plan changed": Taken("UPDATE accounts SET plan = 'bare' WHERE account_id = $1", of_account=True),
    "plan vanished": Taken("UPDATE accounts SET plan = 'vanished' WHERE account_id = $1", of_account=True),
}
# It may call, and holds or lives less than what it would hand out; `jobs_admin` is what covered that.
OUTGROWN: Final = {
    "lost the other set": Taken("DELETE FROM grants WHERE token_id = $1 AND permission_set = 'jobs_admin'"),
    "on another project": Taken(
        "UPDATE grants SET scope = account_id || '-p2' WHERE token_id = $1 AND permission_set = 'jobs_admin'"
    ),
    "set suspended": Taken("UPDATE accounts SET plan = 'small' WHERE account_id = $1", of_account=True),
    "to end sooner": Taken("UPDATE tokens SET expire_time = clock_timestamp() + interval '1 day' WHERE token_id = $1"),
}
EVERY_WAY: Final[dict[str, Taken]] = {**GONE, **NARROWED, **OUTGROWN}
WITHOUT_MINTER: Final = minting.TOML.replace(
    '[permission_sets.minter]\ntitle = "Mints, and can do nothing else"\nwrite = ["service_tokens"]',
    '[permission_sets.minter]\ntitle = "Mints no more"\nread = ["service_tokens"]',
)
WITH_MORE_IN_VIEWER: Final = minting.TOML.replace(
    '[permission_sets.jobs_viewer]\ntitle = "Sees jobs"\nread = ["jobs"]',
    '[permission_sets.jobs_viewer]\ntitle = "Sees more"\nread = ["jobs", "metadata"]',
)


async def take(world: World, place: Place, taken: Taken) -> int:
    """Takes it from the place's caller."""
    of = place.account_id if taken.of_account else place.caller_id
    return await altered(world.database, taken.sql, of, accounts=[place.account_id])


async def place_for(world: World, name: str) -> Place:
    return await world.place(disabled=name == "EnableToken")


async def call(world: World, name: str, place: Place, request_id: str = "") -> Any:
    """The answer or the refusal of the RPC, called by the place's caller."""
    request: Any = {**CHANGES, **READS, **READS_ITSELF}[name](place)
    if request_id:
        request.request_id = request_id
    return await world.surface.call(f"TokenAdmin.{name}", request, place.credential)


def outcome(name: str, answer: Any) -> str:
    """`ANSWERED`, or the reason of the refusal."""
    return answer.reason if isinstance(answer, Refusal) else ANSWERED if isinstance(
        answer, RPCS[f"TokenAdmin.{name}"].response_type
    ) else "?"  # fmt: skip


async def raced(world: World, name: str, taking: Callable[[Place], Any], *, repeats: bool = False) -> str:
    """Makes the change, stopped before its transaction until `taking` is done. Refused, it must have written nothing.

    `repeats`: it was made before, and is repeated with the same request id.
    """
    place, request_id = await place_for(world, name), str(uuid4()) if repeats else ""
    if repeats:
        assert outcome(name, await call(world, name, place, request_id)) == ANSWERED
    with paused(Failpoint.MUTATION_AFTER_AUTHN) as pause:
        calling = asyncio.ensure_future(call(world, name, place, request_id))
        await asyncio.wait([calling, asyncio.ensure_future(pause.reached.wait())], return_when="FIRST_COMPLETED")
        assert pause.reached.is_set(), calling.result()
        await taking(place)
        before = await footprint(world.database)
        pause.release()
        came_to = outcome(name, await calling)
    after = await footprint(world.database)
    assert (came_to == ANSWERED) is (after != before), (name, came_to)
    return came_to


def test_every_rpc_that_a_token_may_call_is_in_these_tables() -> None:
    rows = {
        path.rpartition("/")[2]: access
        for path, access in TABLE.items()
        if access.tokens and path.startswith("/doorward.v1.TokenAdmin/")
    }

    assert {name for name, row in rows.items() if row.needs_permission == "service_tokens:write"} == {
        *HANDING_OUT, *STOPPING,
    }  # fmt: skip
    assert {name for name, row in rows.items() if row.needs_permission == "service_tokens:read"} == set(READS)
    assert {name for name, row in rows.items() if row.needs_permission is None} == {*OF_ITSELF, *READS_ITSELF}


async def test_each_is_answered_when_nothing_is_taken(world: World) -> None:
    async def nothing(_place: Place) -> None:
        pass

    assert {name: await raced(world, name, nothing) for name in CHANGES} == dict.fromkeys(CHANGES, ANSWERED)
    place = await world.place()
    for name in (*READS, *READS_ITSELF):
        assert outcome(name, await call(world, name, place)) == ANSWERED


@pytest.mark.parametrize("what", GONE)
async def test_a_caller_that_is_gone_changes_nothing_any_more(world: World, what: str) -> None:
    came_to = {name: await raced(world, name, lambda place: take(world, place, GONE[what])) for name in CHANGES}

    assert came_to == dict.fromkeys(CHANGES, UNRECOGNIZED)


@pytest.mark.parametrize("what", NARROWED)
async def test_a_caller_that_may_not_any_more_changes_nothing_but_itself(world: World, what: str) -> None:
    came_to = {name: await raced(world, name, lambda place: take(world, place, NARROWED[what])) for name in CHANGES}

    assert came_to == {**dict.fromkeys(CHANGES, NOT_PERMITTED), **dict.fromkeys(OF_ITSELF, ANSWERED)}


@pytest.mark.parametrize("what", OUTGROWN)
async def test_a_caller_that_holds_less_now_hands_out_nothing_more_and_may_still_stop(world: World, what: str) -> None:
    came_to = {name: await raced(world, name, lambda place: take(world, place, OUTGROWN[what])) for name in CHANGES}

    assert came_to == {**dict.fromkeys(CHANGES, ANSWERED), **dict.fromkeys(HANDING_OUT, EXCEEDS)}


@pytest.mark.parametrize("what", EVERY_WAY)
async def test_a_repeat_tells_a_secret_only_to_who_may_still_have_it(world: World, what: str) -> None:
    """The sealed answer is there; the caller is authorized anew all the same (design section 4)."""

    async def taking(place: Place) -> int:
        return await take(world, place, EVERY_WAY[what])

    came_to = {name: await raced(world, name, taking, repeats=True) for name in REPEATABLE}

    of_others = UNRECOGNIZED if what in GONE else NOT_PERMITTED if what in NARROWED else EXCEEDS
    of_itself = UNRECOGNIZED if what in GONE else ANSWERED
    assert came_to == {"IssueToken": of_others, "RotateToken": of_others, "RotateSelf": of_itself}


async def test_a_token_that_may_not_rotate_itself_any_more_does_not(world: World) -> None:
    taken = Taken("UPDATE tokens SET allow_self_rotation = false WHERE token_id = $1")

    assert await raced(world, "RotateSelf", lambda place: take(world, place, taken)) == NOT_PERMITTED


async def test_a_token_that_may_not_rotate_itself_does_not_by_its_id_either(world: World) -> None:
    """Else RotateToken would get round what RotateSelf refuses."""
    place = await world.place()
    own = replace(place, target_id=place.caller_id)
    assert outcome("RotateToken", await call(world, "RotateToken", own)) == ANSWERED

    await take(world, place, Taken("UPDATE tokens SET allow_self_rotation = false WHERE token_id = $1"))

    refusal = await call(world, "RotateToken", own)
    assert (refusal.reason, refusal.metadata) == (EXCEEDS, {"excess": "allow_self_rotation"})


async def test_a_catalog_in_which_the_callers_set_is_less_is_the_one_that_counts(world: World) -> None:
    came_to = {}
    for name in CHANGES:
        await apply_catalog(world.database, minting.TOML)
        came_to[name] = await raced(world, name, lambda _place: apply_catalog(world.database, WITHOUT_MINTER))

    assert came_to == {**dict.fromkeys(CHANGES, NOT_PERMITTED), **dict.fromkeys(OF_ITSELF, ANSWERED)}


async def test_a_catalog_in_which_the_handed_out_set_is_more_is_the_one_that_counts(world: World) -> None:
    """`jobs_viewer` now also gives what the caller lacks."""
    came_to = {}
    for name in CHANGES:
        await apply_catalog(world.database, minting.TOML)
        came_to[name] = await raced(world, name, lambda _place: apply_catalog(world.database, WITH_MORE_IN_VIEWER))

    assert came_to == {**dict.fromkeys(CHANGES, ANSWERED), **dict.fromkeys(HANDING_OUT, EXCEEDS)}


@pytest.mark.parametrize("name", [*HANDING_OUT, *STOPPING])
async def test_a_catalog_that_is_applied_while_the_change_is_decided_starts_it_over(world: World, name: str) -> None:
    """No account's lock keeps a catalog out: the version that was decided on is compared by the last statement."""
    place = await place_for(world, name)
    with paused(Failpoint.MUTATION_AFTER_LOCK, times=1) as pause:
        calling = asyncio.ensure_future(call(world, name, place))
        await pause.reached.wait()
        await apply_catalog(world.database, WITHOUT_MINTER)
        before = await footprint(world.database)
        pause.release()
        assert outcome(name, await calling) == NOT_PERMITTED

    assert await footprint(world.database) == before


@pytest.mark.parametrize("name", CHANGES)
async def test_what_is_taken_during_the_transaction_comes_after_it(world: World, name: str) -> None:
    """The lock of the account orders the two: the change stands, and whatever takes from its caller is the later one."""
    place = await place_for(world, name)
    with paused(Failpoint.MUTATION_BEFORE_COMMIT) as pause:
        calling = asyncio.ensure_future(call(world, name, place))
        await pause.reached.wait()
        taking = asyncio.ensure_future(take(world, place, GONE["disabled"]))
        await eventually(lambda: _is_waiting_for_a_lock(world.database))
        assert not taking.done()
        pause.release()
        await asyncio.wait([calling, taking])

    assert outcome(name, calling.result()) == ANSWERED
    assert Revision.parse(calling.result().propagation.revision).number < taking.result()
    # And the next one is too late.
    assert outcome(name, await call(world, name, place)) == UNRECOGNIZED


async def _is_waiting_for_a_lock(database: Database) -> bool:
    async with database.reading() as connection:
        return bool(
            await connection.fetchval(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')"
            )
        )


@pytest.mark.parametrize("what", EVERY_WAY)
async def test_whoever_is_taken_something_before_the_call_is_refused_reads_too(world: World, what: str) -> None:
    place = await world.place()
    await take(world, place, EVERY_WAY[what])

    came_to = {name: outcome(name, await call(world, name, place)) for name in (*READS, *READS_ITSELF)}

    if what in GONE:
        assert came_to == dict.fromkeys(came_to, UNRECOGNIZED)
    else:
        may_read = ANSWERED if what == "may only read" or what in OUTGROWN else NOT_PERMITTED
        assert came_to == {**dict.fromkeys(READS, may_read), **dict.fromkeys(READS_ITSELF, ANSWERED)}


async def test_a_token_may_not_say_for_whom_it_acts(world: World) -> None:
    """It would stand in the audit as if an operator had vouched for it."""
    place = await world.place()
    before = await footprint(world.database)

    for name, request_of in CHANGES.items():
        refusal = await world.surface.refused(
            f"TokenAdmin.{name}", request_of(place), place.credential, on_behalf_of="alice@example.com"
        )
        assert (refusal.code, refusal.bad_fields) == ("INVALID_ARGUMENT", [("on-behalf-of", "FIELD_CONFLICT")]), name

    assert await footprint(world.database) == before


async def test_an_authority_is_never_read_without_the_lock_of_its_account(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme", "team")
    async with running(database, tmp_path, without=("keeper", "reporter", "feed")) as replica:
        catalogs = Catalogs()
        callers = Callers(replica.holding, replica.recognition, database, catalogs)
        secret = await issue(database, replica.ring, "acme")
        caller = await callers.authenticate_now(f"Bearer {secret.reveal()}", "/x", None)

        async def decide(transaction: Transaction) -> Decided[None]:
            await callers.authority(transaction, Request(caller, "", "", None), await catalogs.of(transaction))
            raise AssertionError("it was read")

        with pytest.raises(RuntimeError, match="without the lock"):
            await changes.commit(database, decide)
