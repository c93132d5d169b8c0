"""No secret is in a log, an error, an answer, a row, a file or a repr: known ones are planted everywhere and looked for.

Looked for is the random part alone, so that one that was cut, wrapped or joined to something else is found too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from pydantic import SecretStr

from doorward.core.secret import SecretKind, contains_secret, find_secret, generate, new_id
from doorward.v1.authorizer_pb2 import BatchCheckItem, BatchCheckRequest, CheckRequest, IntrospectTokenRequest
from doorward_server.model import OperatorRole, StoredSecret
from doorward_server.replica.caches import Missing
from doorward_server.service.issue import Issued
from doorward_server.service.operators import NewOperator
from doorward_server.settings import Settings
from doorward_server.telemetry import redact
from tests.support.server import bearer
from tests.support.wire import Rpc, an_account, another_of, every_rpc, mistyped, on_all, raw_stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.message import Message

    from tests.support.rows import Rows
    from tests.support.server import ServerProcess, Stubs
    from tests.support.wire import OwnAccount

# Those that end a token whose secret they are given come last.
ENDING = {"TokenAdmin.RevokeSelf", "TokenAdmin.ReportLeakedToken"}
RPCS = sorted(every_rpc(), key=lambda rpc: rpc.name in ENDING)
# One of each form goes into every field; the others are presented only.
THOROUGHLY = ("right", "mistyped", "an operator's")
RANDOM_BEGINS = len("dwst_") + 16 + 1
RANDOM_ENDS = RANDOM_BEGINS + 32


@dataclass
class Planted:
    """Secrets that were presented, and everything that callers got to see meanwhile."""

    secrets: dict[str, str]
    right: str
    seen: list[bytes] = field(default_factory=list)

    def pattern(self) -> re.Pattern[bytes]:
        """Finds the random part of any of them, as text or as the hex digits of its bytes."""
        parts = {secret[RANDOM_BEGINS:RANDOM_ENDS].encode() for secret in self.secrets.values()}
        return re.compile(b"|".join(sorted(parts | {part.hex().encode() for part in parts})))


def filled(message: Message, text: str, depth: int = 0) -> Message:
    """`message` with `text` in every string of it, keys of maps and lists included."""
    for about in message.DESCRIPTOR.fields:
        if about.type == FieldDescriptor.TYPE_STRING:
            if about.is_repeated:
                getattr(message, about.name).append(text)
            else:
                setattr(message, about.name, text)
        elif about.type == FieldDescriptor.TYPE_MESSAGE and depth < 3:
            of: Any = about.message_type
            if of.GetOptions().map_entry:
                if of.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
                    getattr(message, about.name)[text] = text
            elif about.is_repeated:
                filled(getattr(message, about.name).add(), text, depth + 1)
            elif of.full_name.startswith("doorward."):
                filled(getattr(message, about.name), text, depth + 1)
    return message


def each_alone(rpc: Rpc, text: str) -> Iterator[Message]:
    """A request for each of its own texts, with `text` in that one."""
    for about in rpc.request_type.DESCRIPTOR.fields:
        if about.type == FieldDescriptor.TYPE_STRING and not about.is_repeated:
            yield rpc.request_type(**{about.name: text})


def send(stubs: Stubs, planted: Planted, path: str, request: bytes, metadata: Any) -> None:
    """Makes a call and keeps all that came back."""
    call = raw_stream(stubs.channel, path)(iter([request]), metadata=metadata, timeout=30)
    try:
        planted.seen += list(call)
    except grpc.RpcError:
        planted.seen.append(str(call.details()).encode())
        planted.seen += [
            value if isinstance(value, bytes) else str(value).encode() for _, value in call.trailing_metadata()
        ]


@pytest.fixture(scope="module")
def planted(stubs: Stubs, server: ServerProcess, rows: Rows) -> Planted:
    """Sends secrets of every kind, in every place of every RPC, with every credential."""
    account = an_account(stubs, projects=1)
    right, revoked = account.issue(on_all("account_admin")), account.issue(on_all("member"))
    account.revoke(revoked.token.token_id)
    secrets = {
        "right": right.secret,
        "revoked": revoked.secret,
        "wrong": another_of(right.secret),
        "unknown": generate(SecretKind.TOKEN, new_id()).reveal(),
        "mistyped": mistyped(generate(SecretKind.TOKEN, new_id()).reveal()),
        "an operator's": generate(SecretKind.OPERATOR, new_id()).reveal(),
        "admin": server.operator_credential,
        "caller": server.caller_credential,
    }
    planted = Planted(secrets, right.secret)
    # The right one comes last: with it a token calls, until it ends itself.
    for name, secret in sorted(secrets.items(), key=lambda item: item[0] == "right"):
        as_presented(stubs, planted, account, secret)
        odd_places(stubs, planted, account, secret)
        for rpc in RPCS:
            send(stubs, planted, rpc.path, b"", bearer(secret))
            if name in THOROUGHLY:
                in_every_field(stubs, planted, rpc, secret)
    with_a_fault(stubs, planted, rows)
    return planted


def in_every_field(stubs: Stubs, planted: Planted, rpc: Rpc, secret: str) -> None:
    """In all texts of a request at once, whole and spoiled, and in each of them alone; by an operator and by a token."""
    requests = [filled(rpc.request_type(), text) for text in (secret, f"x{secret} and more", secret[:-1])]
    for request in (*requests, *each_alone(rpc, secret)):
        send(stubs, planted, rpc.path, request.SerializeToString(), stubs.admin)
        # The reason of RevokeSelf may hold what only looks like a secret, as any text that people write.
        if rpc.name not in ENDING:
            send(stubs, planted, rpc.path, request.SerializeToString(), bearer(planted.right))


def as_presented(stubs: Stubs, planted: Planted, account: OwnAccount, secret: str) -> None:
    """As the secret of a check, right and spoiled, by who may ask and by who may not."""
    (project_id,) = account.project_ids
    for metadata in (stubs.caller, stubs.admin, ()):
        for text in (secret, f"{secret}\n", f"Bearer {secret}", secret[:-3], secret + "x" * 100):
            check = CheckRequest(secret=text, permission="jobs:read", project_id=project_id)
            wrong = CheckRequest(secret=text, permission="jobs:delete", account_id=text)
            items = [BatchCheckItem(secret=text, permission="jobs:read", project_id=project_id)] * 2
            batch = BatchCheckRequest(secret=text, items=items)
            for path, request in (("Check", check), ("Check", wrong), ("BatchCheck", batch)):
                send(stubs, planted, f"/doorward.v1.Authorizer/{path}", request.SerializeToString(), metadata)


def odd_places(stubs: Stubs, planted: Planted, account: OwnAccount, secret: str) -> None:
    """In a path, in metadata of any name, under any scheme, twice."""
    issue = account.wanted(on_all("member")).SerializeToString()
    send(stubs, planted, f"/doorward.v1.TokenAdmin/{secret}", b"", stubs.admin)
    if contains_secret(secret):  # a name may hold what only looks like one
        send(stubs, planted, "/doorward.v1.TokenAdmin/IssueToken", issue, (*stubs.admin, ("on-behalf-of", secret)))
    send(stubs, planted, "/doorward.v1.TokenAdmin/IssueToken", issue, (*stubs.admin, ("x-request-id", secret)))
    for value in (secret, f"Basic {secret}", f"Token {secret}", f"Bearer {secret} {secret}", f"Bearer {secret[:-1]}"):
        send(stubs, planted, "/doorward.v1.TokenAdmin/GetToken", b"", (("authorization", value),))
        send(stubs, planted, "/doorward.v1.Authorizer/Check", b"", (("authorization", value),))
    send(stubs, planted, "/doorward.v1.Authorizer/Check", b"", bearer(secret) * 2)


def with_a_fault(stubs: Stubs, planted: Planted, rows: Rows) -> None:
    """While the server fails with a traceback, the secret in its hands."""
    rows.fetch("ALTER TABLE token_activity RENAME COLUMN last_used_time TO used")
    try:
        request = IntrospectTokenRequest(secret=planted.right).SerializeToString()
        send(stubs, planted, "/doorward.v1.Authorizer/IntrospectToken", request, stubs.caller)
    finally:
        rows.fetch("ALTER TABLE token_activity RENAME COLUMN used TO last_used_time")


def test_every_secret_was_planted_in_every_rpc(planted: Planted) -> None:
    assert len(planted.seen) > 8 * len(RPCS) + 3 * 3 * len(RPCS)
    assert any(b"internal error" in seen for seen in planted.seen)


def test_the_pattern_finds_what_it_looks_for(planted: Planted) -> None:
    for secret in planted.secrets.values():
        assert planted.pattern().search(f"x{secret[3:58]}".encode())
        assert planted.pattern().search(secret.encode().hex().encode())


def test_no_answer_and_no_error_holds_a_secret(planted: Planted) -> None:
    # IssueToken shows a new secret; none of those that were planted.
    assert [seen for seen in planted.seen if planted.pattern().search(seen)] == []


def test_no_log_line_holds_a_secret(planted: Planted, server: ServerProcess) -> None:
    log = server.log.read_bytes()

    assert b"rpc_failed" in log
    assert b"Traceback" in log
    assert b"change_applied" in log
    assert planted.pattern().findall(log) == []
    assert planted.pattern().findall(server.output.read_bytes()) == []


def test_no_row_of_any_table_holds_a_secret(planted: Planted, rows: Rows) -> None:
    dump = rows.dump().encode()

    assert planted.right[5:21].encode() in dump
    assert planted.pattern().findall(dump) == []


def test_no_file_but_the_operators_own_holds_a_secret(planted: Planted, server: ServerProcess) -> None:
    """Tables and indexes, the write-ahead log, PostgreSQL's log, the pepper keys."""
    own = {server.operator_token_file, server.caller_token_file}
    files = [path for path in server.data_dir.rglob("*") if path.is_file() and path not in own]

    assert any("pg_wal" in path.parts for path in files)
    assert [path for path in files if planted.pattern().search(path.read_bytes())] == []


