"""PreviewCatalog and ApplyCatalog over the wire, on a server of their own: its catalog is the whole deployment's."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1 import system_admin_pb2 as pb
from doorward.v1.account_admin_pb2 import DeleteAccountRequest, PutAccountRequest
from doorward.v1.token_admin_pb2 import ListPermissionSetsRequest
from doorward_server.catalog.load import LONGEST_TEXT, builtin_text
from tests.support.rows import Rows
from tests.support.server import start_server, stubs_on
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
    from collections.abc import Iterator

    from tests.support.server import ServerProcess, Stubs

ADDED, REMOVED, CHANGED = pb.CATALOG_CHANGE_KIND_ADDED, pb.CATALOG_CHANGE_KIND_REMOVED, pb.CATALOG_CHANGE_KIND_CHANGED

# Small, so that each test says in full what it changes. `driver` stands apart: tests take it away.
CATALOG = """\
schema = 1
version = "small"

[account_resources]
billing = { title = "Billing", actions = ["read", "write"] }

[project_resources]
jobs = { title = "Jobs", actions = ["read", "write"] }
runs = { title = "Runs", actions = ["read"] }

[plans.enterprise]
title = "Enterprise"
permission_sets = ["*"]

[plans.team]
title = "Team"
permission_sets = ["reader"]

[permission_sets.owner]
title = "Owner"
write = ["billing", "jobs"]

[permission_sets.reader]
title = "Reader"
read = ["jobs"]

[permission_sets.driver]
title = "Driver"
read = ["runs"]
write = ["jobs"]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """This module's own server."""
    base = tmp_path_factory.mktemp("catalogs")
    running = start_server(base / "data", base / "scratch")
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def stubs(server: ServerProcess) -> Iterator[Stubs]:
    """Stubs on it."""
    with grpc.insecure_channel(server.address) as channel:
        yield stubs_on(channel, server)


@pytest.fixture(scope="module")
def rows(server: ServerProcess) -> Iterator[Rows]:
    """Its database."""
    with contextlib.closing(Rows(server.data_dir)) as rows:
        yield rows


@pytest.fixture
def account(stubs: Stubs) -> Iterator[OwnAccount]:
    """The small catalog, and an account that is deleted afterwards, so that nothing stays in use."""
    apply(stubs, CATALOG, force=True)
    account = an_account(stubs)
    yield account
    ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=account.account_id), stubs.admin)


def apply(stubs: Stubs, catalog: str, **fields: Any) -> pb.ApplyCatalogResponse:
    return ask(stubs.system.ApplyCatalog, pb.ApplyCatalogRequest(catalog=catalog, **fields), stubs.admin)


def preview(stubs: Stubs, catalog: str, **fields: Any) -> pb.PreviewCatalogResponse:
    return ask(stubs.system.PreviewCatalog, pb.PreviewCatalogRequest(catalog=catalog, **fields), stubs.admin)


def in_force(stubs: Stubs) -> pb.GetCatalogResponse:
    return ask(stubs.system.GetCatalog, pb.GetCatalogRequest(), stubs.admin)


def without_set(name: str) -> str:
    parts = CATALOG.split("\n[")
    return "\n[".join(part for part in parts if not part.startswith(f"permission_sets.{name}]"))


def asked(account: OwnAccount, secret: str, permission: str = "jobs:write") -> str:
    return verdict(check(account.stubs, secret, permission, project_id=account.project_ids[0]))


# ---- applying


def test_every_check_is_decided_by_the_new_catalog_from_the_return_on(stubs: Stubs, account: OwnAccount) -> None:
    secret = account.issue(on_all("driver")).secret
    narrowed = CATALOG.replace('read = ["runs"]\nwrite = ["jobs"]', 'read = ["jobs", "runs"]')
    seen = [asked(account, secret), asked(account, secret)]

    for catalog in (narrowed, CATALOG, narrowed, CATALOG):
        apply(stubs, catalog)
        seen += [asked(account, secret), asked(account, secret)]

    allowed, denied = ["ALLOWED"] * 2, ["PERMISSION_NOT_GRANTED"] * 2
    assert seen == allowed + denied + allowed + denied + allowed


def test_a_set_that_a_plan_no_longer_covers_is_suspended_and_comes_back(stubs: Stubs, account: OwnAccount) -> None:
    secret = account.issue(on_all("driver")).secret
    uncovered = CATALOG.replace('permission_sets = ["*"]', 'permission_sets = ["owner", "reader"]')

    apply(stubs, uncovered)
    seen = [asked(account, secret)]
    apply(stubs, CATALOG)

    assert [*seen, asked(account, secret)] == ["GRANT_SUSPENDED_BY_PLAN", "ALLOWED"]


