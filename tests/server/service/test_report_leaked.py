"""Reports of leaked secrets: no oracle by deadlines, no need of a lease, and right when a rotation comes in between."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import bcrypt
import pytest

from doorward.core.secret import Secret, SecretKind, generate, new_id
from doorward_server.errors import DeadlineExceeded, Exhausted
from doorward_server.failpoints import Failpoint
from doorward_server.model import StoredSecret
from doorward_server.service.allowances import Allowances
from doorward_server.service.mutations import Mutations
from doorward_server.service.refusals import Refusals
from doorward_server.service.report_leaked import ReportLeaked
from doorward_server.storage import changes, token_secrets, tokens
from tests.support.database import change_of, event_of, put_account
from tests.support.inprocess import footprint
from tests.support.issuing import issue, revoke
from tests.support.replica import paused, running
from tests.support.stepped import PATIENCE_S, SteppedClock, SteppedTiming, eventually

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from doorward_server.storage.changes import Decided, Transaction
    from doorward_server.storage.pool import Database
    from doorward_server.storage.tokens import StoredToken
    from tests.support.replica import Parts

PEER = "10.0.0.9"


def leaked_of(replica: Parts) -> ReportLeaked:
    return ReportLeaked(
        replica.database,
        Mutations(replica.barrier, replica.tasks),
        replica.recognition,
        Refusals(replica.database, replica.timing),
        Allowances(replica.timing, burst=100, interval_ns=1),
    )


async def stored(database: Database, secret: Secret) -> StoredToken:
    async with database.reading() as connection:
        token = (await tokens.load(connection, secret.subject_id)).token
    assert token is not None
    return token


async def ends_of(database: Database) -> dict[int, datetime | None]:
    """When each version of the one token's secret ends."""
    async with database.reading() as connection:
        rows = await connection.fetch("SELECT version, not_after FROM token_secrets")
    return {row["version"]: row["not_after"] for row in rows}


async def rotate(replica: Parts, secret: Secret, overlap: timedelta) -> None:
    """The first rotation of a token: version 2 is another secret, version 1 ends after `overlap`."""
    text = generate(SecretKind.TOKEN, secret.subject_id).reveal().encode()
    pepper_id, digest = replica.ring.digest(text)
    current = StoredSecret(2, bcrypt.hashpw(text, bcrypt.gensalt(4)).decode(), digest, pepper_id)

    async def decide(tx: Transaction) -> Decided[None]:
        ends: dict[int, datetime] = {1: tx.now + overlap}
        await token_secrets.rotate(tx, secret.subject_id, ends, current, "operator:tester")
        subject = f"token:{secret.subject_id}"
        return changes.Decided(None, change_of(subject, "acme"), event_of(subject, account_id="acme"))

    await changes.commit(replica.database, decide, accounts=["acme"])


