"""Lists by a set that the catalog has lost while tokens still hold it, and pages that are of one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward.v1 import token_admin_pb2 as pb
from doorward_server.model import Grant
from tests.support import minting
from tests.support.database import put_account
from tests.support.inprocess import apply_catalog, served
from tests.support.issuing import issue

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.storage.pool import Database

LIST, END = "TokenAdmin.ListTokens", "TokenAdmin.RevokeTokensByFilter"


async def test_grants_of_a_set_that_the_catalog_has_lost_can_be_found_and_ended(
    database: Database, tmp_path: Path
) -> None:
    await put_account(database, "acme", "large")
    await put_account(database, "other", "large")
    async with served(database, tmp_path) as surface:
        await apply_catalog(database, minting.TOML)
        caller = (await issue(database, surface.ring, "acme", grants=(Grant("everything", None),))).reveal()
        lost = await issue(database, surface.ring, "acme", grants=(Grant("job_admin", None),))
        await issue(database, surface.ring, "other", grants=(Grant("metadata_admin", None),))

        listed = await surface.ask(LIST, pb.ListTokensRequest(account_id="acme", permission_set="job_admin"), caller)
        assert [token.token_id for token in listed.tokens] == [lost.subject_id]
        assert [grant.suspended for grant in listed.tokens[0].grants] == [True]
        # One that only another account's tokens hold is unknown like any other.
        for unknown in ("metadata_admin", "no_such_set"):
            request = pb.ListTokensRequest(account_id="acme", permission_set=unknown)
            refusal = await surface.refused(LIST, request, caller)
            assert refusal.bad_fields == [("permission_set", "PERMISSION_SET_UNKNOWN")]
        ended = await surface.ask(
            END, pb.RevokeTokensByFilterRequest(account_id="acme", permission_set="job_admin"), caller
        )
        assert list(ended.token_ids) == [lost.subject_id]