def test_a_permission_that_the_new_catalog_lacks_is_unknown_at_once(stubs: Stubs, account: OwnAccount) -> None:
    secret = account.issue(on_all("reader")).secret
    read_only = CATALOG.replace('"Jobs", actions = ["read", "write"]', '"Jobs", actions = ["read"]')
    apply(stubs, read_only.replace('["billing", "jobs"]', '["billing"]').replace('\nwrite = ["jobs"]', ""))

    assert code_of(lambda: asked(account, secret)) == "INVALID_ARGUMENT"
    assert asked(account, secret, "jobs:read") == "ALLOWED"


def test_the_version_goes_up_by_one_with_each_apply_and_the_text_is_kept_as_given(stubs: Stubs) -> None:
    before = in_force(stubs).catalog_version
    text = builtin_text().replace("\n", "\r\n") + '\r\n# Ünïcode ☃ \\u0041 "quoted"\r\n\t\r\n'

    answers = [apply(stubs, text, force=True), apply(stubs, text), apply(stubs, builtin_text())]

    assert [answer.catalog_version for answer in answers] == [before + 1, before + 2, before + 3]
    assert [answer.label for answer in answers] == ["2026.11.1"] * 3
    assert all(answer.propagation.replicas_confirmed == 1 for answer in answers)
    assert in_force(stubs).catalog == builtin_text()
    apply(stubs, text)
    assert in_force(stubs).catalog == text


def test_what_is_issued_next_follows_the_new_catalog(stubs: Stubs, account: OwnAccount) -> None:
    added = CATALOG + '\n[permission_sets.tester]\ntitle = "Tester"\naliases = ["qa"]\nread = ["runs"]\n'
    unknown = refused(stubs.tokens.IssueToken, account.wanted(on_all("qa")), stubs.admin)

    apply(stubs, added)
    issued = account.issue(on_all("qa"))

    listed = ask(stubs.tokens.ListPermissionSets, ListPermissionSetsRequest(account_id=account.account_id), stubs.admin)
    assert unknown.bad_fields == [("grants[0].permission_set", "PERMISSION_SET_UNKNOWN")]
    assert asked(account, issued.secret, "runs:read") == "ALLOWED"
    assert "tester" in {found.name for found in listed.permission_sets}


def test_an_audit_event_tells_the_versions_the_labels_and_what_was_forced(
    stubs: Stubs, account: OwnAccount, rows: Rows
) -> None:
    account.issue(on_all("driver"))
    version = apply(stubs, without_set("driver").replace('"small"', '"smaller"'), force=True).catalog_version

    ((subject, before, after),) = rows.fetch(
        "SELECT subject, before::text, after::text FROM audit_events WHERE (after ->> 'catalog_version')::int = $1",
        version,
    )
    assert subject == "catalog:"
    assert before == f'{{"label": "small", "catalog_version": {version - 1}}}'
    assert after == f'{{"label": "smaller", "catalog_version": {version}, "forced_permission_sets": ["driver"]}}'


# ---- expected_catalog_version


def test_a_catalog_that_was_applied_since_is_not_overwritten(stubs: Stubs, rows: Rows) -> None:
    version = in_force(stubs).catalog_version
    applied = apply(stubs, CATALOG, expected_catalog_version=version, force=True)
    before = rows.footprint()

    refusals = [
        refused(
            stubs.system.ApplyCatalog,
            pb.ApplyCatalogRequest(catalog=CATALOG, expected_catalog_version=expected, validate_only=only),
            stubs.admin,
        )
        for expected in (version, version + 2)
        for only in (False, True)
    ]

    assert applied.catalog_version == version + 1
    assert {(refusal.code, refusal.reason) for refusal in refusals} == {("ABORTED", "CATALOG_VERSION_MISMATCH")}
    assert {refusal.metadata["catalog_version"] for refusal in refusals} == {str(version + 1)}
    assert rows.footprint() == before


