"""Checks from memory: what is recalled answers as what is recognized, and nothing is recalled across a change or an end."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

import pytest

from doorward.core.entries import account_entry, operator_entry, token_entry
from doorward.core.matrix import compile_token
from doorward.core.secret import Secret, SecretKind, generate, new_id
from doorward.core.token_table import CATALOG_KEY, Admission, FencedTable, Tables
from doorward.v1 import authorizer_pb2 as pb
from doorward.v1 import types_pb2
from doorward_server.api.errors import Status
from doorward_server.api.warm import WarmChecks
from doorward_server.catalog.load import builtin_text, load_catalog
from doorward_server.credentials.pepper import PepperRing
from doorward_server.replica.holding import Holding
from doorward_server.replica.recognition import Recognition
from doorward_server.service.authorize import Authorizer
from doorward_server.service.callers import Callers
from doorward_server.service.catalogs import Catalogs
from tests.support.stepped import SteppedClock, SteppedTiming

if TYPE_CHECKING:
    from doorward.core.catalog import Catalog
    from doorward_server.credentials.hashing import Hasher
    from doorward_server.replica.caches import Caches
    from doorward_server.storage.pool import Database

V = TypeVar("V")
NONCE = b"01234567"
CATALOG: Catalog = load_catalog(builtin_text(), 1)
DATABASE_US = 1_800_000_000_000_000
# Nothing is brought in a warm check, so whoever would bring it is nobody.
NOBODY = (cast("Caches", None), cast("Database", None), cast("Hasher", None))


class World:
    """A replica that holds an account with two projects, one token, one operator; and its checks."""

    def __init__(
        self,
        *,
        caller_expire_us: int | None = None,
        not_after_us: int | None = None,
        expire_us: int | None = None,
        role: str = "CALLER",
    ) -> None:
        self.clock = SteppedClock()
        self.tables = Tables()
        self.holding = Holding(SteppedTiming(self.clock), hold_ms=300_000, tables=self.tables, proofs=100)
        self.holding.registered("replica", 1, 1, NONCE)
        self.holding.renewed(self.clock.now_ns(), 1, NONCE, DATABASE_US)
        self.secret, self.caller = generate(SecretKind.TOKEN, new_id()), generate(SecretKind.OPERATOR, new_id())
        self._not_after_us, self._expire_us = not_after_us, expire_us
        self.hold_token()
        install(self.tables.catalogs, CATALOG_KEY, CATALOG, self.holding)
        install(self.tables.accounts, "acme", account_entry("acme", "enterprise", 1), self.holding)
        for project_id, account_id in (("p1", "acme"), ("p2", "acme"), ("foreign", "other")):
            install(self.tables.projects, project_id, account_id, self.holding)
        operator = operator_entry(
            self.caller.subject_id,
            role,
            revoked=False,
            expire_us=caller_expire_us,
            secrets=((1, b"d" * 32, "k", None),),
        )
        install(self.tables.operators, self.caller.subject_id, operator, self.holding)
        self.prove(self.caller)
        self.checks = self.new_checks()

    def new_checks(self) -> WarmChecks:
        """Checks that recall nothing yet."""
        caches, database, hasher = NOBODY
        ring = PepperRing({"k": b"p" * 32}, "k")
        recognition = Recognition(self.holding, caches, database, ring, hasher)
        authorizer = Authorizer(self.holding, caches, recognition)
        return WarmChecks(self.holding, authorizer, Callers(self.holding, recognition, database, Catalogs()))

    def hold_token(self) -> None:
        entry = token_entry(
            self.secret.subject_id,
            "acme",
            revoked=False,
            disabled=False,
            expire_us=self._expire_us,
            secrets=((1, b"d" * 32, "k", self._not_after_us),),
            grants=(("job_admin", ("p1",)), ("metadata_only", None)),
        )
        entry = compile_token(entry, CATALOG, "enterprise")
        install(self.tables.tokens, self.secret.subject_id, entry, self.holding)
        self.prove(self.secret)

    def prove(self, secret: Secret) -> None:
        proofs = self.holding.token_proofs if secret.kind is SecretKind.TOKEN else self.holding.operator_proofs
        proofs.remember(proofs.proof_of(secret.reveal().encode()), secret.subject_id, 1)

    def ask(self, request: pb.CheckRequest, checks: WarmChecks | None = None) -> pb.CheckResponse | Status | None:
        credential = f"Bearer {self.caller.reveal()}"
        answer = (checks or self.checks).check_warm(request.SerializeToString(), credential)
        return pb.CheckResponse.FromString(answer) if isinstance(answer, bytes) else answer

    def a_request(self, permission: str = "jobs:write", project_id: str = "p1") -> pb.CheckRequest:
        return pb.CheckRequest(secret=self.secret.reveal(), permission=permission, project_id=project_id)


def install(table: FencedTable[V], key: str, value: V, holding: Holding) -> None:
    position = holding.history.applied
    assert position is not None
    load = table.begin(key, holding.history)
    admission = table.admit(load, value, 1, position.number, position.nonce, holding.history)
    assert admission is Admission.INSTALLED


def is_allowed(answer: pb.CheckResponse | Status | None) -> bool:
    return isinstance(answer, pb.CheckResponse) and answer.allowed


def warm_up(world: World) -> None:
    """The same check recognized, recalled, and answered by the bytes that were kept."""
    for _ in range(3):
        assert is_allowed(world.ask(world.a_request()))


@pytest.mark.parametrize("permission", CATALOG.permissions)
@pytest.mark.parametrize("resource", ["p1", "p2", "foreign", "acme", "other", "no id!", ""])
def test_what_is_recalled_answers_as_what_is_recognized(permission: str, resource: str) -> None:
    world = World()
    for _ in ("recognized", "recalled", "answered"):
        assert is_allowed(world.ask(world.a_request()))
    for request in (
        pb.CheckRequest(secret=world.secret.reveal(), permission=permission, project_id=resource),
        pb.CheckRequest(secret=world.secret.reveal(), permission=permission, account_id=resource),
        pb.CheckRequest(secret=world.secret.reveal(), permission=permission),
        pb.CheckRequest(secret=world.secret.reveal(), permission=permission + "x", project_id=resource),
    ):
        answers = [world.ask(request) for _ in range(3)]
        assert answers == [world.ask(request, world.new_checks())] * 3


def test_a_revoked_token_is_not_recalled() -> None:
    world = World()
    warm_up(world)

    world.holding.apply(2, NONCE, [f"token:{world.secret.subject_id}"])

    assert world.ask(world.a_request()) is None


def test_a_revoked_caller_is_not_recalled() -> None:
    world = World()
    warm_up(world)

    world.holding.apply(2, NONCE, [f"operator:{world.caller.subject_id}"])

    assert world.ask(world.a_request()) is None


@pytest.mark.parametrize("subject", ["account:acme", "project:p1", "catalog:"])
def test_nothing_is_recalled_across_a_change_to_what_it_stands_on(subject: str) -> None:
    world = World()
    warm_up(world)

    world.holding.apply(2, NONCE, [subject])

    assert world.ask(world.a_request()) is None


def test_after_a_change_to_something_else_the_answer_is_of_the_new_revision() -> None:
    world = World()
    before = world.ask(world.a_request())
    assert isinstance(before, pb.CheckResponse)
    assert before.revision == "1.1"

    world.holding.apply(2, NONCE, ["project:other"])

    for _ in range(2):
        after = world.ask(world.a_request())
        assert isinstance(after, pb.CheckResponse)
        assert (after.allowed, after.revision) == (True, "1.2")


def test_after_a_new_registration_nothing_is_recalled() -> None:
    world = World()
    warm_up(world)

    world.holding.registered("replica", 1, 1, NONCE)
    world.holding.renewed(world.clock.now_ns(), 1, NONCE, DATABASE_US)

    assert world.ask(world.a_request()) is None


def test_without_a_lease_nothing_is_recalled() -> None:
    world = World()
    warm_up(world)

    world.holding.begin_anew("the test says so")

    answer = world.ask(world.a_request())
    assert isinstance(answer, Status)
    assert answer.code == "UNAVAILABLE"


def test_a_caller_that_expires_is_recognized_each_time() -> None:
    world = World(caller_expire_us=DATABASE_US + 1_000_000)
    warm_up(world)

    world.clock.advance(1_000)

    answer = world.ask(world.a_request())
    assert isinstance(answer, Status)
    assert answer.code == "UNAUTHENTICATED"


def test_a_token_that_expires_is_denied_from_then_on() -> None:
    world = World(expire_us=DATABASE_US + 1_000_000)
    warm_up(world)

    world.clock.advance(1_000)

    answer = world.ask(world.a_request())
    assert isinstance(answer, pb.CheckResponse)
    assert answer.reason == types_pb2.DENY_REASON_TOKEN_EXPIRED


def test_a_secret_that_ends_is_recognized_each_time() -> None:
    world = World(not_after_us=DATABASE_US + 1_000_000)
    warm_up(world)

    world.clock.advance(1_000)

    answer = world.ask(world.a_request())
    assert isinstance(answer, pb.CheckResponse)
    assert answer.reason == types_pb2.DENY_REASON_TOKEN_UNRECOGNIZED


def test_what_one_caller_found_is_not_recalled_for_another() -> None:
    world = World()
    warm_up(world)
    request = world.a_request().SerializeToString()

    for credential in (None, "", world.caller.reveal(), f"Bearer {world.secret.reveal()}", "Bearer x"):
        answer = world.checks.check_warm(request, credential)
        assert isinstance(answer, Status)
        assert answer.code in {"UNAUTHENTICATED", "PERMISSION_DENIED"}


def test_another_secret_of_the_same_token_is_not_recalled() -> None:
    world = World()
    warm_up(world)
    wrong = generate(SecretKind.TOKEN, world.secret.subject_id)

    answer = world.ask(pb.CheckRequest(secret=wrong.reveal(), permission="jobs:write", project_id="p1"))

    assert isinstance(answer, pb.CheckResponse)
    assert answer.reason == types_pb2.DENY_REASON_TOKEN_UNRECOGNIZED


def test_a_demand_for_freshness_is_not_answered_from_memory() -> None:
    world = World()
    warm_up(world)
    request = world.a_request()
    request.consistency.fully_consistent = True

    assert world.ask(request) is None


def test_bytes_that_are_no_message_are_left_to_the_cold_path() -> None:
    world = World()

    assert world.checks.check_warm(b"\xff\xff", f"Bearer {world.caller.reveal()}") is None


def test_every_warm_check_of_a_recognized_secret_is_a_use_allowed_or_denied() -> None:
    world = World()
    token_id = world.secret.subject_id
    for request in (
        world.a_request(),  # recognized anew
        world.a_request(),  # recalled
        world.a_request(),  # answered by what was kept
        world.a_request("service_tokens:read", "p1"),  # wrong in itself: of no secret
        world.a_request("jobs:write", "p2"),  # denied
    ):
        world.holding.used.clear()
        world.ask(request)
        is_use = request.permission == "jobs:write"
        assert world.holding.used == ({token_id: world.holding.latest_us()} if is_use else {})

    world.holding.used.clear()
    item = pb.BatchCheckItem(permission="jobs:write", project_id="p1")
    batch = pb.BatchCheckRequest(secret=world.secret.reveal(), items=[item, item])
    assert isinstance(
        world.checks.batch_check_warm(batch.SerializeToString(), f"Bearer {world.caller.reveal()}"), bytes
    )
    assert world.holding.used == {token_id: world.holding.latest_us()}


def test_a_wrong_secret_is_nobodys_use() -> None:
    world = World()
    wrong = generate(SecretKind.TOKEN, world.secret.subject_id).reveal()
    request = pb.CheckRequest(secret=wrong, permission="jobs:write", project_id="p1")
    answer = world.ask(request)
    assert isinstance(answer, pb.CheckResponse)
    assert answer.reason == types_pb2.DENY_REASON_TOKEN_UNRECOGNIZED
    assert world.holding.used == {}
