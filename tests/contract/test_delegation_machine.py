"""No principal ever ends with more than it was given: a state machine drives a real server beside a small model.

Operators and tokens minted by tokens issue, update, rotate, enable, disable and revoke each other, under a catalog with
narrow minting sets, while the plan, the catalog, the projects and the account's state change. After every step each secret
that was ever told is checked for every permission everywhere, and every record is read: both must be what the model says,
and no token may come to more than whoever handed it out held at that moment.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from doorward.v1 import account_admin_pb2 as account_pb
from doorward.v1 import token_admin_pb2 as pb
from doorward.v1.authorizer_pb2 import BatchCheckItem, BatchCheckRequest
from doorward.v1.system_admin_pb2 import ApplyCatalogRequest
from doorward.v1.types_pb2 import Grant, ServiceToken, TokenState
from tests.support import minting
from tests.support.holders import OPERATOR, Holder, Received, Tenant
from tests.support.minting import ACCOUNT, EVERY_PROJECT, is_within
from tests.support.server import bearer
from tests.support.wire import an_account, ask, on, on_all, refusal_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

    from tests.support.holders import Grants
    from tests.support.minting import Fact
    from tests.support.server import Stubs
    from tests.support.wire import OwnAccount

# Some 25 s on two busy cores; the same examples each time.
EXAMPLES: Final = settings(
    max_examples=16, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)  # fmt: skip

# Those with permissions of the account twice: there are few.
SETS: Final = (*minting.DOCUMENT["permission_sets"], "billing_viewer", "billing_minter", "billing_admin")
PLANS: Final = tuple(minting.DOCUMENT["plans"])
# Far enough that none comes while the machine runs; by number, as the model has them.
EXPIRIES: Final = {number: datetime.now(UTC).replace(microsecond=0) + timedelta(days=number) for number in (1, 2)}

# Whom a step is by or about: a kind, and a number that chooses among those there are of it.
Pick: TypeAlias = "tuple[str, int]"
NUMBERS: Final = st.integers(0, 31)
WHO: Final = st.tuples(st.sampled_from(["minter", "minter", "minter", "minter", "anybody", OPERATOR]), NUMBERS)
WHICH: Final = st.tuples(st.sampled_from(["within the caller", "within the caller", "not revoked", "any"]), NUMBERS)
SCOPES: Final = st.sampled_from([None, None, None, (0,), (1,), (0, 1), (2,)])
SOME_MORE: Final = st.dictionaries(st.sampled_from(SETS), SCOPES, min_size=1, max_size=1)
# How often each is done, beside the others; all in one rule, since hypothesis leaves whole rules out of its short runs.
ACTIONS: Final = {
    "issue": 6,
    "update_grants": 5,
    "update_life": 2,
    "rotate": 3,
    "rotate_self": 1,
    "enable": 3,
    "disable": 2,
    "revoke": 2,
    "revoke_self": 1,
    "revoke_batch": 1,
    "revoke_obtained": 2,
    "change_plan": 2,
    "put_or_delete_project": 2,
    "apply_catalog": 2,
    "suspend_for_a_moment": 1,
}


class Step(NamedTuple):
    """One step. `keeping`: some of what is held, by its bits; `more`: sets that come to it, on projects by their places.

    `lives_as_caller`: what is issued has its caller's expiry, and no more of self-rotation, so that only grants can be too much.
    """

    action: str
    who: Pick
    which: Pick
    keeping: int
    more: Grants
    expiry: int | None
    flag: bool
    lives_as_caller: bool


STEPS: Final = st.builds(
    Step,
    st.sampled_from([action for action, weight in ACTIONS.items() for _ in range(weight)]),
    WHO,
    WHICH,
    st.integers(0, 7),
    st.one_of(st.just({}), SOME_MORE),
    st.sampled_from([2, 1, None]),
    st.booleans(),
    st.sampled_from([True, True, True, False]),
)


class Caller(NamedTuple):
    """Who calls with what; an operator has no holder."""

    holder: Holder | None
    secret: Received | None

    @property
    def actor(self) -> str:
        return OPERATOR if self.holder is None else self.holder.actor


BY_OPERATOR: Final = Caller(None, None)


class Delegation(RuleBasedStateMachine):
    """One account, under the catalog with narrow minting sets, with everything that happens to its tokens."""

    stubs: ClassVar[Stubs]

    @initialize()
    def begin(self) -> None:
        """An account, and what an operator issues there first: narrow tokens that mint, no two alike."""
        # In force is whatever an earlier example applied last.
        ask(self.stubs.system.ApplyCatalog, ApplyCatalogRequest(catalog=minting.TOML), self.stubs.admin)
        self.account: OwnAccount = an_account(self.stubs, plan="large", projects=2)
        first, second = self.account.project_ids
        self.project_ids = [first, second, f"{self.account.account_id}-p2"]
        self.tenant = Tenant(minting.DOCUMENT, "large", {first, second})
        self._issue(BY_OPERATOR, {"billing_minter": None, "metadata_only": None}, None, may_rotate=True)
        self._issue(BY_OPERATOR, {"jobs_minter": None, "runner": (first,)}, 2, may_rotate=True)
        self._issue(BY_OPERATOR, {"runs_minter": None, "jobs_admin": (second,)}, None, may_rotate=False)

    @rule(step=STEPS)
    def do(self, step: Step) -> None:
        getattr(self, step.action)(step)

    # ---- tokens on tokens, and operators on tokens

    def issue(self, step: Step) -> None:
        by = self._caller(step.who)
        expiry, may_rotate = step.expiry, step.flag
        if by.holder is not None and step.lives_as_caller:
            expiry, may_rotate = by.holder.expiry, by.holder.may_rotate and step.flag
        self._issue(by, self._wanted(by.holder, step), expiry, may_rotate=may_rotate)

    def update_grants(self, step: Step) -> None:
        by = self._caller(step.who)
        about = self._holder(step.which, by)
        grants = self._wanted(about, step)
        request = pb.UpdateTokenRequest(token=ServiceToken(token_id=about.token_id, grants=self._messages(grants)))
        request.update_mask.paths.append("grants")
        self._update(by, about, request, grants, about.expiry, may_rotate=about.may_rotate)

    def update_life(self, step: Step) -> None:
        by = self._caller(step.who)
        about = self._holder(step.which, by)
        token = ServiceToken(token_id=about.token_id, allow_self_rotation=step.flag)
        if step.expiry is not None:
            token.expire_time.FromDatetime(EXPIRIES[step.expiry])
        request = pb.UpdateTokenRequest(token=token)
        request.update_mask.paths.extend(["expire_time", "allow_self_rotation"])
        self._update(by, about, request, about.grants, step.expiry, may_rotate=step.flag)

    def disable(self, step: Step) -> None:
        by = self._caller(step.who)
        about = self._holder(step.which, by)
        expected = "TOKEN_IS_REVOKED" if about.revoked else ""
        if self._call(by, "DisableToken", pb.DisableTokenRequest(token_id=about.token_id), expected):
            about.disabled = True

    def enable(self, step: Step) -> None:
        by = self._caller(step.who)
        about = self._holder(step.which, by)
        expected = "TOKEN_IS_REVOKED" if about.revoked else self.tenant.holder_exceeds(by.holder, about)
        if self._call(by, "EnableToken", pb.EnableTokenRequest(token_id=about.token_id), expected):
            about.disabled = False

    def rotate(self, step: Step) -> None:
        by = self._caller(step.who)
        about = self._holder(step.which, by)
        expected = "TOKEN_IS_REVOKED" if about.revoked else self.tenant.holder_exceeds(by.holder, about)
        if by.holder is about and not about.may_rotate:
            expected = expected or "EXCEEDS_CALLER"
        request = pb.RotateTokenRequest(token_id=about.token_id, overlap=Duration(seconds=3600 * step.flag))
        if answer := self._call(by, "RotateToken", request, expected):
            about.rotated(Received(answer.secret, by.actor), overlaps=step.flag)

    def rotate_self(self, step: Step) -> None:
        by = self._caller(step.who)
        if by.holder is None:
            return
        request = pb.RotateSelfRequest(overlap=Duration(seconds=3600 * step.flag))
        expected = "" if by.holder.may_rotate else "CALLER_NOT_PERMITTED"
        if answer := self._call(by, "RotateSelf", request, expected, of_itself=True):
            by.holder.rotated(Received(answer.secret, by.actor), overlaps=step.flag)

    def revoke(self, step: Step) -> None:
        by = self._caller(step.who)
        self._revoke(by, self._holder(step.which, by))

    def revoke_self(self, step: Step) -> None:
        by = self._caller(step.who)
        if by.holder is not None and self._call(by, "RevokeSelf", pb.RevokeSelfRequest(), "", of_itself=True):
            by.holder.revoked = True

    def revoke_batch(self, step: Step) -> None:
        """Two of them, in one transaction; perhaps the one that calls is among them."""
        by = self._caller(step.who)
        about = self._holder(step.which, by)
        several = [about, *(holder for holder in self.tenant.holders[:1] if holder is not about)]
        request = pb.BatchRevokeTokensRequest(
            account_id=self.account.account_id, token_ids=[holder.token_id for holder in several]
        )
        if self._call(by, "BatchRevokeTokens", request, ""):
            for holder in several:
                holder.revoked = True

    def revoke_obtained(self, step: Step) -> None:
        """What a token has received, as after a leak."""
        by = self._caller(step.who)
        source = self._holder(step.which, by)
        request = pb.RevokeTokensByFilterRequest(
            account_id=self.account.account_id, obtained_by=source.token_id, include_descendants=step.flag
        )
        obtained = self.tenant.obtained(source.actor, descendants=step.flag)
        if (answer := self._call(by, "RevokeTokensByFilter", request, "")) is not None:
            assert set(answer.token_ids) == {holder.token_id for holder in obtained}
            for holder in obtained:
                holder.revoked = True

    # ---- what operators do around them

    def change_plan(self, step: Step) -> None:
        plan = ("large", "large", *PLANS)[step.keeping % (len(PLANS) + 2)]
        self.account.set_plan(plan)
        self.tenant.plan = plan

    def suspend_for_a_moment(self, step: Step) -> None:
        by, account_id = self._caller(step.who), self.account.account_id
        suspend, resume = account_pb.SuspendAccountRequest, account_pb.ResumeAccountRequest
        ask(self.stubs.accounts.SuspendAccount, suspend(account_id=account_id), self.stubs.admin)
        self.tenant.suspended = True
        self.every_secret_gives_what_the_model_says_and_never_more_than_was_handed_out()
        self._issue(by, {"metadata_only": None}, 1, may_rotate=False)
        self._revoke(by, self._holder(step.which, by))
        ask(self.stubs.accounts.ResumeAccount, resume(account_id=account_id), self.stubs.admin)
        self.tenant.suspended = False

    def put_or_delete_project(self, step: Step) -> None:
        project_id = self.project_ids[step.keeping % len(self.project_ids)]
        if project_id not in self.tenant.projects:
            self.account.put_project(project_id)
            self.tenant.projects.add(project_id)
            return
        request = account_pb.DeleteProjectRequest(account_id=self.account.account_id, project_id=project_id)
        ask(self.stubs.accounts.DeleteProject, request, self.stubs.admin)
        self.tenant.project_deleted(project_id)

    def apply_catalog(self, step: Step) -> None:
        toml = minting.VARIANTS[step.keeping % len(minting.VARIANTS)]
        ask(self.stubs.system.ApplyCatalog, ApplyCatalogRequest(catalog=toml), self.stubs.admin)
        self.tenant.catalog_applied(minting.document_of(toml))

    # ---- what always holds

    @invariant()
    def every_secret_gives_what_the_model_says_and_never_more_than_was_handed_out(self) -> None:
        tenant = self.tenant
        gives = self._checked(received for holder in tenant.holders for received in holder.secrets)
        for holder in tenant.holders:
            effective = tenant.effective(holder)
            assert is_within(effective, holder.ceiling), holder
            for received in holder.secrets:
                assert gives[received.text] == (tenant.shown(effective) if received.is_live else set()), holder

    @invariant()
    def every_record_is_what_the_model_says(self) -> None:
        listed = ask(
            self.stubs.tokens.ListTokens,
            pb.ListTokensRequest(account_id=self.account.account_id, page_size=1000),
            self.stubs.admin,
        )
        found = {token.token_id: token for token in listed.tokens}
        assert len(found) == len(self.tenant.holders)
        for holder in self.tenant.holders:
            token = found[holder.token_id]
            assert _grants_of(token) == holder.grants
            assert _expiry_of(token) == holder.expiry
            assert token.allow_self_rotation is holder.may_rotate
            assert token.state == _state_of(holder)

    # ---- how

    def _caller(self, pick: Pick) -> Caller:
        """An operator, or a token with one of the secrets that it ever had: mostly one that may mint now."""
        kind, number = pick
        if kind == OPERATOR:
            return BY_OPERATOR
        everybody = [Caller(holder, secret) for holder in self.tenant.holders for secret in holder.secrets]
        minters = [caller for caller in everybody if not self.tenant.caller_refused(caller.holder, caller.secret)]
        pool = minters if kind == "minter" and minters else everybody
        return pool[number % len(pool)]

    def _holder(self, pick: Pick, by: Caller) -> Holder:
        """A token: mostly one that is not revoked, and often one that is within the caller."""
        (kind, number), everybody = pick, self.tenant.holders
        pool = [holder for holder in everybody if kind == "any" or not holder.revoked]
        if kind == "within the caller":
            pool = [holder for holder in pool if not self.tenant.holder_exceeds(by.holder, holder)] or pool
        return (pool or everybody)[number % len(pool or everybody)]

    def _issue(self, by: Caller, grants: Grants, expiry: int | None, *, may_rotate: bool) -> None:
        tenant = self.tenant
        expected = "ACCOUNT_NOT_ACTIVE" if tenant.suspended else tenant.wrong(grants)
        expected = expected or tenant.exceeds(by.holder, grants, expiry, may_rotate=may_rotate)
        request = self.account.wanted(*self._messages(grants), allow_self_rotation=may_rotate)
        if expiry is not None:
            request.expire_time.FromDatetime(EXPIRIES[expiry])
        if answer := self._call(by, "IssueToken", request, expected):
            secret, ceiling = Received(answer.secret, by.actor), self._handed_out(by, grants)
            tenant.holders.append(Holder(answer.token.token_id, grants, expiry, may_rotate, [secret], ceiling))

    def _revoke(self, by: Caller, about: Holder) -> None:
        if self._call(by, "RevokeToken", pb.RevokeTokenRequest(token_id=about.token_id), ""):
            about.revoked = True

    def _update(
        self,
        by: Caller,
        about: Holder,
        request: pb.UpdateTokenRequest,
        grants: Grants,
        expiry: int | None,
        *,
        may_rotate: bool,
    ) -> None:
        tenant = self.tenant
        expected = "TOKEN_IS_REVOKED" if about.revoked else tenant.holder_exceeds(by.holder, about)
        expected = expected or tenant.wrong(grants, about.grants)
        expected = expected or tenant.exceeds(by.holder, grants, expiry, may_rotate=may_rotate)
        if self._call(by, "UpdateToken", request, expected):
            about.ceiling = self._handed_out(by, grants)
            about.grants, about.expiry, about.may_rotate = grants, expiry, may_rotate

    def _handed_out(self, by: Caller, grants: Grants) -> frozenset[Fact]:
        """What such grants may come to: what the caller holds, or what the operator asked for."""
        return self.tenant.full(grants) if by.holder is None else self.tenant.effective(by.holder)

    def _call(self, by: Caller, name: str, request: Message, expected: str, *, of_itself: bool = False) -> Any:
        """The answer, None if it was refused; that it comes to what is expected is asserted. `of_itself`: needs no permission."""
        refused = self.tenant.caller_refused(by.holder, by.secret)
        if of_itself and refused == "CALLER_NOT_PERMITTED":
            refused = ""
        metadata = self.stubs.admin if by.secret is None else bearer(by.secret.text)
        try:
            answer = getattr(self.stubs.tokens, name)(request, metadata=metadata, timeout=30)
        except grpc.RpcError as error:
            refusal = refusal_of(error)
            assert refusal.reason == (refused or expected), (name, by, refusal)
            return None
        assert (refused or expected) == "", (name, by, answer)
        return answer

    def _wanted(self, holder: Holder | None, step: Step) -> Grants:
        """Some of what a token holds, and more; never nothing."""
        held = {} if holder is None else holder.grants
        kept = {name: ids for place, (name, ids) in enumerate(held.items()) if step.keeping >> place & 1}
        named: Grants = {
            name: None if places is None else tuple(sorted(self.project_ids[int(place)] for place in places))
            for name, places in step.more.items()
        }
        return {**kept, **named} or {"minter": None}

    def _messages(self, grants: Grants) -> list[Grant]:
        return [on_all(name) if ids is None else on(name, *ids) for name, ids in grants.items()]

    def _checked(self, secrets: Iterable[Received]) -> dict[str, set[Fact]]:
        """What each secret may do, of every permission at every place; of one that has stopped, one at each place will do."""
        questions = self.tenant.questions()
        once = [fact for fact in questions if fact[0] in {"service_tokens:write", "jobs:read"}]
        asked = [(one.text, fact) for one in secrets for fact in (questions if one.is_live else once)]
        given: dict[str, set[Fact]] = {secret: set() for secret, _ in asked}
        for start in range(0, len(asked), 1000):
            part = asked[start : start + 1000]
            request = BatchCheckRequest(items=[self._item(secret, fact) for secret, fact in part])
            results = ask(self.stubs.authorizer.BatchCheck, request, self.stubs.caller).results
            for (secret, fact), result in zip(part, results, strict=True):
                if result.allowed:
                    given[secret].add(fact)
        return given

    def _item(self, secret: str, fact: Fact) -> BatchCheckItem:
        permission, place = fact
        assert place != EVERY_PROJECT
        if place == ACCOUNT:
            return BatchCheckItem(secret=secret, permission=permission, account_id=self.account.account_id)
        return BatchCheckItem(secret=secret, permission=permission, project_id=place)


def _state_of(holder: Holder) -> TokenState.ValueType:
    if holder.revoked:
        return TokenState.TOKEN_STATE_REVOKED
    return TokenState.TOKEN_STATE_DISABLED if holder.disabled else TokenState.TOKEN_STATE_ACTIVE


def _grants_of(token: ServiceToken) -> Grants:
    return {grant.permission_set: None if grant.all_projects else tuple(grant.project_ids) for grant in token.grants}


@functools.cache
def _number_of(seconds: int) -> int:
    return next(number for number, time in EXPIRIES.items() if int(time.timestamp()) == seconds)


def _expiry_of(token: ServiceToken) -> int | None:
    return _number_of(token.expire_time.seconds) if token.HasField("expire_time") else None


def test_no_principal_ever_ends_with_more_than_it_was_given(minting_stubs: Stubs) -> None:
    class OnThisServer(Delegation):
        stubs = minting_stubs

    run_state_machine_as_test(OnThisServer, settings=EXAMPLES)
