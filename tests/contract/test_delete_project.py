"""DeleteProject over the wire: nothing is allowed there from the return on, and no grant remembers the id."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import grpc

from doorward.v1 import types_pb2
from doorward.v1.account_admin_pb2 import (
    DeleteAccountRequest,
    DeleteProjectRequest,
    DeleteProjectResponse,
    ListProjectsRequest,
    PutProjectRequest,
)
from tests.support.wire import (
    OwnAccount,
    an_account,
    ask,
    check,
    code_of,
    eventually,
    fresh_id,
    on,
    on_all,
    refused,
    verdict,
)

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import Stubs

INSERT_TOKENS = """
INSERT INTO tokens (token_id, account_id, display_name, description, labels, allow_self_rotation, disabled, create_time,
                    update_time, revoke_time, created_by, ordinal, revision)
SELECT $1 || n, $1, 'many', '', '{}', false, false, now(), now(), CASE WHEN $3 THEN now() END, 'operator:x', n + 10, 1
FROM generate_series(1, $2) AS n
"""
INSERT_GRANTS = """
INSERT INTO grants (token_id, account_id, permission_set, scope, ordinal)
SELECT token_id, account_id, 'member', $2, ordinal FROM tokens WHERE account_id = $1 AND display_name = 'many'
"""


def delete(account: OwnAccount, project_id: str, **fields: Any) -> DeleteProjectResponse:
    request = DeleteProjectRequest(account_id=account.account_id, project_id=project_id, **fields)
    return ask(account.stubs.accounts.DeleteProject, request, account.stubs.admin)


def put(account: OwnAccount, project_id: str) -> None:
    request = PutProjectRequest(account_id=account.account_id, project_id=project_id, display_name="Again")
    ask(account.stubs.accounts.PutProject, request, account.stubs.admin)


def asked(account: OwnAccount, secret: str, project_id: str) -> str:
    return verdict(check(account.stubs, secret, "jobs:write", project_id=project_id))


def with_many_tokens(rows: Rows, account: OwnAccount, project_id: str, count: int, *, revoked: bool) -> None:
    """Tokens that nobody has a secret of, written behind the server's back: it has never seen one of them."""
    rows.fetch(INSERT_TOKENS, account.account_id, count, revoked)
    rows.fetch(INSERT_GRANTS, account.account_id, project_id)


# ---- what it does


def test_a_deleted_project_denies_at_once_whatever_was_warm(account: OwnAccount) -> None:
    first, second = account.project_ids
    named, every = account.issue(on("job_admin", first, second)).secret, account.issue(on_all("job_admin")).secret
    before = [asked(account, secret, project) for secret in (named, every) for project in (first, second)]

    delete(account, first)

    assert before == ["ALLOWED"] * 4
    assert [asked(account, secret, first) for secret in (named, every)] == ["RESOURCE_NOT_IN_ACCOUNT"] * 2
    assert [asked(account, secret, second) for secret in (named, every)] == ["ALLOWED"] * 2


def test_its_id_leaves_every_grant_and_an_empty_grant_goes(account: OwnAccount) -> None:
    first, second = account.project_ids
    both = account.issue(on("job_admin", first, second), on("member", first)).token
    alone = account.issue(on("job_admin", first)).token
    others = [account.issue(grant).token for grant in (on_all("job_admin"), on("job_admin", second))]

    answer = delete(account, first)

    assert (answer.grants_changed, answer.grants_removed) == (3, 2)
    assert (answer.project.project_id, answer.project.account_id) == (first, account.account_id)
    assert answer.propagation.replicas_confirmed == 1
    assert list(account.token(both.token_id).grants) == [on("job_admin", second)]
    assert list(account.token(alone.token_id).grants) == []
    assert [account.token(other.token_id) for other in others] == others
    listed = ask(
        account.stubs.accounts.ListProjects, ListProjectsRequest(account_id=account.account_id), account.stubs.admin
    )
    assert [project.project_id for project in listed.projects] == [second]


def test_a_token_left_with_no_grant_stays_and_may_do_nothing(account: OwnAccount) -> None:
    first, second = account.project_ids
    issued = account.issue(on("job_admin", first))

    delete(account, first)

    assert account.token(issued.token.token_id).state == types_pb2.TOKEN_STATE_ACTIVE
    assert asked(account, issued.secret, second) == "PERMISSION_NOT_GRANTED"
    account.revoke(issued.token.token_id)


