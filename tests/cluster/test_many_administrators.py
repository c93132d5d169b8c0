"""Sixty-four administrators at once on three replicas: no deadlock, no lost update, and the log tells what was answered.

Each raises a counter in the labels of a few shared tokens by reading and writing it back with its etag, issues tokens of its
own and revokes them, and now and then disables a shared one, rotates it, or changes the account's name.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from doorward.core.revision import Revision
from doorward.v1 import account_admin_pb2, token_admin_pb2
from doorward.v1.types_pb2 import ServiceToken
from tests.support.wire import on_all

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cluster.clients import Client
    from tests.cluster.clusters import Cluster
    from tests.cluster.history import Subject

ADMINISTRATORS: Final = 64
ROUNDS: Final = 2
SHARED: Final = 12

LOGGED: Final = "SELECT kind, subjects FROM changes WHERE revision = $1"
AUDITED: Final = "SELECT action, subject FROM audit_events WHERE revision = $1 AND after IS NOT NULL"


@dataclass
class Told:
    """What the administrators were answered."""

    # Revision -> RPC and token, of what changed something.
    changes: dict[int, tuple[str, str]] = field(default_factory=dict)
    raised: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, rpc: str, response: Any) -> None:
        """A change that was made."""
        number = Revision.parse(response.propagation.revision).number
        with self.lock:
            assert number not in self.changes, "two changes were told the same revision"
            self.changes[number] = (rpc, response.token.token_id)


class Administrator:
    """Does its rounds at one replica."""

    def __init__(self, number: int, client: Client, subject: Subject, shared: list[str], told: Told) -> None:
        self._choice = random.Random(number)  # noqa: S311 - repeatable, not secret
        self._client = client
        self._subject = subject
        self._shared = shared
        self._told = told

    def run(self) -> None:
        """Its rounds."""
        for _ in range(ROUNDS):
            self._raise_counter(self._choice.choice(self._shared))
            self._issue_and_revoke()
            self._disturb(self._choice.choice(self._shared))

    def _raise_counter(self, token_id: str) -> None:
        while True:
            token = self._ask("GetToken", token_admin_pb2.GetTokenRequest(token_id=token_id)).token
            labels = {**token.labels, "counter": str(int(token.labels["counter"]) + 1)}
            wanted = ServiceToken(token_id=token_id, labels=labels, etag=token.etag)
            request = token_admin_pb2.UpdateTokenRequest(token=wanted, update_mask=FieldMask(paths=("labels",)))
            response = self._try("UpdateToken", request, "ETAG_MISMATCH")
            if response is not None:
                self._told.note("UpdateToken", response)
                with self._told.lock:
                    self._told.raised[token_id] += 1
                return

    def _issue_and_revoke(self) -> None:
        issue = token_admin_pb2.IssueTokenRequest(
            account_id=self._subject.account_id, display_name="of one administrator", grants=(on_all("job_admin"),)
        )
        issued = self._ask("IssueToken", issue)
        self._told.note("IssueToken", issued)
        revoke = token_admin_pb2.RevokeTokenRequest(token_id=issued.token.token_id, reason="done")
        self._told.note("RevokeToken", self._ask("RevokeToken", revoke))

    def _disturb(self, token_id: str) -> None:
        match self._choice.randrange(3):
            case 0:
                self._ask("DisableToken", token_admin_pb2.DisableTokenRequest(token_id=token_id))
                self._ask("EnableToken", token_admin_pb2.EnableTokenRequest(token_id=token_id))
            case 1:
                rotate = token_admin_pb2.RotateTokenRequest(token_id=token_id, overlap=Duration(seconds=60))
                self._told.note("RotateToken", self._ask("RotateToken", rotate))
            case _:
                name = f"Own {self._choice.randrange(1000)}"
                put = account_admin_pb2.PutAccountRequest(
                    account_id=self._subject.account_id, display_name=name, plan="enterprise"
                )
                self._client.ask(self._client.accounts.PutAccount, put)

    def _ask(self, rpc: str, request: Any) -> Any:
        return self._client.ask(getattr(self._client.tokens, rpc), request)

    def _try(self, rpc: str, request: Any, refusal: str) -> Any:
        """The answer; None if it was this refusal. Any other failure is the test's."""
        try:
            return self._ask(rpc, request)
        except grpc.RpcError as error:
            if _reason_of(error) != refusal:
                raise
            with self._told.lock:
                self._told.refused[refusal] += 1
            return None


def _reason_of(error: grpc.RpcError) -> str:
    status: Any = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    return info.reason if status is not None and any(detail.Unpack(info) for detail in status.details) else ""


def _on_threads(works: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result()


def test_sixty_four_administrators_lose_nothing_and_the_log_and_the_audit_agree_with_what_they_were_told(
    cluster: Cluster,
) -> None:
    replicas = list(cluster.replicas.values())
    subject = replicas[0].client.subject()
    shared = []
    for _ in range(SHARED):
        request = token_admin_pb2.IssueTokenRequest(
            account_id=subject.account_id, display_name="shared", grants=(on_all("job_admin"),), labels={"counter": "0"}
        )
        shared.append(replicas[0].client.ask(replicas[0].client.tokens.IssueToken, request).token.token_id)
    told, began = Told(), cluster.end()

    _on_threads(
        [
            Administrator(number, replicas[number % len(replicas)].client, subject, shared, told).run
            for number in range(ADMINISTRATORS)
        ]
    )

    assert sum(told.raised.values()) == ADMINISTRATORS * ROUNDS
    for token_id in shared:
        kept = cluster.rows.value("SELECT labels ->> 'counter' FROM tokens WHERE token_id = $1", token_id)
        assert int(kept) == told.raised[token_id], "an update was lost"
    for number, (rpc, token_id) in told.changes.items():
        assert cluster.rows.fetch(LOGGED, number) == [(rpc, [f"token:{token_id}"])]
        assert cluster.rows.fetch(AUDITED, number) == [(rpc, f"token:{token_id}")]
    numbers = cluster.rows.fetch("SELECT revision FROM changes WHERE revision > $1 ORDER BY 1", began)
    assert [number for (number,) in numbers] == list(range(began + 1, cluster.end() + 1)), "the log has a gap"
    live = cluster.rows.value(
        "SELECT count(*) FROM tokens WHERE account_id = $1 AND revoke_time IS NULL", subject.account_id
    )
    counted = cluster.rows.value("SELECT live_tokens FROM accounts WHERE account_id = $1", subject.account_id)
    assert live == counted == SHARED + 1
