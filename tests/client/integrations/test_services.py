"""Every guard in a service of its own, over the network: one table of what is presented and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1 import account_admin_pb2, token_admin_pb2
from tests.support.guarded import ADMITTED
from tests.support.wire import (
    TIMEOUT_S,
    OwnAccount,
    an_account,
    another_of,
    ask,
    code_of,
    eventually,
    mistyped,
    on,
    on_all,
    raw,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.guarded import Grpc, Http, Service
    from tests.support.server import Stubs


class Token(NamedTuple):
    """One token."""

    token_id: str
    secret: str


@dataclass(frozen=True)
class Setting:
    """Two accounts of the test's own, and tokens of the first."""

    stubs: Stubs
    own: OwnAccount
    other: OwnAccount
    worker: Token
    owner: Token

    @property
    def project_id(self) -> str:
        return self.own.project_ids[0]

    def token(self, *grants: Any, **fields: Any) -> Token:
        issued = self.own.issue(*grants, **fields)
        return Token(issued.token.token_id, issued.secret)


@pytest.fixture(scope="module")
def setting(stubs: Stubs) -> Setting:
    own, other = an_account(stubs), an_account(stubs)
    bare = Setting(stubs, own, other, Token("", ""), Token("", ""))
    worker = bare.token(on("job_admin", own.project_ids[0]))
    return replace(bare, worker=worker, owner=bare.token(on_all("account_admin")))


def bearer(secret: str) -> list[str]:
    return [f"Bearer {secret}"]


# ---- what is presented

PRESENTED: dict[str, tuple[Callable[[str], list[str]], str]] = {
    "Bearer": (bearer, ADMITTED),
    "Token": (lambda secret: [f"Token {secret}"], ADMITTED),
    "the scheme in another case": (lambda secret: [f"bEARER {secret}"], ADMITTED),
    "several spaces": (lambda secret: [f"Bearer   {secret}"], ADMITTED),
    "nothing": (lambda _: [], "CREDENTIAL_MISSING"),
    "an empty text": (lambda _: [""], "CREDENTIAL_MISSING"),
    "two of them": (lambda secret: bearer(secret) + bearer(another_of(secret)), "CREDENTIAL_REPEATED"),
    "the same twice": (lambda secret: bearer(secret) * 2, "CREDENTIAL_REPEATED"),
    "two in one header": (lambda secret: [f"Bearer {secret}, Bearer {secret}"], "CREDENTIAL_MALFORMED"),
    "Basic": (lambda _: ["Basic YTpi"], "CREDENTIAL_MALFORMED"),
    "no scheme": (lambda secret: [secret], "CREDENTIAL_MALFORMED"),
    "Bearer alone": (lambda _: ["Bearer"], "CREDENTIAL_MALFORMED"),
    "a word": (lambda _: bearer("letmein"), "CREDENTIAL_MALFORMED"),
    "more behind it": (lambda secret: bearer(f"{secret} more"), "CREDENTIAL_MALFORMED"),
    "a mistyped one": (lambda secret: bearer(mistyped(secret)), "CREDENTIAL_MALFORMED"),
    "an operator's": (lambda _: bearer(generate(SecretKind.OPERATOR, new_id()).reveal()), "CREDENTIAL_MALFORMED"),
    "a very long one": (lambda _: bearer("x" * 5_000), "CREDENTIAL_MALFORMED"),
    "a wrong secret of a token": (lambda secret: bearer(another_of(secret)), "TOKEN_UNRECOGNIZED"),
    "a secret of no token": (lambda _: bearer(generate(SecretKind.TOKEN, new_id()).reveal()), "TOKEN_UNRECOGNIZED"),
}


@pytest.mark.parametrize("presented", PRESENTED)
def test_what_is_presented_decides_between_401_and_more(service: Service, setting: Setting, presented: str) -> None:
    headers, wanted = PRESENTED[presented]

    answer = service.call("start", headers(setting.worker.secret), project_id=setting.project_id)

    if wanted == ADMITTED:
        assert answer.kind == ADMITTED, answer
        assert setting.worker.token_id in str(answer.said)
    else:
        assert (answer.kind, answer.reason) == ("unauthenticated", wanted)


@pytest.mark.parametrize("value", ["Bearer é", "Bearer dwst_ü" + "x" * 54, "Béarer x"])
def test_a_header_that_is_not_ascii_is_malformed(http_service: Http, setting: Setting, value: str) -> None:
    path = f"/projects/{setting.project_id}/jobs"
    assert http_service.ask("POST", path, [("Authorization", value)]).reason == "CREDENTIAL_MALFORMED"


@pytest.mark.parametrize("name", ["authorization", "AUTHORIZATION", "aUthorization"])
def test_the_case_of_a_header_is_nothing(http_service: Http, setting: Setting, name: str) -> None:
    path, value = f"/projects/{setting.project_id}/jobs", f"Bearer {setting.worker.secret}"
    assert http_service.ask("POST", path, [(name, value)]).kind == ADMITTED
    both = [(name, value), ("Authorization", value)]
    assert http_service.ask("POST", path, both).reason == "CREDENTIAL_REPEATED"


# ---- what is asked for


def _revoked(setting: Setting) -> Token:
    token = setting.token(on("job_admin", setting.project_id))
    setting.own.revoke(token.token_id)
    return token


def _disabled(setting: Setting) -> Token:
    token = setting.token(on("job_admin", setting.project_id))
    request = token_admin_pb2.DisableTokenRequest(token_id=token.token_id)
    ask(setting.stubs.tokens.DisableToken, request, setting.stubs.admin)
    return token


