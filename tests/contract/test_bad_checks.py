"""Checks that ask with what is no right secret, or with what is no check: denials, and errors of single items."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1 import types_pb2
from doorward.v1.authorizer_pb2 import BatchCheckItem, BatchCheckRequest, IntrospectTokenRequest, ListPermissionsRequest
from tests.support.wire import (
    OwnAccount,
    an_account,
    another_of,
    ask,
    check,
    mistyped,
    on,
    on_all,
    refusal_in,
    refused,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.rows import Rows
    from tests.support.server import Stubs

# Made at run time, of nobody.
TOKEN_SECRET = generate(SecretKind.TOKEN, new_id()).reveal()
OPERATOR_SECRET = generate(SecretKind.OPERATOR, new_id()).reveal()

# ---- secrets that are wrong

NO_SECRETS: dict[str, Callable[[str], str]] = {
    "a word": lambda _: "nonsense",
    "the prefix": lambda _: "dwst_",
    "truncated": lambda secret: secret[:-1],
    "one more": lambda secret: f"{secret}0",
    "mistyped": mistyped,
    "in capitals": lambda secret: secret.upper(),
    "with a blank": lambda secret: f" {secret}",
    "with a newline": lambda secret: f"{secret}\n",
    "with NUL": lambda secret: f"{secret}\0",
    "not ASCII": lambda secret: secret.replace("dwst", "dẃst"),
    "other digits": lambda secret: secret[:-2] + "٣٤",
    "half of it twice": lambda secret: secret[:30] * 2,
    "another's": lambda _: TOKEN_SECRET,
    "wrong of a known token": another_of,
    "an operator's form": lambda secret: secret.replace("dwst", "dwop"),
    "an operator's": lambda _: OPERATOR_SECRET,
    "Bearer": lambda secret: f"Bearer {secret}",
    "the longest": lambda _: "x" * 128,
    "the longest in UTF-8": lambda _: "é" * 64,
}


@pytest.mark.parametrize("spoiled", NO_SECRETS.values(), ids=NO_SECRETS.keys())
def test_a_secret_that_is_not_right_is_unrecognized_whatever_is_wrong_with_it(
    stubs: Stubs, rows: Rows, spoiled: Callable[[str], str]
) -> None:
    account = an_account(stubs, projects=1)
    (project_id,) = account.project_ids
    secret = account.issue(on_all("account_admin")).secret
    presented = spoiled(secret)
    before = rows.footprint()

    answer = check(stubs, presented, "jobs:read", project_id=project_id)
    item = BatchCheckItem(permission="billing:read", account_id=account.account_id)
    batch = ask(stubs.authorizer.BatchCheck, BatchCheckRequest(secret=presented, items=[item]), stubs.caller)
    listed = ask(stubs.authorizer.ListPermissions, ListPermissionsRequest(secret=presented), stubs.caller)
    told = ask(stubs.authorizer.IntrospectToken, IntrospectTokenRequest(secret=presented), stubs.caller)

    assert [verdict(answer), verdict(batch.results[0])] == ["TOKEN_UNRECOGNIZED"] * 2
    assert [listed.reason, told.reason] == [types_pb2.DENY_REASON_TOKEN_UNRECOGNIZED] * 2
    assert (listed.usable, list(listed.permissions), told.active) == (False, [], False)
    assert {each.token_id + each.account_id for each in (answer, batch.results[0], listed, told)} == {""}
    assert rows.footprint() == before
    assert check(stubs, secret, "jobs:read", project_id=project_id).allowed


def test_a_right_secret_after_wrong_ones_is_recognized(stubs: Stubs, account: OwnAccount) -> None:
    secret = account.issue(on_all("job_admin")).secret
    project_id, _ = account.project_ids

    wrong = [check(stubs, another_of(secret), "jobs:read", project_id=project_id) for _ in range(20)]

    assert {verdict(answer) for answer in wrong} == {"TOKEN_UNRECOGNIZED"}
    assert check(stubs, secret, "jobs:read", project_id=project_id).allowed


# ---- batches


def test_each_item_of_a_batch_has_its_own_error_and_the_others_are_answered(stubs: Stubs, account: OwnAccount) -> None:
    project_id, _ = account.project_ids
    issued, other = account.issue(on("job_admin", project_id)), account.issue(on_all("member"))
    items = [
        BatchCheckItem(permission="jobs:write", project_id=project_id),
        BatchCheckItem(permission="jobs:delete", project_id=project_id),
        BatchCheckItem(permission="billing:read", account_id=account.account_id),
        BatchCheckItem(),
        BatchCheckItem(permission="jobs:read", project_id=project_id, secret="x" * 129),
        BatchCheckItem(permission="jobs:read", account_id="a b"),
        BatchCheckItem(permission="invitations:write", account_id=account.account_id, secret=other.secret),
        BatchCheckItem(permission="jobs:write", project_id=project_id, secret="nonsense"),
    ]

    answer = ask(stubs.authorizer.BatchCheck, BatchCheckRequest(secret=issued.secret, items=items), stubs.caller)

    errors = [refusal_in(result.error).bad_fields if result.HasField("error") else None for result in answer.results]
    assert errors == [
        None,
        [("permission", "PERMISSION_UNKNOWN")],
        None,
        [("permission", "FIELD_REQUIRED"), ("resource", "FIELD_REQUIRED")],
        [("secret", "FIELD_TOO_LONG")],
        [("account_id", "FIELD_MALFORMED"), ("account_id", "PERMISSION_LEVEL_MISMATCH")],
        None,
        None,
    ]
    answered = [result for result in answer.results if not result.HasField("error")]
    assert list(map(verdict, answered)) == ["ALLOWED", "PERMISSION_NOT_GRANTED", "ALLOWED", "TOKEN_UNRECOGNIZED"]
    assert [result.token_id for result in answered] == [issued.token.token_id] * 2 + [other.token.token_id, ""]
    assert not any(result.allowed or result.reason for result in answer.results if result.HasField("error"))


def test_an_item_without_any_secret_has_an_error(stubs: Stubs) -> None:
    items = [BatchCheckItem(permission="jobs:read", project_id="p")]

    (result,) = ask(stubs.authorizer.BatchCheck, BatchCheckRequest(items=items), stubs.caller).results

    assert refusal_in(result.error).bad_fields == [("secret", "FIELD_REQUIRED")]


def test_a_batchs_own_secret_that_is_too_long_fails_the_call(stubs: Stubs) -> None:
    items = [BatchCheckItem(permission="jobs:read", project_id="p", secret="nonsense")]

    refusal = refused(stubs.authorizer.BatchCheck, BatchCheckRequest(secret="x" * 129, items=items), stubs.caller)

    assert refusal.bad_fields == [("secret", "FIELD_TOO_LONG")]