def test_of_many_who_expect_the_same_version_one_wins(stubs: Stubs) -> None:
    version = in_force(stubs).catalog_version
    outcomes: list[str] = []

    def attempt() -> None:
        outcomes.append(code_of(lambda: apply(stubs, CATALOG, expected_catalog_version=version, force=True)))

    threads = [threading.Thread(target=attempt) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["ABORTED"] * 5 + ["OK"]
    assert in_force(stubs).catalog_version == version + 1


# ---- in use


def test_what_grants_or_accounts_use_is_named_and_needs_force(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    issued = account.issue(on_all("driver"), on("reader", account.project_ids[0]))
    secret = issued.secret
    lacking = """\
schema = 1
version = "lacking"
[project_resources]
jobs = { title = "Jobs", actions = ["read", "write"] }
[plans.team]
title = "Team"
permission_sets = ["*"]
[permission_sets.owner]
title = "Owner"
write = ["jobs"]
[permission_sets.reader]
title = "Reader"
read = ["jobs"]
"""
    before = rows.footprint()
    requests = [pb.ApplyCatalogRequest(catalog=lacking, validate_only=only) for only in (False, True)]

    refusals = [refused(stubs.system.ApplyCatalog, request, stubs.admin) for request in requests]

    assert refusals[0] == refusals[1]
    assert (refusals[0].code, refusals[0].reason) == ("FAILED_PRECONDITION", "CATALOG_IN_USE")
    # `billing` is used by `owner` alone, which nobody holds.
    assert refusals[0].metadata == {"permission_sets": "driver", "resources": "runs", "plans": "enterprise"}
    assert preview(stubs, lacking).needs_force
    assert rows.footprint() == before

    apply(stubs, lacking, force=True)
    assert asked(account, secret) == "PERMISSION_NOT_GRANTED"
    assert [grant.suspended for grant in account.token(issued.token.token_id).grants] == [True, True]
    apply(stubs, CATALOG)
    assert asked(account, secret) == "ALLOWED"
    assert account.token(issued.token.token_id) == issued.token


def test_what_only_revoked_tokens_and_deleted_accounts_use_is_not_in_use(stubs: Stubs, account: OwnAccount) -> None:
    account.revoke(account.issue(on_all("driver")).token.token_id)
    gone = an_account(stubs)
    gone.issue(on_all("driver"))
    ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=gone.account_id), stubs.admin)

    assert not preview(stubs, without_set("driver")).needs_force
    apply(stubs, without_set("driver"))


def test_narrowing_and_uncovering_need_no_force(stubs: Stubs, account: OwnAccount) -> None:
    account.issue(on_all("driver"))
    narrowed = CATALOG.replace('read = ["runs"]\nwrite = ["jobs"]', 'read = ["runs"]')
    uncovered = CATALOG.replace('permission_sets = ["*"]', 'permission_sets = ["owner"]')

    for catalog in (narrowed, uncovered):
        assert not preview(stubs, catalog).needs_force
        apply(stubs, catalog)


def test_many_names_fit_into_the_refusal(stubs: Stubs) -> None:
    names = [f"{'n' * 50}_{number:03}" for number in range(200)]
    many = CATALOG + "".join(f'\n[permission_sets.{name}]\ntitle = "T"\nread = ["jobs"]\n' for name in names)
    apply(stubs, many, force=True)
    account = an_account(stubs, projects=0)
    account.issue(*(on_all(name) for name in names[:100]))
    account.issue(*(on_all(name) for name in names[100:]))

    refusal = refused(stubs.system.ApplyCatalog, pb.ApplyCatalogRequest(catalog=CATALOG), stubs.admin)

    named = refusal.metadata["permission_sets"].split(",")
    assert named[:-1] == names[: len(named) - 1]
    assert (named[-1], len(named) > 10) == ("…", True)
    apply(stubs, CATALOG, force=True)
    ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=account.account_id), stubs.admin)


def test_a_set_is_never_removed_without_force_while_somebody_is_given_it(stubs: Stubs, account: OwnAccount) -> None:
    """Whoever issues while the catalog goes either comes first, and then it is in use, or is refused."""
    issued: list[str] = []
    refusals: set[str] = set()
    stop = threading.Event()

    def issue() -> None:
        while not stop.is_set():
            try:
                issued.append(account.issue(on_all("driver")).token.token_id)
                account.revoke(issued[-1])
            except grpc.RpcError as error:
                assert error.code().name in {"INVALID_ARGUMENT", "ABORTED"}, error  # noqa: PT017
                refusals.add(error.code().name)

    issuers = [threading.Thread(target=issue) for _ in range(3)]
    for issuer in issuers:
        issuer.start()
    eventually(lambda: len(issued) > 3)
    outcomes = []
    for _ in range(25):
        outcomes.append(code_of(lambda: apply(stubs, without_set("driver"))))
        if outcomes[-1] == "OK":
            # From here on nobody gets it any more, and none that is live has it.
            live = {token_id for token_id in account.token_ids() if not account.token(token_id).revoke_time.seconds}
            assert [token_id for token_id in live if account.token(token_id).grants] == []
            apply(stubs, CATALOG)
    stop.set()
    for issuer in issuers:
        issuer.join()

    assert set(outcomes) <= {"OK", "FAILED_PRECONDITION", "ABORTED"}
    assert "FAILED_PRECONDITION" in outcomes