def _suspended(setting: Setting) -> Token:
    account = an_account(setting.stubs)
    issued = account.issue(on_all("job_admin"))
    request = account_admin_pb2.SuspendAccountRequest(account_id=account.account_id)
    ask(setting.stubs.accounts.SuspendAccount, request, setting.stubs.admin)
    return Token(issued.token.token_id, issued.secret)


ASKED: dict[str, tuple[str, Callable[[Setting], Token], Callable[[Setting], dict[str, str]], str, str]] = {
    "its own project": ("start", lambda s: s.worker, lambda s: {"project_id": s.project_id}, ADMITTED, ""),
    "its account": ("usage", lambda s: s.owner, lambda s: {"account_id": s.own.account_id}, ADMITTED, ""),
    "another project of its account": (
        "start",
        lambda s: s.worker,
        lambda s: {"project_id": s.own.project_ids[1]},
        "denied",
        "PROJECT_NOT_GRANTED",
    ),
    "another account's project": (
        "start",
        lambda s: s.worker,
        lambda s: {"project_id": s.other.project_ids[0]},
        "denied",
        "RESOURCE_NOT_IN_ACCOUNT",
    ),
    "a project of nobody": (
        "start",
        lambda s: s.worker,
        lambda _: {"project_id": "nowhere"},
        "denied",
        "RESOURCE_NOT_IN_ACCOUNT",
    ),
    "another account": (
        "usage",
        lambda s: s.owner,
        lambda s: {"account_id": s.other.account_id},
        "denied",
        "RESOURCE_NOT_IN_ACCOUNT",
    ),
    "more than it holds": (
        "usage",
        lambda s: s.worker,
        lambda s: {"account_id": s.own.account_id},
        "denied",
        "PERMISSION_NOT_GRANTED",
    ),
    "what has no rule": ("purge", lambda s: s.owner, lambda s: {"project_id": s.project_id}, "denied", "NO_RULE"),
    "no id that can be one": (
        "start",
        lambda s: s.worker,
        lambda _: {"project_id": "a project"},
        "unclear",
        "RESOURCE_UNCLEAR",
    ),
    "an id in another alphabet": (
        "start",
        lambda s: s.worker,
        lambda _: {"project_id": "проект"},
        "unclear",
        "RESOURCE_UNCLEAR",
    ),
    "an id that is too long": (
        "start",
        lambda s: s.worker,
        lambda _: {"project_id": "p" * 65},
        "unclear",
        "RESOURCE_UNCLEAR",
    ),
    "anything, with a revoked token": (
        "start",
        _revoked,
        lambda s: {"project_id": s.project_id},
        "unauthenticated",
        "TOKEN_REVOKED",
    ),
    "anything, with a disabled token": (
        "start",
        _disabled,
        lambda s: {"project_id": s.project_id},
        "unauthenticated",
        "TOKEN_DISABLED",
    ),
    "anything, in a suspended account": (
        "start",
        _suspended,
        lambda s: {"project_id": s.project_id},
        "denied",
        "ACCOUNT_SUSPENDED",
    ),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_is_asked_for_decides_between_yes_and_no(service: Service, setting: Setting, asked: str) -> None:
    operation, token, ids, kind, reason = ASKED[asked]

    answer = service.call(operation, bearer(token(setting).secret), **ids(setting))

    assert (answer.kind, answer.reason) == (kind, reason), answer


def test_another_accounts_project_and_none_are_refused_in_the_same_words(service: Service, setting: Setting) -> None:
    foreign, unknown = (
        service.call("start", bearer(setting.worker.secret), project_id=project_id)
        for project_id in (setting.other.project_ids[0], "nowhere")
    )
    assert foreign == unknown
    assert setting.other.account_id not in str(foreign)


def test_a_token_is_refused_once_it_is_revoked(service: Service, setting: Setting) -> None:
    token = setting.token(on("job_admin", setting.project_id))
    assert service.call("start", bearer(token.secret), project_id=setting.project_id).kind == ADMITTED

    setting.own.revoke(token.token_id)

    answer = service.call("start", bearer(token.secret), project_id=setting.project_id)
    assert (answer.kind, answer.reason) == ("unauthenticated", "TOKEN_REVOKED")


def test_a_token_is_refused_once_it_has_expired(service: Service, setting: Setting) -> None:
    ends = Timestamp()
    ends.GetCurrentTime()
    ends.seconds += 2
    token = setting.token(on("job_admin", setting.project_id), expire_time=ends)

    def answer() -> tuple[str, str]:
        return service.call("start", bearer(token.secret), project_id=setting.project_id)[:2]

    eventually(lambda: answer() == ("unauthenticated", "TOKEN_EXPIRED"))


def test_nothing_is_refused_with_the_secret_in_it(service: Service, setting: Setting) -> None:
    for presented in PRESENTED.values():
        answer = service.call("start", presented[0](setting.worker.secret), project_id="nowhere")
        assert answer.kind != ADMITTED
        assert setting.worker.secret not in str(answer.said)
        assert setting.worker.secret not in service.log.read_text()


def test_what_is_open_needs_no_token(http_service: Http) -> None:
    assert http_service.ask("GET", "/healthz").said == {"status": "well"}
    # Only that method of it.
    assert http_service.ask("POST", "/healthz").kind in {"denied", "405"}


def test_a_method_that_nobody_serves_is_said_to_be_none(grpc_service: Grpc) -> None:
    nothing = raw(grpc_service.channel, "/example.v1.Jobs/Nothing")
    assert code_of(lambda: nothing(b"", timeout=TIMEOUT_S)) == "UNIMPLEMENTED"