def test_a_token_that_lost_a_grant_has_another_etag_and_update_time(account: OwnAccount) -> None:
    first, second = account.project_ids
    records = [account.issue(on("job_admin", first, second)).token]

    for project_id in (first, second):
        delete(account, project_id)
        records.append(account.token(records[0].token_id))

    assert len({record.etag for record in records}) == 3
    times = [record.update_time.ToNanoseconds() for record in records]
    assert times == sorted(set(times))


def test_the_project_of_a_deleted_account_can_be_deleted_and_its_id_used_again(
    stubs: Stubs, account: OwnAccount
) -> None:
    first, _ = account.project_ids
    issued = account.issue(on("job_admin", first))
    ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=account.account_id), stubs.admin)

    answer = delete(account, first)
    other = an_account(stubs, projects=0)
    put(other, first)

    assert (answer.grants_changed, answer.grants_removed) == (1, 1)
    assert asked(account, issued.secret, first) == "TOKEN_REVOKED"
    assert asked(other, other.issue(on("job_admin", first)).secret, first) == "ALLOWED"


# ---- the id put again


def test_no_grant_remembers_a_project_that_the_same_account_puts_again(account: OwnAccount) -> None:
    first, second = account.project_ids
    alone, both = account.issue(on("job_admin", first)).secret, account.issue(on("job_admin", first, second)).secret
    every = account.issue(on_all("job_admin")).secret
    for secret in (alone, both, every):
        assert asked(account, secret, first) == "ALLOWED"

    delete(account, first)
    # Denied and remembered as unknown in between.
    assert asked(account, every, first) == "RESOURCE_NOT_IN_ACCOUNT"
    put(account, first)

    seen = {
        name: asked(account, secret, first) for name, secret in (("alone", alone), ("both", both), ("every", every))
    }
    assert seen == {"alone": "PERMISSION_NOT_GRANTED", "both": "PROJECT_NOT_GRANTED", "every": "ALLOWED"}


def test_the_id_passes_to_another_account_and_back(stubs: Stubs, account: OwnAccount) -> None:
    other = an_account(stubs, projects=0)
    project_id, _ = account.project_ids
    former = [account.issue(on("job_admin", project_id)).secret, account.issue(on_all("job_admin")).secret]
    everywhere = other.issue(on_all("job_admin")).secret
    seen = [[asked(account, secret, project_id) for secret in (*former, everywhere)]]

    delete(account, project_id)
    put(other, project_id)
    theirs = other.issue(on("job_admin", project_id)).secret
    seen.append([asked(account, secret, project_id) for secret in (*former, everywhere, theirs)])
    delete(other, project_id)
    put(account, project_id)
    seen.append([asked(account, secret, project_id) for secret in (*former, everywhere, theirs)])

    foreign = "RESOURCE_NOT_IN_ACCOUNT"
    assert seen == [
        ["ALLOWED", "ALLOWED", foreign],
        [foreign, foreign, "ALLOWED", "ALLOWED"],
        ["PERMISSION_NOT_GRANTED", "ALLOWED", foreign, foreign],
    ]


def test_two_accounts_that_hand_an_id_to_and_fro_at_once_are_never_refused_for_anything_else(stubs: Stubs) -> None:
    pair, project_id = [an_account(stubs, projects=0) for _ in range(2)], fresh_id("p")
    puts: list[str] = []
    deletions: list[str] = []

    def play(account: OwnAccount) -> None:
        for _ in range(8):
            puts.append(code_of(lambda: put(account, project_id)))
            deletions.append(code_of(lambda: delete(account, project_id)))

    players = [threading.Thread(target=play, args=(account,)) for account in pair]
    for player in players:
        player.start()
    for player in players:
        player.join()

    assert set(puts) <= {"OK", "ALREADY_EXISTS"}
    assert set(deletions) <= {"OK", "NOT_FOUND"}
    assert puts.count("OK") == deletions.count("OK") > 0


# ---- many


