"""A token that describes itself: by which of its secrets it called decides what it is told, if that one still lives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from doorward_server.errors import Unauthenticated
from doorward_server.model import Caller, CallerKind
from doorward_server.service.catalogs import Catalogs
from doorward_server.service.self_service import SelfService
from doorward_server.service.tokens import Tokens
from tests.support.database import issue_token, put_account
from tests.support.inprocess import altered

if TYPE_CHECKING:
    from doorward_server.storage.pool import Database

ROTATED = """
WITH former AS (
    UPDATE token_secrets SET not_after = clock_timestamp() + $2 * interval '1 second' WHERE token_id = $1 RETURNING *
)
INSERT INTO token_secrets (token_id, version, bcrypt_hash, digest, pepper_id, issued_to)
SELECT token_id, 2, bcrypt_hash, sha256(digest), pepper_id, issued_to FROM former
"""


def calling_with(version: int | None, subject_id: str = "tok") -> Caller:
    return Caller(CallerKind.TOKEN, subject_id, account_id="acme", secret_version=version)


@pytest.fixture
async def itself(database: Database) -> SelfService:
    await put_account(database, "acme")
    await issue_token(database, "tok", "acme")
    return SelfService(database, Tokens(database, Catalogs()), cast("Any", None))


async def test_the_current_secret_has_no_end_and_a_former_one_has(itself: SelfService, database: Database) -> None:
    await altered(database, ROTATED, "tok", 3600, accounts=["acme"])

    by_former, by_current = await itself.describe_self(calling_with(1)), await itself.describe_self(calling_with(2))

    assert by_current.secret_expire_us is None
    assert by_former.secret_expire_us is not None
    assert [token.token_id for token in by_former.shown.tokens] == ["tok"]


@pytest.mark.parametrize("caller", [calling_with(1), calling_with(3), calling_with(None), calling_with(1, "gone")])
async def test_a_secret_that_stopped_since_it_was_recognized_is_told_nothing(
    itself: SelfService, database: Database, caller: Caller
) -> None:
    await altered(database, ROTATED, "tok", 0, accounts=["acme"])

    with pytest.raises(Unauthenticated) as refused:
        await itself.describe_self(caller)

    assert refused.value.reason == "CREDENTIAL_UNRECOGNIZED"
