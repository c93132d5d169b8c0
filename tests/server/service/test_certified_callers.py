"""An operator that calls by its certificate: known from memory and from the database, until either of the two ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward.core.secret import new_id
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1.system_admin_pb2 import ListOperatorsRequest, ListOperatorsResponse
from doorward_server.api.errors import Status
from doorward_server.api.methods import Peer
from doorward_server.api.wrapper import answer_cold
from doorward_server.credentials.certificates import CertifiedOperator
from doorward_server.model import OperatorRole
from doorward_server.service.operators import create_operators, new_operator
from tests.server.api.test_warm import NONCE, World
from tests.support.inprocess import RPCS, served

if TYPE_CHECKING:
    from pathlib import Path

    from doorward_server.storage.pool import Database

FAR_US = 2**60


def test_memory_knows_a_certified_operator_until_its_certificate_ends() -> None:
    world = World()
    item = pb.BatchCheckItem(permission="jobs:write", project_id="p1")
    batch = pb.BatchCheckRequest(secret=world.secret.reveal(), items=[item])
    now_us = world.holding.latest_us()

    def answer(expire_us: int, operator_id: str = world.caller.subject_id) -> bytes | Status | None:
        return world.checks.streamed_batch_warm(batch, CertifiedOperator(operator_id, expire_us))

    good = answer(now_us + 1)
    assert isinstance(good, bytes)
    assert pb.BatchCheckResponse.FromString(good).results[0].allowed
    ended = answer(now_us)
    assert isinstance(ended, Status)
    assert ended.reason == "CREDENTIAL_UNRECOGNIZED"
    assert answer(FAR_US, new_id()) is None  # the cold path brings it, or learns that there is none
    world.holding.apply(2, NONCE, [f"operator:{world.caller.subject_id}"])
    assert answer(FAR_US) is None


async def test_the_database_is_asked_for_a_certified_operator(database: Database, tmp_path: Path) -> None:
    async with served(database, tmp_path) as surface:
        admin, caller = (new_operator(surface.ring, role, "x") for role in (OperatorRole.ADMIN, OperatorRole.CALLER))
        await create_operators(database, [admin, caller])

        async def told(operator_id: str, expire_us: int = FAR_US) -> str:
            rpc = RPCS["SystemAdmin.ListOperators"]
            cold = surface.method(rpc.path).cold
            assert cold is not None
            peer = Peer(CertifiedOperator(operator_id, expire_us), "test", "", None)
            answer = await answer_cold(rpc.path, cold, ListOperatorsRequest().SerializeToString(), peer)
            if isinstance(answer, Status):
                return answer.reason
            return f"{len(ListOperatorsResponse.FromString(answer).operators)} operators"

        assert await told(admin.secret.subject_id) == "2 operators"
        assert await told(caller.secret.subject_id) == "CALLER_NOT_PERMITTED"
        assert await told(admin.secret.subject_id, expire_us=1) == "CREDENTIAL_UNRECOGNIZED"
        assert await told(new_id()) == "CREDENTIAL_UNRECOGNIZED"
