"""TLS and mTLS on a real server's listener: who gets in, who a certificate stands for, and certificates that are replaced."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import pytest
from typer.testing import CliRunner

from doorward.core.secret import new_id
from doorward.v1.account_admin_pb2 import GetAccountRequest, PutAccountRequest
from doorward.v1.authorizer_pb2 import (
    BatchCheckItem,
    BatchCheckRequest,
    CheckRequest,
    StreamChecksRequest,
)
from doorward.v1.system_admin_pb2 import CreateOperatorRequest, ListReplicasRequest, RevokeOperatorRequest
from doorward.v1.token_admin_pb2 import ListAuditEventsRequest
from doorward.v1.types_pb2 import OperatorRole
from doorward_server.cli.main import app
from tests.support.authority import Authority, Certificate
from tests.support.server import ServerProcess, Stubs, start_server, stubs_on
from tests.support.wire import NOBODY, ask, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRIES = 20


class Listener:
    """A server with TLS, the files of its certificate, and the authorities that matter to it."""

    def __init__(self, base: Path, *arguments: str, clients: Authority | None = None) -> None:
        self.base = base
        self.own = Authority("servers")
        self.put(self.own.issue("127.0.0.1"))
        more = []
        if clients is not None:
            (base / "clients.pem").write_bytes(clients.pem)
            more = ["--tls-client-ca", str(base / "clients.pem")]
        files = ["--tls-cert", str(base / "cert.pem"), "--tls-key", str(base / "key.pem")]
        self.process: ServerProcess = start_server(base / "data", base / "scratch", [*files, *more, *arguments])

    def put(self, pair: Certificate) -> None:
        for name, content in (("cert.pem", pair.certificate), ("key.pem", pair.key)):
            draft = self.base / f"{name}.new"
            draft.write_bytes(content)
            draft.replace(self.base / name)

    def channel(self, own: Certificate | None = None, trusted: bytes | None = None) -> grpc.Channel:
        pair = (None, None) if own is None else (own.key, own.certificate)
        # Each has a connection of its own: else those with the same target would share one.
        options = [("grpc.use_local_subchannel_pool", 1)]
        trusts = self.own.pem if trusted is None else trusted
        return grpc.secure_channel(self.process.address, grpc.ssl_channel_credentials(trusts, *pair), options)

    def gets_in(self, own: Certificate | None = None, trusted: bytes | None = None) -> bool:
        """Whether a new connection is made and the server answers on it."""
        with self.channel(own, trusted) as channel:
            try:
                ask(stubs_on(channel, self.process).system.ListReplicas, ListReplicasRequest(), self.admin)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return False
            return True

    @property
    def admin(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.process.operator_credential}"),)


@pytest.fixture(scope="module")
def clients() -> Authority:
    return Authority("clients")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    """TLS, and no word of the clients' certificates."""
    listener = Listener(tmp_path_factory.mktemp("tls"))
    yield listener
    assert listener.process.stop() == 0


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory, clients: Authority) -> Iterator[Listener]:
    """mTLS."""
    listener = Listener(tmp_path_factory.mktemp("mtls"), clients=clients)
    yield listener
    assert listener.process.stop() == 0


class Person:
    """An operator, its certificate, and stubs on a connection made with that."""

    def __init__(self, listener: Listener, clients: Authority, role: str) -> None:
        with listener.channel(clients.issue("setup")) as channel:
            request = CreateOperatorRequest(
                role=OperatorRole.Value(f"OPERATOR_ROLE_{role}"), display_name=f"{role} by certificate"
            )
            created = ask(stubs_on(channel, listener.process).system.CreateOperator, request, listener.admin)
        self.operator_id = created.operator.operator_id
        self.credential = created.secret
        self.certificate = clients.issue("person", f"doorward-operator:{self.operator_id}")
        self.channel = listener.channel(self.certificate)
        self.stubs: Stubs = stubs_on(self.channel, listener.process)