async def test_a_deadline_that_is_too_short_tells_nothing_of_the_secret(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        live = await issue(database, replica.ring, "acme")
        presented = (live, generate(SecretKind.TOKEN, new_id()), generate(SecretKind.TOKEN, live.subject_id))
        before = await footprint(database)
        for text in (*(secret.reveal().encode() for secret in presented), b"x"):
            with pytest.raises(DeadlineExceeded) as refused:
                await leaked_of(replica).report(text, PEER, replica.timing.now_ns() + 50_000_000)
            assert refused.value.reason == "DEADLINE_TOO_SHORT"
        assert await footprint(database) == before


async def test_a_deadline_that_comes_near_while_the_secret_is_recognized_does_not_spare_the_token(
    database: Database, tmp_path: Path
) -> None:
    await put_account(database, "acme")
    clock = SteppedClock()
    async with running(database, tmp_path, timing=SteppedTiming(clock)) as replica:
        await replica.usable()
        secret = await issue(database, replica.ring, "acme", with_digest=False)
        with paused(Failpoint.BCRYPT_BEFORE_RESULT) as pause:
            until_ns = clock.now_ns() + 1_000_000_000
            reporting = asyncio.ensure_future(leaked_of(replica).report(secret.reveal().encode(), PEER, until_ns))
            await pause.reached.wait()
            clock.advance(990)
            pause.release()
            await eventually(lambda: _is_revoked(database, secret))
            clock.advance(10)
            await asyncio.wait({reporting}, timeout=PATIENCE_S)
        reporting.result()


async def _is_revoked(database: Database, secret: Secret) -> bool:
    return (await stored(database, secret)).revoked


async def test_a_replica_without_a_lease_takes_reports(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path, without=("keeper", "reporter", "feed")) as replica:
        assert replica.holding.capture() is None
        secret = await issue(database, replica.ring, "acme")
        await leaked_of(replica).report(secret.reveal().encode(), PEER, None)
        assert (await stored(database, secret)).revoked


@pytest.mark.parametrize(
    ("overlap", "ends"), [(timedelta(hours=1), True), (timedelta(0), False)], ids=["in its overlap", "ended by it"]
)
async def test_a_secret_that_is_rotated_out_while_it_is_reported_ends_itself_alone(
    database: Database, tmp_path: Path, overlap: timedelta, ends: bool
) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        secret = await issue(database, replica.ring, "acme")
        with paused(Failpoint.MUTATION_AFTER_AUTHN) as pause:
            reporting = asyncio.ensure_future(leaked_of(replica).report(secret.reveal().encode(), PEER, None))
            await pause.reached.wait()
            await rotate(replica, secret, overlap)
            rotated = await ends_of(database)
            pause.release()
            await reporting
        token = await stored(database, secret)
    assert not token.revoked
    assert [version for version, *_ in token.secrets] == [2]
    former, after = rotated[1], (await ends_of(database))[1]
    assert former is not None
    assert after is not None
    assert after < former if ends else after == former


async def test_a_token_that_is_revoked_while_its_secret_is_reported_keeps_its_reason(
    database: Database, tmp_path: Path
) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        secret = await issue(database, replica.ring, "acme")
        with paused(Failpoint.MUTATION_AFTER_AUTHN) as pause:
            reporting = asyncio.ensure_future(leaked_of(replica).report(secret.reveal().encode(), PEER, None))
            await pause.reached.wait()
            await revoke(database, "acme", secret.subject_id)
            pause.release()
            await reporting
    async with database.reading() as connection:
        token = await tokens.read(connection, secret.subject_id)
    assert token is not None
    assert token.revoke_reason == ""


@pytest.mark.parametrize("how", ["revoked", "rotated out"])
async def test_what_has_stopped_is_waited_for_again(database: Database, tmp_path: Path, how: str) -> None:
    """A report that could not wait to its end is repeated: it returns no sooner than the first one would have."""
    await put_account(database, "acme")
    async with running(database, tmp_path, without=("feed",)) as replica:
        await replica.usable()
        secret = await issue(database, replica.ring, "acme")
        if how == "revoked":
            await revoke(database, "acme", secret.subject_id)
        else:
            await rotate(replica, secret, timedelta(0))
        until_ns = replica.timing.now_ns() + 400_000_000
        with pytest.raises(DeadlineExceeded) as late:
            await leaked_of(replica).report(secret.reveal().encode(), PEER, until_ns)
    assert late.value.reason == "PROPAGATION_NOT_AWAITED"


async def test_a_secret_without_a_digest_is_proved_and_ended(database: Database, tmp_path: Path) -> None:
    await put_account(database, "acme")
    async with running(database, tmp_path) as replica:
        await replica.usable()
        secret = await issue(database, replica.ring, "acme", with_digest=False)
        wrong = generate(SecretKind.TOKEN, secret.subject_id)
        await leaked_of(replica).report(wrong.reveal().encode(), PEER, None)
        assert not (await stored(database, secret)).revoked
        await eventually(lambda: _reported(replica, secret))
        assert (await stored(database, secret)).revoked


async def _reported(replica: Parts, secret: Secret) -> bool:
    """Whether it was taken: after a wrong one for the same id the next bcrypt waits for a moment."""
    try:
        await leaked_of(replica).report(secret.reveal().encode(), PEER, None)
    except Exhausted:
        return False
    return True
