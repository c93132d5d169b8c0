"""Three replicas on one PostgreSQL, and how the parts that measure mutations speak to them.

The first runs the embedded PostgreSQL; the others join it as operators' servers do (docs/operations.md). Used by
`propagation.py`.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc

from bench import harness, rows
from doorward.v1 import (
    authorizer_pb2,
    authorizer_pb2_grpc,
    system_admin_pb2,
    system_admin_pb2_grpc,
    token_admin_pb2,
    token_admin_pb2_grpc,
)
from doorward.v1.types_pb2 import DenyReason, Propagation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.harness import Server
    from bench.rows import Population

TIMEOUT_S: Final = 30.0
PAUSE_S: Final = 0.05
ALLOWED: Final = "ALLOWED"


@dataclass(frozen=True)
class Revoked:
    """One RevokeToken: how long its caller waited for the answer, and what that says of the propagation."""

    seconds: float
    propagation: Propagation


@dataclass
class Replica:
    """One server, with a channel of its own and the deployment's credentials."""

    server: Server
    admin: tuple[tuple[str, str], ...]
    caller: tuple[tuple[str, str], ...]
    channel: grpc.Channel = field(init=False)

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(self.server.address)
        self._tokens = token_admin_pb2_grpc.TokenAdminStub(self.channel)
        self._system = system_admin_pb2_grpc.SystemAdminStub(self.channel)
        self._authorizer = authorizer_pb2_grpc.AuthorizerStub(self.channel)

    def revoke(self, token_id: str) -> Revoked:
        """Revokes the token, and takes the time."""
        request = token_admin_pb2.RevokeTokenRequest(token_id=token_id, reason="measured")
        began = time.perf_counter()
        answer = self._tokens.RevokeToken(request, timeout=TIMEOUT_S, metadata=self.admin)
        return Revoked(time.perf_counter() - began, answer.propagation)

    def await_propagation(self, revision: str) -> None:
        """Returns once the change is in force everywhere."""
        request = token_admin_pb2.AwaitPropagationRequest(revision=revision)
        self._tokens.AwaitPropagation(request, timeout=TIMEOUT_S, metadata=self.admin)

    def check(self, request: authorizer_pb2.CheckRequest) -> str:
        """ALLOWED, the reason of a denial, or the code of an error."""
        try:
            answer = self._authorizer.Check(request, timeout=TIMEOUT_S, metadata=self.caller)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code.name
        return ALLOWED if answer.allowed else DenyReason.Name(answer.reason)

    def lags(self) -> list[int]:
        """How many changes each registered replica has not reported."""
        listed = self._system.ListReplicas(
            system_admin_pb2.ListReplicasRequest(), timeout=TIMEOUT_S, metadata=self.admin
        )
        return [found.lag for found in listed.replicas]


@dataclass(frozen=True)
class Fleet:
    """The replicas: the first revokes as everybody does, the second without its barrier, the third only answers checks."""

    population: Population
    waiting: Replica
    hasty: Replica
    third: Replica
    caller_credential: str

    @property
    def replicas(self) -> tuple[Replica, Replica, Replica]:
        return self.waiting, self.hasty, self.third

    def check_request(self, index: int) -> authorizer_pb2.CheckRequest:
        """A check of this token that is allowed until it is revoked."""
        return authorizer_pb2.CheckRequest(
            secret=self.population.secret(index),
            permission=rows.PERMISSION_ON_ONE,
            project_id=self.population.project_id(index),
        )

    def await_well(self, replicas: int) -> None:
        """Returns once so many replicas are registered, and each has reported everything and answers checks.

        Raises:
            RuntimeError: it takes too long.
        """
        deadline = time.monotonic() + harness.PATIENCE_S
        while self.waiting.lags() != [0] * replicas or not all(self._is_ready(one) for one in self.replicas[:replicas]):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{replicas} replicas did not become well: they lag by {self.waiting.lags()} changes"
                )
            time.sleep(PAUSE_S)

    def _is_ready(self, replica: Replica) -> bool:
        return replica.check(self.check_request(0)) == ALLOWED


@contextlib.contextmanager
def running(directory: Path, tokens: int, *, is_hasty: bool = True) -> Iterator[Fleet]:
    """A deployment with so many tokens, and its three replicas. They and PostgreSQL use every core that there is.

    Unless `is_hasty` the second one is a replica as the others are.
    """
    cores = frozenset(os.sched_getaffinity(0))
    data_dir = directory / "1"
    population = rows.deployment(data_dir, tokens, cores)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(harness.doorward(data_dir, cores))
        environment = {
            "DOORWARD_DATABASE_URL": (data_dir / "database.url").read_text().strip(),
            "DOORWARD_PEPPER_FILE": str(data_dir / "pepper.keys"),
        }
        joined = [
            stack.enter_context(
                harness.serving(["-m", module, "serve", *harness.serve_options(directory / number)], cores, environment)
            )
            for module, number in (
                ("bench.no_barrier" if is_hasty else "doorward_server.cli.main", "2"),
                ("doorward_server.cli.main", "3"),
            )
        ]
        admin, caller = ((data_dir / name).read_text().strip() for name in ("operator.token", "caller.token"))
        replicas = [
            Replica(server, (("authorization", f"Bearer {admin}"),), (("authorization", f"Bearer {caller}"),))
            for server in (first, *joined)
        ]
        for replica in replicas:
            stack.callback(replica.channel.close)
        waiting, hasty, third = replicas
        fleet = Fleet(population, waiting, hasty, third, caller)
        fleet.await_well(len(replicas))
        yield fleet