@pytest.fixture
def admin(mutual: Listener, clients: Authority) -> Iterator[Person]:
    person = Person(mutual, clients, "ADMIN")
    yield person
    person.channel.close()


# ---- who gets in


def test_only_who_trusts_the_servers_authority_connects(plain: Listener) -> None:
    assert plain.gets_in()
    assert not plain.gets_in(trusted=Authority("others").pem)
    with grpc.insecure_channel(plain.process.address) as channel, pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
        ask(stubs_on(channel, plain.process).system.ListReplicas, ListReplicasRequest(), plain.admin)


def test_with_a_client_ca_only_its_certificates_connect(mutual: Listener, clients: Authority) -> None:
    assert mutual.gets_in(clients.issue("api"))
    assert not mutual.gets_in()
    assert not mutual.gets_in(Authority("clients").issue("api"))
    assert not mutual.gets_in(clients.issue("api", is_expired=True))


# ---- whom a certificate stands for


def test_a_certificate_that_names_an_operator_needs_no_credential(mutual: Listener, admin: Person) -> None:
    account_id = uuid4().hex

    ask(
        admin.stubs.accounts.PutAccount, PutAccountRequest(account_id=account_id, display_name="X", plan="team"), NOBODY
    )

    events = ask(admin.stubs.tokens.ListAuditEvents, ListAuditEventsRequest(account_id=account_id), NOBODY).audit_events
    assert [(event.actor, event.action) for event in events] == [(f"operator:{admin.operator_id}", "PutAccount")]


def test_a_certificate_has_the_role_of_its_operator_and_no_more(mutual: Listener, clients: Authority) -> None:
    caller = Person(mutual, clients, "CALLER")
    question = CheckRequest(secret="x", permission="jobs:read", project_id="p")
    item = BatchCheckItem(secret="x", permission="jobs:read", project_id="p")

    with caller.channel:
        # Twice: not in memory, and then in memory.
        told = [ask(caller.stubs.authorizer.Check, question, NOBODY).allowed for _ in range(2)]
        batch = BatchCheckRequest(items=[item] * 2)
        told += [result.allowed for result in ask(caller.stubs.authorizer.BatchCheck, batch, NOBODY).results]
        stream = caller.stubs.authorizer.StreamChecks(iter([StreamChecksRequest(id=1, request=batch)]), timeout=30)
        told += [result.allowed for answer in stream for result in answer.response.results]
        refusal = refused(caller.stubs.accounts.GetAccount, GetAccountRequest(account_id="a"), NOBODY)

    assert told == [False] * 6
    assert refusal.reason == "CALLER_NOT_PERMITTED"


def test_a_credential_in_the_header_goes_before_the_certificate(
    mutual: Listener, clients: Authority, admin: Person
) -> None:
    caller = Person(mutual, clients, "CALLER")
    request = GetAccountRequest(account_id="nobody")
    header = (("authorization", f"Bearer {caller.credential}"),)

    assert refused(admin.stubs.accounts.GetAccount, request, header).reason == "CALLER_NOT_PERMITTED"
    assert refused(caller.stubs.accounts.GetAccount, request, mutual.admin).reason == "ACCOUNT_NOT_FOUND"
    wrong = (("authorization", "Bearer nothing"),)
    assert refused(admin.stubs.accounts.GetAccount, request, wrong).reason == "CREDENTIAL_MALFORMED"
    caller.channel.close()


def test_a_revoked_operators_certificate_stands_for_nobody_at_once(mutual: Listener, admin: Person) -> None:
    question = CheckRequest(secret="x", permission="jobs:read", project_id="p")
    ask(admin.stubs.authorizer.Check, question, NOBODY)

    ask(admin.stubs.system.RevokeOperator, RevokeOperatorRequest(operator_id=admin.operator_id), mutual.admin)

    assert refused(admin.stubs.authorizer.Check, question, NOBODY).reason == "CREDENTIAL_UNRECOGNIZED"
    batch = BatchCheckRequest(items=[BatchCheckItem(secret="x", permission="jobs:read", project_id="p")])
    assert refused(admin.stubs.authorizer.BatchCheck, batch, NOBODY).reason == "CREDENTIAL_UNRECOGNIZED"
    assert refused(admin.stubs.system.ListReplicas, ListReplicasRequest(), NOBODY).reason == "CREDENTIAL_UNRECOGNIZED"