# ---- faults of the text


def test_every_fault_of_the_catalog_is_told_with_its_path(stubs: Stubs, rows: Rows) -> None:
    wrong = (
        CATALOG.replace("schema = 1", "schema = 2")
        .replace('read = ["jobs"]', 'read = ["jbos"]')
        .replace('permission_sets = ["reader"]', 'permission_sets = ["raeder"]')
        .replace('title = "Driver"', 'titel = "Driver"')
    )
    before = rows.footprint()

    applied = refused(
        stubs.system.ApplyCatalog, pb.ApplyCatalogRequest(catalog=wrong, expected_catalog_version=-1), stubs.admin
    )
    previewed = refused(stubs.system.PreviewCatalog, pb.PreviewCatalogRequest(catalog=wrong, page_size=-1), stubs.admin)

    faults = {
        "catalog.permission_sets.driver.title",
        "catalog.permission_sets.driver.titel",
        "catalog.permission_sets.reader.read",
        "catalog.plans.team.permission_sets",
        "catalog.schema",
    }
    assert {field for field, _ in applied.bad_fields} == {*faults, "expected_catalog_version"}
    assert {field for field, _ in previewed.bad_fields} == {*faults, "page_size"}
    assert {reason for field, reason in applied.bad_fields if field in faults} == {"FIELD_MALFORMED"}
    assert rows.footprint() == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "FIELD_REQUIRED"),
        ("not TOML at all", "FIELD_MALFORMED"),
        ("schema = 1\n" + "#" * LONGEST_TEXT, "FIELD_TOO_LONG"),
        ("[[[[" * 5000, "FIELD_MALFORMED"),
        ("schema = 1\n# \0", "FIELD_MALFORMED"),
    ],
    ids=["empty", "no TOML", "too long", "deep", "NUL"],
)
def test_a_text_that_is_no_catalog_is_refused(stubs: Stubs, text: str, reason: str) -> None:
    refusals = (
        refused(stubs.system.ApplyCatalog, pb.ApplyCatalogRequest(catalog=text), stubs.admin),
        refused(stubs.system.PreviewCatalog, pb.PreviewCatalogRequest(catalog=text), stubs.admin),
    )

    for refusal in refusals:
        assert (refusal.reason, refusal.bad_fields) == ("INVALID_FIELDS", [("catalog", reason)])


@pytest.mark.parametrize("spelling", ["as it is", "with an escape", "in a comment"])
def test_a_catalog_with_a_secret_in_it_is_refused_and_the_secret_not_repeated(stubs: Stubs, spelling: str) -> None:
    secret = generate(SecretKind.TOKEN, new_id()).reveal()
    text = {
        "as it is": CATALOG.replace('title = "Driver"', f'title = "Driver"\ndescription = "{secret}"'),
        "with an escape": CATALOG.replace('title = "Driver"', f'title = "{secret.replace("_", chr(92) + "u005f")}"'),
        "in a comment": f"{CATALOG}# {secret}\n",
    }[spelling]

    refusal = refused(stubs.system.ApplyCatalog, pb.ApplyCatalogRequest(catalog=text), stubs.admin)

    assert refusal.bad_fields == [("catalog", "FIELD_CONTAINS_SECRET")]
    assert secret not in refusal.text


# ---- checking only


