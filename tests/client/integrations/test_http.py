"""What is HTTP's own behind both of its guards, over the network: methods, paths, queries, WebSockets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.support.guarded import ADMITTED, Http
from tests.support.server import PATIENCE_S
from tests.support.wire import an_account, mistyped, on, on_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.guarded import Answer
    from tests.support.server import Stubs
    from tests.support.wire import OwnAccount


@pytest.fixture(scope="module")
def account(stubs: Stubs) -> OwnAccount:
    return an_account(stubs)


@pytest.fixture(scope="module")
def secret(account: OwnAccount) -> str:
    return account.issue(on("job_admin", account.project_ids[0])).secret


@pytest.fixture(scope="module")
def jobs(account: OwnAccount) -> str:
    """The path of a project that the token may see."""
    return f"/projects/{account.project_ids[0]}/jobs"


def as_header(secret: str) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {secret}")]


# ---- methods


def test_head_is_allowed_where_get_is_if_the_router_serves_it(http_service: Http, secret: str, jobs: str) -> None:
    # Starlette serves HEAD with every GET, FastAPI does not.
    assert http_service.ask("HEAD", jobs, as_header(secret)).kind in {ADMITTED, "405"}
    refused = http_service.ask("HEAD", jobs, as_header(mistyped(secret)))
    assert refused.kind in {"401", "405"}
    assert refused.said is None


@pytest.mark.parametrize("method", ["OPTIONS", "DELETE", "PATCH", "PURGE"])
def test_a_method_without_a_rule_is_refused_whoever_calls(
    http_service: Http, secret: str, jobs: str, method: str
) -> None:
    for headers in ([], as_header(secret)):
        answer = http_service.ask(method, jobs, headers)
        # 405 where the router itself has none, and so has no handler either.
        assert answer[:2] in {("denied", "NO_RULE"), ("405", "")}
    if method == "DELETE":  # which the router does serve
        assert answer.reason == "NO_RULE"


# ---- paths and queries


@pytest.mark.parametrize(
    "path",
    [
        "/projects/x/../{}/jobs",
        "/projects/x/%2e%2e/{}/jobs",
        "/projects/./{}/jobs",
        "//projects/{}/jobs",
        "/projects//{}/jobs",
        "/projects/{}/jobs/",
        "/projects/{}/jobs/more",
        "/projects/{}/Jobs",
        "/projects/{}%00/jobs",
        "/projects/{}%20/jobs",
        "/projects/{}%252F/jobs",
        "/projects/{};a=b/jobs",
        "/projects/%D0%BF/jobs",
        "/projects//jobs",
        "/",
    ],
)
def test_a_path_that_is_not_exactly_a_route_admits_nobody(
    http_service: Http, account: OwnAccount, secret: str, path: str
) -> None:
    answer = http_service.ask("GET", path.format(account.project_ids[0]), as_header(secret))
    # Refused by the guard; or by FastAPI's router, where there is no such route: not found, or sent to the other slash.
    assert answer.kind in {"unclear", "denied", "404", "307"}
    assert answer.reason in {"RESOURCE_UNCLEAR", "PATH_UNCLEAR", "NO_RULE", ""}


@pytest.mark.parametrize("slash", ["%2F", "%2f"])
def test_an_encoded_slash_hides_no_project(http_service: Http, account: OwnAccount, secret: str, slash: str) -> None:
    mine, other = account.project_ids
    # The middleware cannot know what a router makes of it. FastAPI's has made of it what the handler gets, and that is asked.
    allowed = http_service.ask("GET", f"/projects/{mine}{slash}jobs", as_header(secret))
    assert allowed.reason == "PATH_UNCLEAR" or allowed.said["project_id"] == mine
    denied = http_service.ask("GET", f"/projects/{other}{slash}jobs", as_header(secret))
    assert denied.reason in {"PATH_UNCLEAR", "PROJECT_NOT_GRANTED"}


def test_an_encoded_letter_is_the_letter(http_service: Http, account: OwnAccount, secret: str) -> None:
    project_id = account.project_ids[0]
    encoded = f"/projects/%{ord(project_id[0]):02x}{project_id[1:]}/jobs"
    assert http_service.ask("GET", encoded, as_header(secret)).said["project_id"] == project_id


def test_a_query_names_one_project(http_service: Http, account: OwnAccount) -> None:
    mine, other = account.project_ids
    header = as_header(account.issue(on("metadata_only", mine)).secret)
    answers: dict[str, tuple[str, str]] = {
        query: http_service.ask("GET", f"/report?{query}", header)[:2]
        for query in (
            f"project_id={mine}",
            f"project_id={other}",
            f"project_id={mine}&project_id={other}",
            f"project_id={mine}&project%5Fid={other}",
            f"project_id={other}&project_id={mine}",
            "project_id=",
            "",
        )
    }
    assert list(answers.values()) == [
        (ADMITTED, ""),
        ("denied", "PROJECT_NOT_GRANTED"),
        *[("unclear", "RESOURCE_UNCLEAR")] * 5,
    ]


# ---- WebSockets


def opened(service: Http, path: str, headers: Sequence[tuple[str, str]]) -> Any:
    """What a WebSocket says first, or the refusal of its handshake."""
    url = f"ws://127.0.0.1:{service.port}{path}"
    try:
        with connect(url, additional_headers=headers, proxy=None, open_timeout=PATIENCE_S) as websocket:
            return json.loads(websocket.recv(PATIENCE_S))
    except InvalidStatus as refused:
        response = refused.response
        headers_by_name = {name.lower(): value for name, value in response.headers.raw_items()}
        return Http.answer(response.status_code, headers_by_name, bytes(response.body or b""))


def test_a_websocket_is_opened_for_a_token_that_may(http_service: Http, account: OwnAccount, secret: str) -> None:
    said = opened(http_service, f"/projects/{account.project_ids[0]}/log", as_header(secret))
    assert said["project_id"] == account.project_ids[0]
    assert said["token_id"] in secret


@pytest.mark.parametrize(
    ("presented", "wanted"),
    [
        ("nothing", ("unauthenticated", "CREDENTIAL_MISSING")),
        ("twice", ("unauthenticated", "CREDENTIAL_REPEATED")),
        ("mistyped", ("unauthenticated", "CREDENTIAL_MALFORMED")),
        ("revoked", ("unauthenticated", "TOKEN_REVOKED")),
        ("less", ("denied", "PERMISSION_NOT_GRANTED")),
    ],
)
def test_the_handshake_of_a_websocket_is_refused_like_a_request(
    http_service: Http, account: OwnAccount, secret: str, presented: str, wanted: tuple[str, str]
) -> None:
    secrets: dict[str, list[str]] = {
        "nothing": [],
        "twice": [secret, secret],
        "mistyped": [mistyped(secret)],
        "revoked": [revoked(account)],
        "less": [account.issue(on_all("metadata_only")).secret],
    }
    headers = [("Authorization", f"Bearer {one}") for one in secrets[presented]]
    answer: Answer = opened(http_service, f"/projects/{account.project_ids[0]}/log", headers)
    assert answer[:2] == wanted


def test_a_websocket_without_a_rule_is_refused(http_service: Http, secret: str) -> None:
    answer = opened(http_service, "/elsewhere", as_header(secret))
    # FastAPI's router refuses what it has not with a bare 403.
    assert answer[:2] in {("denied", "NO_RULE"), ("403", "")}


def revoked(account: OwnAccount) -> str:
    issued = account.issue(on("job_admin", account.project_ids[0]))
    account.revoke(issued.token.token_id)
    return issued.secret