def test_a_certificate_of_no_operator_needs_a_credential(mutual: Listener, clients: Authority) -> None:
    def reason_of(*names: str) -> str:
        with mutual.channel(clients.issue(*names)) as channel:
            stubs = stubs_on(channel, mutual.process)
            question = CheckRequest(secret="x", permission="jobs:read", project_id="p")
            told = {
                refused(stubs.system.ListReplicas, ListReplicasRequest(), NOBODY).reason,
                refused(stubs.authorizer.Check, question, NOBODY).reason,
            }
            assert ask(stubs.system.ListReplicas, ListReplicasRequest(), mutual.admin).replicas
        (reason,) = told
        return reason

    assert reason_of("api") == "CREDENTIAL_MISSING"
    assert reason_of(f"doorward-operator:{new_id()}") == "CREDENTIAL_UNRECOGNIZED"


def test_without_a_client_ca_a_certificate_says_nothing(plain: Listener, clients: Authority) -> None:
    """Nobody verified it."""
    with plain.channel() as channel:
        stubs = stubs_on(channel, plain.process)
        request = CreateOperatorRequest(role=OperatorRole.OPERATOR_ROLE_ADMIN, display_name="A")
        operator_id = ask(stubs.system.CreateOperator, request, plain.admin).operator.operator_id
    with plain.channel(clients.issue(f"doorward-operator:{operator_id}")) as channel:
        stubs = stubs_on(channel, plain.process)
        assert refused(stubs.system.ListReplicas, ListReplicasRequest(), NOBODY).reason == "CREDENTIAL_MISSING"


# ---- certificates that are replaced


def test_a_replaced_certificate_is_shown_to_the_next_connection_and_half_of_one_is_not(plain: Listener) -> None:
    next_one = Authority("next")
    pair = next_one.issue("127.0.0.1")
    with plain.channel() as standing:
        stubs = stubs_on(standing, plain.process)
        ask(stubs.system.ListReplicas, ListReplicasRequest(), plain.admin)

        (plain.base / "cert.pem").write_bytes(pair.certificate)
        assert plain.gets_in()
        assert not plain.gets_in(trusted=next_one.pem)

        (plain.base / "key.pem").write_bytes(pair.key)
        assert plain.gets_in(trusted=next_one.pem)
        assert not plain.gets_in()
        # What stands goes on.
        ask(stubs.system.ListReplicas, ListReplicasRequest(), plain.admin)

    assert "is not the key of the certificate" in plain.process.log.read_text()
    plain.own = next_one