def test_thousands_of_tokens_may_name_it(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    first, second = account.project_ids
    with_many_tokens(rows, account, first, 3000, revoked=False)
    issued = account.issue(on("job_admin", first, second))
    assert asked(account, issued.secret, first) == "ALLOWED"

    answer = delete(account, first)
    put(account, first)

    assert (answer.grants_changed, answer.grants_removed) == (3001, 3000)
    assert asked(account, issued.secret, first) == "PROJECT_NOT_GRANTED"
    ((subjects, named),) = rows.fetch(
        "SELECT cardinality(changes.subjects), cardinality(audit_events.tokens) FROM changes JOIN audit_events"
        " USING (revision) WHERE changes.kind = 'DeleteProject' AND changes.account_id = $1",
        account.account_id,
    )
    assert (subjects, named) == (3002, 3001)


def test_any_number_of_revoked_tokens_may_have_named_it(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    """More than one transaction has time for; their records forget it all the same."""
    first, _ = account.project_ids
    with_many_tokens(rows, account, first, 20_500, revoked=True)
    # As autovacuum does soon after so many rows: the statement's time is that of its plan.
    rows.fetch("ANALYZE tokens")
    rows.fetch("ANALYZE grants")

    only_checked = delete(account, first, validate_only=True)
    answer = delete(account, first)

    assert (answer.grants_changed, answer.grants_removed) == (20_500, 20_500)
    assert (only_checked.grants_changed, only_checked.grants_removed) == (20_500, 20_500)
    assert rows.fetch("SELECT count(*) FROM grants WHERE scope = $1", first) == [(0,)]
    told = rows.fetch(
        "SELECT (after ->> 'grants_changed')::int, tokens FROM audit_events WHERE subject = $1 AND action = 'DeleteProject'"
        " ORDER BY event_id",
        f"project:{first}",
    )
    assert told == [(20_000, None), (20_500, None)]


# ---- refusals, checking only


def test_what_the_account_does_not_have_is_not_found_whosever_it_is(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    other = an_account(stubs, projects=1)
    (theirs,), nowhere = other.project_ids, fresh_id("p")
    secret = other.issue(on("job_admin", theirs)).secret
    before = rows.footprint()

    refusals = [
        refused(
            stubs.accounts.DeleteProject,
            DeleteProjectRequest(account_id=account.account_id, project_id=project_id, validate_only=only),
            stubs.admin,
        )
        for project_id in (theirs, nowhere)
        for only in (False, True)
    ]

    assert {(refusal.code, refusal.reason) for refusal in refusals} == {("NOT_FOUND", "PROJECT_NOT_FOUND")}
    assert [refusal.metadata["project_id"] for refusal in refusals] == [theirs, theirs, nowhere, nowhere]
    assert refusals[0].text.replace(theirs, nowhere) == refusals[2].text
    assert rows.footprint() == before
    assert asked(other, secret, theirs) == "ALLOWED"


def test_a_repeat_is_not_found(stubs: Stubs, account: OwnAccount) -> None:
    first, _ = account.project_ids
    delete(account, first)

    again = DeleteProjectRequest(account_id=account.account_id, project_id=first)
    assert refused(stubs.accounts.DeleteProject, again, stubs.admin).reason == "PROJECT_NOT_FOUND"


def test_unknown_accounts_and_bad_fields_are_refused(stubs: Stubs) -> None:
    nobody = DeleteProjectRequest(account_id=fresh_id("nobody"), project_id="p")
    bad = refused(stubs.accounts.DeleteProject, DeleteProjectRequest(project_id="no project"), stubs.admin)

    assert refused(stubs.accounts.DeleteProject, nobody, stubs.admin).reason == "ACCOUNT_NOT_FOUND"
    assert bad.bad_fields == [("account_id", "FIELD_REQUIRED"), ("project_id", "FIELD_MALFORMED")]


def test_a_deletion_that_is_only_validated_is_counted_and_not_made(account: OwnAccount, rows: Rows) -> None:
    first, second = account.project_ids
    live = account.issue(on("job_admin", first, second))
    revoked = account.issue(on("job_admin", first))
    account.revoke(revoked.token.token_id)
    before, records = rows.footprint(), [account.token(made.token.token_id) for made in (live, revoked)]

    answer = delete(account, first, validate_only=True)

    assert (answer.grants_changed, answer.grants_removed, answer.HasField("propagation")) == (2, 1, False)
    assert answer.project.display_name == "A project"
    assert rows.footprint() == before
    assert [account.token(made.token.token_id) for made in (live, revoked)] == records
    assert asked(account, live.secret, first) == "ALLOWED"


def test_whoever_issues_for_the_project_while_it_goes_is_before_it_or_refused(
    stubs: Stubs, account: OwnAccount
) -> None:
    """No token is left that names a project which is gone."""
    first, _ = account.project_ids
    issued: list[str] = []

    def issue() -> None:
        for _ in range(12):
            try:
                issued.append(account.issue(on("job_admin", first)).token.token_id)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # noqa: PT017 - PROJECT_NOT_IN_ACCOUNT
                return

    issuers = [threading.Thread(target=issue) for _ in range(3)]
    for issuer in issuers:
        issuer.start()
    eventually(lambda: len(issued) > 3)
    delete(account, first)
    for issuer in issuers:
        issuer.join()

    assert {len(account.token(token_id).grants) for token_id in issued} == {0}