def test_a_catalog_that_is_only_validated_is_not_applied(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    secret = account.issue(on_all("driver")).secret
    before, version = rows.footprint(), in_force(stubs).catalog_version

    answer = apply(stubs, without_set("driver"), force=True, validate_only=True)

    assert (answer.catalog_version, answer.label, answer.HasField("propagation")) == (version + 1, "small", False)
    assert rows.footprint() == before
    assert in_force(stubs).catalog_version == version
    assert asked(account, secret) == "ALLOWED"


# ---- previewing


def test_the_catalog_in_force_and_one_in_another_order_change_nothing(stubs: Stubs, account: OwnAccount) -> None:
    account.issue(on_all("driver"))
    head, *parts = CATALOG.split("\n[")
    reordered = "\n[".join([head, *parts[::-1]])

    for catalog in (CATALOG, reordered, CATALOG.replace('title = "Jobs"', 'title = "Work"')):
        answer = preview(stubs, catalog, include_tokens=True)
        assert not [*answer.set_changes, *answer.plan_changes, *answer.resource_changes, *answer.token_changes]
        assert (answer.needs_force, answer.next_page_token) == (False, "")
        assert answer.current_catalog_version == in_force(stubs).catalog_version


def test_the_counts_and_names_are_what_the_checks_then_say(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    first, second = account.project_ids
    on_first = account.issue(on("driver", first), display_name="on first").token
    everywhere = account.issue(on_all("driver"), on("reader", second), display_name="everywhere").token
    covered = account.issue(on("driver", first), on("owner", first), display_name="loses nothing").token
    account.revoke(account.issue(on_all("driver")).token.token_id)
    # `driver` loses jobs:write, `reader` gains runs:read, `owner` stays, `auditor` comes.
    after = (
        CATALOG.replace('read = ["runs"]\nwrite = ["jobs"]', 'read = ["jobs", "runs"]')
        .replace('title = "Reader"\nread = ["jobs"]', 'title = "Reader"\nread = ["jobs", "runs"]')
        .replace('version = "small"', 'version = "next"')
        + '\n[permission_sets.auditor]\ntitle = "Auditor"\nread = ["billing"]\n'
    )
    before = rows.footprint()

    answer = preview(stubs, after, include_tokens=True)

    assert list(answer.set_changes) == [
        pb.CatalogSetChange(permission_set="auditor", kind=ADDED, permissions_gained=["billing:read"]),
        pb.CatalogSetChange(permission_set="driver", kind=CHANGED, permissions_lost=["jobs:write"], tokens_losing=2),
        # `everywhere` has runs:read on every project already, through `driver`.
        pb.CatalogSetChange(permission_set="reader", kind=CHANGED, permissions_gained=["runs:read"]),
    ]
    assert list(answer.plan_changes) == [
        pb.CatalogPlanChange(plan="enterprise", kind=CHANGED, permission_sets_added=["auditor"], accounts=1)
    ]
    lost = {
        change.token_id: (change.display_name, list(change.permissions_gained), list(change.permissions_lost))
        for change in answer.token_changes
    }
    assert lost == {
        on_first.token_id: ("on first", [], ["jobs:write"]),
        everywhere.token_id: ("everywhere", [], ["jobs:write"]),
    }
    assert covered.token_id not in lost
    assert (answer.label, answer.needs_force) == ("next", False)
    assert rows.footprint() == before


def test_plans_and_resources_that_come_and_go_are_told(stubs: Stubs, account: OwnAccount) -> None:
    on_team = fresh_id("acc")
    put = PutAccountRequest(account_id=on_team, display_name="T", plan="team")
    ask(stubs.accounts.PutAccount, put, stubs.admin)
    after = CATALOG.replace("[plans.team]", "[plans.basic]").replace(
        'runs = { title = "Runs", actions = ["read"] }',
        'runs = { title = "Runs", actions = ["read", "write"] }\nlogs = { title = "Logs", actions = ["read"] }',
    )

    answer = preview(stubs, after)

    assert list(answer.plan_changes) == [
        pb.CatalogPlanChange(plan="basic", kind=ADDED, permission_sets_added=["reader"]),
        pb.CatalogPlanChange(plan="team", kind=REMOVED, permission_sets_removed=["reader"], accounts=1),
    ]
    assert list(answer.resource_changes) == [
        pb.CatalogResourceChange(resource="logs", kind=ADDED, actions_added=["read"]),
        pb.CatalogResourceChange(resource="runs", kind=CHANGED, actions_added=["write"]),
    ]
    assert answer.needs_force
    assert not answer.token_changes
    ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=on_team), stubs.admin)


def test_a_set_that_a_plan_stops_covering_is_counted_though_it_is_the_same(stubs: Stubs, account: OwnAccount) -> None:
    account.issue(on_all("driver"))
    uncovered = CATALOG.replace('permission_sets = ["*"]', 'permission_sets = ["owner", "reader"]')

    losing = preview(stubs, uncovered)
    apply(stubs, uncovered)
    gaining = preview(stubs, CATALOG)
    apply(stubs, CATALOG)

    assert list(losing.set_changes) == [pb.CatalogSetChange(permission_set="driver", kind=CHANGED, tokens_losing=1)]
    assert list(gaining.set_changes) == [pb.CatalogSetChange(permission_set="driver", kind=CHANGED, tokens_gaining=1)]