def test_no_call_fails_while_certificates_are_replaced(plain: Listener) -> None:
    failed: list[str] = []
    stopping = threading.Event()

    def call_on_new_connections() -> None:
        while not stopping.is_set():
            try:
                with plain.channel() as channel:
                    ask(stubs_on(channel, plain.process).system.ListReplicas, ListReplicasRequest(), plain.admin)
            except grpc.RpcError as error:
                failed.append(str(error))

    callers = [threading.Thread(target=call_on_new_connections) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(TRIES):
            plain.put(plain.own.issue("127.0.0.1"))
            assert plain.gets_in()
    finally:
        stopping.set()
        for caller in callers:
            caller.join()

    assert failed == []


def test_an_authority_that_is_taken_out_lets_nobody_in_any_more(tmp_path: Path) -> None:
    former, later = Authority("former"), Authority("later")
    listener = Listener(tmp_path, clients=former)
    try:
        assert listener.gets_in(former.issue("api"))

        (tmp_path / "clients.pem").write_bytes(later.pem)

        assert not listener.gets_in(former.issue("api"))
        assert listener.gets_in(later.issue("api"))
    finally:
        listener.process.stop()


# ---- starting, several workers, the command line


def test_beyond_loopback_a_server_starts_with_a_certificate_and_several_workers_share_it(tmp_path: Path) -> None:
    listener = Listener(tmp_path, "--workers", "2", "--listen", "0.0.0.0:0")
    try:
        listener.process.address = f"127.0.0.1:{listener.process.address.rpartition(':')[2]}"
        assert all(listener.gets_in() for _ in range(4))
        next_one = Authority("next")
        listener.put(next_one.issue("127.0.0.1"))
        # Whichever worker the kernel chooses.
        assert all(listener.gets_in(trusted=next_one.pem) for _ in range(8))
        assert "--tls-ca CA.pem" in listener.process.output.read_text()
    finally:
        assert listener.process.stop() == 0


def test_a_server_does_not_start_without_the_key_of_its_certificate(tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        ended = CliRunner().invoke(app, ["serve", "--data-dir", str(tmp_path / "data"), *arguments])
        assert ended.exit_code == 2
        return ended.output

    one, other = Authority().issue("a"), Authority().issue("b")
    (tmp_path / "cert.pem").write_bytes(one.certificate)
    (tmp_path / "key.pem").write_bytes(other.key)
    cert, key = ["--tls-cert", str(tmp_path / "cert.pem")], ["--tls-key", str(tmp_path / "key.pem")]

    assert "--tls-key: is needed beside --tls-cert" in told(*cert)
    assert "--tls-cert: is needed beside --tls-key" in told(*key)
    assert "--tls-cert: is needed beside --tls-client-ca" in told("--tls-client-ca", str(tmp_path / "cert.pem"))
    with pytest.raises(AssertionError, match=r"status 2"):
        start_server(tmp_path / "data", tmp_path / "scratch", [*cert, *key])
    assert not (tmp_path / "data").exists()


def run_doorward(tmp_path: Path, *arguments: str, **environment: str) -> Any:
    files = {"DOORWARD_DATA_DIR": str(tmp_path / "none"), **environment}
    return CliRunner().invoke(app, list(arguments), env=files)


def test_the_command_line_calls_with_a_certificate_alone(mutual: Listener, admin: Person, tmp_path: Path) -> None:
    for name, content in (
        ("ca.pem", mutual.own.pem),
        ("me.pem", admin.certificate.certificate),
        ("me.key", admin.certificate.key),
    ):
        (tmp_path / name).write_bytes(content)
    own = ["--tls-cert", str(tmp_path / "me.pem"), "--tls-key", str(tmp_path / "me.key")]
    where = ["--address", mutual.process.address, "--tls-ca", str(tmp_path / "ca.pem")]

    listed = run_doorward(tmp_path, "replicas", *where, *own, "--json")
    variables = {
        "DOORWARD_ADDRESS": mutual.process.address,
        "DOORWARD_TLS_CA": str(tmp_path / "ca.pem"),
        "DOORWARD_CLIENT_TLS_CERT": str(tmp_path / "me.pem"),
        "DOORWARD_CLIENT_TLS_KEY": str(tmp_path / "me.key"),
    }
    from_variables = run_doorward(tmp_path, "replicas", **variables)
    without_key = run_doorward(tmp_path, "replicas", *where, *own[:2])
    without_file = run_doorward(tmp_path, "replicas", "--tls-ca", str(tmp_path / "none.pem"))

    assert listed.exit_code == 0, listed.output
    assert len(json.loads(listed.stdout)["replicas"]) == 1
    assert from_variables.exit_code == 0, from_variables.output
    assert without_key.exit_code == 2
    assert "--tls-key" in without_key.output
    assert without_file.exit_code == 2
    assert "none.pem: cannot be read" in without_file.output
