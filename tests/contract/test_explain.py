"""ExplainCheck over the wire: it says what Check says, and why; who may ask, and by what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1.authorizer_pb2 import ExplainCheckRequest, ExplainCheckResponse, GrantPart
from doorward.v1.types_pb2 import Consistency, DenyReason
from doorward_server.catalog.load import builtin_text, load_catalog
from tests.contract.test_access import operator_credential
from tests.support.server import bearer
from tests.support.wire import (
    OwnAccount,
    an_account,
    another_of,
    ask,
    check,
    code_of,
    eventually,
    fresh_id,
    mistyped,
    on,
    on_all,
    refused,
)

if TYPE_CHECKING:
    from doorward.v1.types_pb2 import Grant
    from tests.support.frail import Frail
    from tests.support.rows import Rows
    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import Metadata, Refusal

CATALOG = load_catalog(builtin_text(), 1)


def explain(stubs: Stubs, metadata: Metadata | None = None, **asked: Any) -> ExplainCheckResponse:
    return ask(stubs.authorizer.ExplainCheck, ExplainCheckRequest(**asked), metadata or stubs.admin)


def refusal(stubs: Stubs, metadata: Metadata, **asked: Any) -> Refusal:
    return refused(stubs.authorizer.ExplainCheck, ExplainCheckRequest(**asked), metadata)


def parts(answer: ExplainCheckResponse) -> dict[str, str]:
    """The part of each grant, by its set."""
    return {told.grant.permission_set: GrantPart.Name(told.part).removeprefix("GRANT_PART_") for told in answer.grants}


def reason(answer: ExplainCheckResponse) -> str:
    assert answer.allowed is (answer.reason == DenyReason.DENY_REASON_UNSPECIFIED)
    return "ALLOWED" if answer.allowed else DenyReason.Name(answer.reason).removeprefix("DENY_REASON_")


# ---- the same as Check


@pytest.mark.parametrize("plan", ["team", "enterprise"])
def test_it_says_what_check_says_for_every_permission_and_resource(stubs: Stubs, plan: str) -> None:
    account, other = an_account(stubs), an_account(stubs, projects=1)
    first, second = account.project_ids
    issued = account.issue(on("job_admin", first), on_all("metadata_only"), on("member", second), on("analyst", second))
    account.set_plan(plan)
    asked = 0
    for permission in CATALOG.permissions.values():
        is_on_project = permission.level.value == "project"
        projects = (first, second, other.project_ids[0], fresh_id("p"))
        for resource_id in projects if is_on_project else (account.account_id, other.account_id, "nobody"):
            place: dict[str, Any] = {"project_id" if is_on_project else "account_id": resource_id}
            decided = check(stubs, issued.secret, permission.name, **place)
            by_secret = explain(stubs, stubs.caller, secret=issued.secret, permission=permission.name, **place)
            by_id = explain(stubs, token_id=issued.token.token_id, permission=permission.name, **place)
            assert by_secret == by_id
            told = (by_id.allowed, by_id.reason, by_id.token_id, by_id.account_id)
            assert told == (decided.allowed, decided.reason, decided.token_id, decided.account_id)
            assert [one.grant for one in by_id.grants] == list(account.token(issued.token.token_id).grants)
            asked += 1
    assert asked > 150


def test_the_smallest_grant_makes_a_token_that_is_allowed(stubs: Stubs, account: OwnAccount) -> None:
    first, second = account.project_ids
    grants: dict[str, Grant] = {"job_admin": on("job_admin", first), "read_only": on_all("read_only")}
    issued = account.issue(*grants.values())
    for permission in CATALOG.permissions.values():
        is_on_project = permission.level.value == "project"
        place: dict[str, Any] = {"project_id": second} if is_on_project else {"account_id": account.account_id}
        answer = explain(stubs, secret=issued.secret, permission=permission.name, **place)
        if answer.allowed:
            assert not answer.HasField("smallest_grant")
            continue
        smallest = answer.smallest_grant
        better = account.issue(*{**grants, smallest.permission_set: smallest}.values()).secret
        assert check(stubs, better, permission.name, **place).allowed


def test_every_part_is_told(stubs: Stubs) -> None:
    account = an_account(stubs)
    first, second = account.project_ids
    issued = account.issue(on("job_admin", first), on("analyst", first), on_all("job_viewer"), on("member", second))
    account.set_plan("team")

    jobs = explain(stubs, token_id=issued.token.token_id, permission="jobs:read", project_id=second)
    connections = explain(
        stubs, token_id=issued.token.token_id, permission="connections:read", account_id=account.account_id
    )
    webhooks = explain(
        stubs, token_id=issued.token.token_id, permission="webhooks:write", account_id=account.account_id
    )
    elsewhere = explain(stubs, token_id=issued.token.token_id, permission="jobs:read", project_id="nowhere")

    assert parts(jobs) == {
        "analyst": "OTHER_PROJECTS",
        "job_admin": "OTHER_PROJECTS",
        "job_viewer": "SUSPENDED",
        "member": "ALLOWS",
    }
    assert {told.grant.permission_set: told.grant.suspended for told in jobs.grants} == {
        "analyst": True,
        "job_admin": False,
        "job_viewer": True,
        "member": False,
    }
    assert (reason(connections), reason(webhooks)) == ("ALL_PROJECTS_REQUIRED", "ALL_PROJECTS_REQUIRED")
    assert parts(webhooks) == {
        "analyst": "NOT_HELD",
        "job_admin": "NOT_HELD",
        "job_viewer": "NOT_HELD",
        "member": "NEEDS_ALL_PROJECTS",
    }
    assert (reason(elsewhere), set(parts(elsewhere).values())) == (
        "RESOURCE_NOT_IN_ACCOUNT",
        {"RESOURCE_NOT_IN_ACCOUNT"},
    )
    assert not elsewhere.HasField("smallest_grant")


def test_the_contracts_example(stubs: Stubs, account: OwnAccount) -> None:
    analytics, finance = account.project_ids
    issued = account.issue(on("job_admin", analytics))

    answer = explain(stubs, token_id=issued.token.token_id, permission="jobs:write", project_id=finance)

    assert (reason(answer), parts(answer)) == ("PROJECT_NOT_GRANTED", {"job_admin": "OTHER_PROJECTS"})
    assert answer.smallest_grant == on("job_admin", *sorted((analytics, finance)))


def test_a_secret_that_is_not_recognized_is_explained_by_that_alone(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("job_admin"))
    nobodys = [generate(SecretKind.TOKEN, new_id()).reveal(), another_of(issued.secret), mistyped(issued.secret), "x"]

    for secret in nobodys:
        answer = explain(stubs, secret=secret, permission="jobs:read", project_id=account.project_ids[0])
        assert answer == ExplainCheckResponse(
            reason=DenyReason.DENY_REASON_TOKEN_UNRECOGNIZED, revision=answer.revision
        )


def test_a_revoked_token_is_explained_with_its_grants(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("job_admin"))
    propagation = account.revoke(issued.token.token_id).propagation

    asked: list[dict[str, Any]] = [{"secret": issued.secret}, {"token_id": issued.token.token_id}]
    for subject in asked:
        answer = explain(stubs, **subject, permission="jobs:read", project_id=account.project_ids[0])

        assert (reason(answer), parts(answer)) == ("TOKEN_REVOKED", {"job_admin": "ALLOWS"})
        assert not answer.HasField("smallest_grant")
        assert int(answer.revision.partition(".")[2]) >= int(propagation.revision.partition(".")[2])


def test_it_changes_nothing(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    issued = account.issue(on_all("read_only"))
    before = rows.footprint()

    answer = explain(stubs, token_id=issued.token.token_id, permission="jobs:read", project_id=account.project_ids[0])

    assert answer.HasField("smallest_grant")
    assert rows.footprint() == before
    assert account.token(issued.token.token_id) == issued.token


def test_a_demand_for_freshness_is_met(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("job_admin"))
    asked: dict[str, Any] = {
        "token_id": issued.token.token_id,
        "permission": "jobs:read",
        "project_id": account.project_ids[0],
    }

    fresh = explain(stubs, **asked, consistency=Consistency(fully_consistent=True))
    beyond = refusal(stubs, stubs.admin, **asked, consistency=Consistency(at_least_as_fresh="1.999999999"))

    assert fresh.allowed
    assert beyond.reason == "REVISION_BEYOND_END"


# ---- who may ask


def test_operators_may_ask_by_a_secret_whatever_their_role_and_by_an_id_as_readers(
    stubs: Stubs, server: ServerProcess, account: OwnAccount
) -> None:
    issued = account.issue(on_all("job_admin"))
    asked: dict[str, Any] = {"permission": "jobs:read", "project_id": account.project_ids[0]}
    auditor = bearer(operator_credential(server, "auditor"))

    for metadata in (stubs.admin, auditor, stubs.caller):
        assert explain(stubs, metadata, secret=issued.secret, **asked).allowed
    for metadata in (stubs.admin, auditor):
        assert explain(stubs, metadata, token_id=issued.token.token_id, **asked).allowed
    there, nowhere, wrong = (
        refusal(stubs, stubs.caller, token_id=issued.token.token_id, **asked),
        refusal(stubs, stubs.caller, token_id=new_id(), **asked),
        refusal(stubs, stubs.caller, token_id="no id", permission="jobs:delete"),
    )
    assert (there.code, there.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")
    assert there == nowhere == wrong


@pytest.mark.parametrize("permission_set", ["account_admin", "security_admin", "account_viewer"])
def test_a_token_that_may_read_tokens_explains_those_of_its_account(
    stubs: Stubs, account: OwnAccount, permission_set: str
) -> None:
    issued = account.issue(on_all("job_admin"))
    reader = bearer(account.issue(on_all(permission_set)).secret)

    answer = explain(
        stubs, reader, token_id=issued.token.token_id, permission="jobs:read", project_id=account.project_ids[0]
    )

    assert (answer.allowed, answer.token_id) == (True, issued.token.token_id)


def test_a_token_that_may_not_read_tokens_explains_none(stubs: Stubs, account: OwnAccount) -> None:
    issued = account.issue(on_all("job_admin"))
    asked: dict[str, Any] = {"permission": "jobs:read", "project_id": account.project_ids[0]}
    suspended = an_account(stubs)
    by_plan = suspended.issue(on_all("security_admin"))
    suspended.set_plan("team")

    for secret in (account.issue(on_all("member")).secret, issued.secret, by_plan.secret):
        for subject in ({"token_id": issued.token.token_id}, {"token_id": new_id()}, {"secret": issued.secret}, {}):
            told = refusal(stubs, bearer(secret), **subject, **asked)
            assert (told.code, told.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")


def test_a_token_asks_by_id_only(stubs: Stubs, account: OwnAccount) -> None:
    admin = account.issue(on_all("account_admin"))
    asked: dict[str, Any] = {"permission": "jobs:read", "project_id": account.project_ids[0]}

    told = refusal(stubs, bearer(admin.secret), secret=admin.secret, **asked)

    assert (told.code, told.reason) == ("PERMISSION_DENIED", "CALLER_NOT_PERMITTED")
    assert explain(stubs, bearer(admin.secret), token_id=admin.token.token_id, **asked).allowed


def test_to_a_token_another_accounts_token_does_not_exist(stubs: Stubs, account: OwnAccount) -> None:
    foreign = an_account(stubs).issue(on_all("job_admin")).token.token_id
    unknown = new_id()
    reader = bearer(account.issue(on_all("account_admin")).secret)
    asked: dict[str, Any] = {"permission": "jobs:read", "project_id": account.project_ids[0]}

    for more in ({}, {"consistency": Consistency(fully_consistent=True)}, {"permission": "jobs:delete"}):
        told = [refusal(stubs, reader, **{**asked, **more, "token_id": one}) for one in (foreign, unknown)]
        assert told[0].text.replace(foreign, unknown) == told[1].text
        assert told[0].code == told[1].code
    missing = refusal(stubs, stubs.admin, **asked, token_id=unknown)
    assert (missing.code, missing.reason, missing.metadata) == ("NOT_FOUND", "TOKEN_NOT_FOUND", {"token_id": unknown})
    assert refusal(stubs, reader, **asked, token_id=foreign).text == missing.text.replace(unknown, foreign)


def test_a_token_that_was_revoked_or_lost_its_grant_asks_no_more(stubs: Stubs, account: OwnAccount) -> None:
    revoked, demoted = account.issue(on_all("account_admin")), account.issue(on_all("security_admin"))
    asked: dict[str, Any] = {
        "token_id": revoked.token.token_id,
        "permission": "jobs:read",
        "project_id": account.project_ids[0],
    }
    for caller in (revoked, demoted):
        assert explain(stubs, bearer(caller.secret), **asked).allowed

    account.revoke(revoked.token.token_id)
    account.set_plan("team")

    assert refusal(stubs, bearer(revoked.secret), **asked).reason == "CREDENTIAL_UNRECOGNIZED"
    assert refusal(stubs, bearer(demoted.secret), **asked).reason == "CALLER_NOT_PERMITTED"


# ---- what is wrong with it


def test_every_bad_field_is_told_at_once(stubs: Stubs) -> None:
    told = [
        refusal(stubs, stubs.admin).bad_fields,
        refusal(stubs, stubs.admin, secret="", permission="jobs:delete", project_id="").bad_fields,
        refusal(stubs, stubs.admin, secret="x" * 129, permission="jobs:read", account_id="a b").bad_fields,
        refusal(
            stubs,
            stubs.admin,
            token_id="t" * 65,
            permission="billing:read",
            project_id="p",
            consistency=Consistency(at_least_as_fresh="x"),
        ).bad_fields,
    ]

    assert told == [
        [("permission", "FIELD_REQUIRED"), ("resource", "FIELD_REQUIRED"), ("subject", "FIELD_REQUIRED")],
        [("permission", "PERMISSION_UNKNOWN"), ("project_id", "FIELD_REQUIRED"), ("secret", "FIELD_REQUIRED")],
        [
            ("account_id", "FIELD_MALFORMED"),
            ("account_id", "PERMISSION_LEVEL_MISMATCH"),
            ("secret", "FIELD_TOO_LONG"),
        ],
        [
            ("consistency.at_least_as_fresh", "FIELD_MALFORMED"),
            ("project_id", "PERMISSION_LEVEL_MISMATCH"),
            ("token_id", "FIELD_TOO_LONG"),
        ],
    ]


@pytest.mark.usefixtures("recovered")
def test_without_a_lease_nothing_is_explained(frail: Frail) -> None:
    token_id = frail.account.issue(on_all("job_admin")).token.token_id
    asked: dict[str, Any] = {
        "token_id": token_id,
        "permission": "jobs:read",
        "project_id": frail.account.project_ids[0],
    }
    assert explain(frail.stubs, **asked).allowed

    with frail.rows.holding("LOCK TABLE replicas"):
        eventually(lambda: code_of(lambda: check(frail.stubs, "x", "jobs:read", project_id="p")) == "UNAVAILABLE")
        told = refusal(frail.stubs, frail.stubs.admin, **asked)

    assert (told.code, told.reason) == ("UNAVAILABLE", "NO_LEASE")
    frail.account.revoke(token_id)