def test_tokens_are_named_in_pages_by_account_and_id(stubs: Stubs, account: OwnAccount) -> None:
    other = an_account(stubs)
    issued = [
        (where.account_id, where.issue(on_all("driver")).token.token_id) for where in (account, other) for _ in range(3)
    ]
    issued.append((account.account_id, account.issue(on_all("reader")).token.token_id))
    account.issue(on_all("owner"))
    # `reader` holders come to hold runs:read, `driver` holders lose everything.
    after = without_set("driver").replace(
        'title = "Reader"\nread = ["jobs"]', 'title = "Reader"\nread = ["jobs", "runs"]'
    )

    pages = [preview(stubs, after, include_tokens=True, page_size=3)]
    while pages[-1].next_page_token:
        pages.append(preview(stubs, after, include_tokens=True, page_size=3, page_token=pages[-1].next_page_token))

    named = [(change.account_id, change.token_id) for page in pages for change in page.token_changes]
    assert named == sorted(issued)
    assert [len(page.token_changes) for page in pages] == [3, 3, 1]
    assert [bool(page.set_changes) for page in pages] == [True, False, False]
    assert {page.needs_force for page in pages} == {True}
    (driver,) = (change for change in pages[0].set_changes if change.permission_set == "driver")
    assert (driver.kind, driver.tokens_losing) == (REMOVED, 6)
    ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=other.account_id), stubs.admin)


def test_a_page_token_of_another_text_is_refused(stubs: Stubs, account: OwnAccount) -> None:
    for _ in range(2):
        account.issue(on_all("driver"))
    token = preview(stubs, without_set("driver"), include_tokens=True, page_size=1).next_page_token
    made_up = pb.PreviewCatalogRequest(catalog=CATALOG, page_token="bm90aGluZw", include_tokens=True)
    requests = [
        pb.PreviewCatalogRequest(catalog=CATALOG, page_token=token, include_tokens=True),
        pb.PreviewCatalogRequest(catalog=without_set("driver"), page_token=token),
        made_up,
    ]

    refusals = [refused(stubs.system.PreviewCatalog, request, stubs.admin) for request in requests]

    assert {(refusal.code, refusal.reason) for refusal in refusals} == {("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")}


def test_more_tokens_than_a_portion_are_all_counted(stubs: Stubs, account: OwnAccount, rows: Rows) -> None:
    """Of several accounts, small ones and one that is larger than what is read at once."""
    others = [an_account(stubs, projects=0) for _ in range(3)]
    for where, count in ((account, 1500), *((other, 300) for other in others)):
        rows.fetch(
            "INSERT INTO tokens (token_id, account_id, display_name, description, labels, allow_self_rotation, disabled,"
            " create_time, update_time, created_by, ordinal, revision) SELECT $1 || '-' || n, $1, 'many', '', '{}', false,"
            " false, now(), now(), 'operator:x', n, 1 FROM generate_series(1, $2::int) AS n",
            where.account_id,
            count,
        )
        rows.fetch(
            "INSERT INTO grants (token_id, account_id, permission_set, scope, ordinal)"
            " SELECT token_id, account_id, 'driver', '*', ordinal FROM tokens WHERE account_id = $1",
            where.account_id,
        )
        rows.fetch(
            "UPDATE accounts SET live_tokens = $2::int, issued_tokens = $2::int WHERE account_id = $1",
            where.account_id,
            count,
        )

    answer = preview(stubs, without_set("driver"), include_tokens=True, page_size=1000)
    rest = preview(stubs, without_set("driver"), include_tokens=True, page_size=1000, page_token=answer.next_page_token)
    last = preview(stubs, without_set("driver"), include_tokens=True, page_size=1000, page_token=rest.next_page_token)

    (driver,) = answer.set_changes
    assert driver.tokens_losing == 2400
    named = [(change.account_id, change.token_id) for page in (answer, rest, last) for change in page.token_changes]
    assert named == sorted(set(named))
    assert (len(named), last.next_page_token) == (2400, "")
    for other in others:
        ask(stubs.accounts.DeleteAccount, DeleteAccountRequest(account_id=other.account_id), stubs.admin)
