"""/metrics of a real server: every metric is documented, the dashboard asks for none that is not there, and they count."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import TYPE_CHECKING

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from doorward.v1.account_admin_pb2 import GetAccountRequest
from doorward.v1.authorizer_pb2 import BatchCheckItem, BatchCheckRequest
from tests.repository.sources import ROOT
from tests.support.server import Stubs, start_server, stubs_on
from tests.support.wire import NOBODY, an_account, ask, check, eventually, on_all, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

DOCUMENTED = re.compile(r"^\| `(doorward_\w+)` \| (\w+) \| (.*?) \| (.+) \|$", re.MULTILINE)
NAMED = re.compile(r"doorward_\w+")
SUFFIXES = {"counter": ("_total", "_created"), "histogram": ("_bucket", "_sum", "_count", "_created"), "gauge": ("",)}


class Page:
    """The page of one server, and stubs on it."""

    def __init__(self, address: str, stubs: Stubs) -> None:
        self.address, self.stubs = address, stubs

    def families(self) -> dict[str, Metric]:
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, sample: str, **labels: str) -> float:
        """Of one sample; 0 if it is not there yet."""
        found = [one for family in self.families().values() for one in family.samples if one.name == sample]
        return sum(one.value for one in found if labels.items() <= one.labels.items())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    base = tmp_path_factory.mktemp("metrics")
    server = start_server(base / "data", base / "scratch", ["--http", "127.0.0.1:0", "--log-format", "json"])
    started = [json.loads(line) for line in server.log.read_text().splitlines() if "monitoring_started" in line]
    with grpc.insecure_channel(server.address) as channel:
        yield Page(started[0]["address"], stubs_on(channel, server))
    assert server.stop() == 0


def test_what_is_documented_is_there_and_what_is_there_is_documented(page: Page) -> None:
    table = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = {name: (kind, labels, meaning) for name, kind, labels, meaning in DOCUMENTED.findall(table)}
    account = an_account(page.stubs)
    check(page.stubs, account.issue(on_all("member")).secret, "jobs:read", project_id=account.project_ids[0])

    shown = {
        f"{name}_total" if family.type == "counter" else name: family
        for name, family in page.families().items()
        if not name.endswith("_created")
    }

    assert set(shown) == set(documented)
    for name, family in shown.items():
        kind, labels, meaning = documented[name]
        assert (family.type, family.documentation) == (kind, meaning)
        found = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert not family.samples or found == set(re.findall(r"`(\w+)`", labels))


def test_the_dashboard_asks_for_nothing_that_is_not_there_and_leaves_nothing_out(page: Page) -> None:
    board = json.loads((ROOT / "docs" / "grafana" / "doorward.json").read_text(encoding="utf-8"))
    asked = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", [])
        for name in NAMED.findall(target["expr"])
    }
    asked |= set(NAMED.findall(board["templating"]["list"][1]["query"]))
    families = page.families()
    offered = {f"{name}{suffix}" for name, family in families.items() for suffix in SUFFIXES[family.type]}

    assert asked - offered == set()
    assert {name for name in families if not any(one.startswith(name) for one in asked)} <= {
        name for name in families if name.endswith("_created")
    }


def test_calls_are_counted_by_method_and_code_and_by_what_answered_them(page: Page) -> None:
    account = an_account(page.stubs)
    secret, project_id = account.issue(on_all("job_admin")).secret, account.project_ids[0]
    names = {"method": "Authorizer.Check"}
    assert check(page.stubs, secret, "jobs:read", project_id=project_id).allowed
    before = [
        page.value("doorward_rpcs_total", code="OK", **names),
        page.value("doorward_rpcs_from_memory_total", **names),
        page.value("doorward_rpcs_total", method="AccountAdmin.GetAccount", code="UNAUTHENTICATED"),
        page.value("doorward_rpc_seconds_count", method="AccountAdmin.GetAccount"),
    ]

    for _ in range(5):
        assert check(page.stubs, secret, "jobs:read", project_id=project_id).allowed
    refused(page.stubs.accounts.GetAccount, GetAccountRequest(account_id="a"), NOBODY)

    after = [
        page.value("doorward_rpcs_total", code="OK", **names),
        page.value("doorward_rpcs_from_memory_total", **names),
        page.value("doorward_rpcs_total", method="AccountAdmin.GetAccount", code="UNAUTHENTICATED"),
        page.value("doorward_rpc_seconds_count", method="AccountAdmin.GetAccount"),
    ]
    assert [new - old for new, old in zip(after, before, strict=True)] == [5, 5, 1, 1]


def test_decisions_are_counted_by_reason_alone_and_in_batches(page: Page) -> None:
    account = an_account(page.stubs)
    secret, project_id = account.issue(on_all("job_admin")).secret, account.project_ids[0]
    item = BatchCheckItem(permission="jobs:read", project_id=project_id)
    stranger = BatchCheckItem(permission="jobs:read", project_id=project_id, secret="nobody's")
    batch = BatchCheckRequest(secret=secret, items=[item] * 3 + [stranger] * 2)
    ask(page.stubs.authorizer.BatchCheck, batch, page.stubs.caller)
    reasons = ("ALLOWED", "TOKEN_UNRECOGNIZED", "PERMISSION_NOT_GRANTED")
    before = [page.value("doorward_decisions_total", reason=reason) for reason in reasons]

    ask(page.stubs.authorizer.BatchCheck, batch, page.stubs.caller)
    check(page.stubs, secret, "jobs:read", project_id=project_id)
    check(page.stubs, secret, "billing:write", account_id=account.account_id)

    after = [page.value("doorward_decisions_total", reason=reason) for reason in reasons]
    assert [new - old for new, old in zip(after, before, strict=True)] == [4, 2, 1]


def test_what_is_held_what_waits_and_what_was_loaded_is_shown(page: Page) -> None:
    account = an_account(page.stubs)
    before = page.value("doorward_loads_total", kind="token", outcome="read")
    secret = account.issue(on_all("job_admin")).secret

    check(page.stubs, secret, "jobs:read", project_id=account.project_ids[0])

    assert page.value("doorward_loads_total", kind="token", outcome="read") > before
    assert page.value("doorward_cached", kind="token") >= 1
    assert page.value("doorward_barriers_total", outcome="confirmed") >= 1
    assert page.value("doorward_registrations_total") == 1
    assert page.value("doorward_hold_seconds") == 5
    eventually(lambda: page.value("doorward_running", what="rpcs") == 0)
    assert page.value("doorward_bcrypt_waiting", queue="verify") == 0