def test_the_operators_own_files_hold_their_credential_for_nobody_else(server: ServerProcess) -> None:
    for path in (server.operator_token_file, server.caller_token_file, server.data_dir / "pepper.keys"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert server.data_dir.stat().st_mode & 0o777 == 0o700


def test_no_process_shows_a_secret_in_its_arguments_or_environment(planted: Planted, server: ServerProcess) -> None:
    process = f"/proc/{server.process.pid}"

    with open(f"{process}/cmdline", "rb") as arguments, open(f"{process}/environ", "rb") as environment:  # noqa: PTH123
        assert planted.pattern().findall(arguments.read() + environment.read()) == []


def test_what_holds_a_secret_does_not_show_it(tmp_path: Path, stubs: Stubs, account: OwnAccount) -> None:
    text = generate(SecretKind.TOKEN, new_id()).reveal()
    secret = find_secret(text, SecretKind.TOKEN)
    assert secret is not None
    stored = StoredSecret(version=1, bcrypt_hash=f"hash of {text}", digest=text.encode(), pepper_id="p")
    url = SecretStr(f"postgresql://u:{text}@h/d")
    settings = Settings(data_dir=tmp_path, database_url=url, pepper_file=tmp_path / "keys")
    holders: list[Any] = [
        secret,
        [secret],
        {"secret": secret},
        stored,
        NewOperator(OperatorRole.ADMIN, "an operator", secret, stored),
        Missing("bcrypt", secret.subject_id, secret),
        Issued(None, secret),  # type: ignore[arg-type]  # only the secret counts here
        settings,
    ]

    told = [show(holder) for holder in holders for show in (repr, str, "{}".format, lambda it: f"{it!r:>200}")]

    assert [each for each in told if text[RANDOM_BEGINS:RANDOM_ENDS] in each] == []


@pytest.mark.parametrize("wrapped", ["{}", "x{}y", "my_{}", "Bearer {}", "'{}'", "a={},b", "{}{}", "{}\n", "/{}/"])
@pytest.mark.parametrize("kind", SecretKind)
def test_the_redactor_masks_a_secret_wherever_it_stands(kind: SecretKind, wrapped: str) -> None:
    secret = generate(kind, new_id()).reveal()

    for text in (secret, secret[:-1], mistyped(secret), f"{secret}0"):
        assert secret[RANDOM_BEGINS:RANDOM_ENDS] not in redact(wrapped.format(text, text))
