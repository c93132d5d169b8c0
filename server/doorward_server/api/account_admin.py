"""AccountAdmin, the RPCs of accounts: parse, call the use case, answer. Those of projects: `project_admin.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.v1 import account_admin_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.fields import LONGEST_DISPLAY_NAME, Fields
from doorward_server.api.paging import next_page_token, page_of, require_number
from doorward_server.api.requests import request_of
from doorward_server.service.accounts import PutAccount

if TYPE_CHECKING:
    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.service.account_states import AccountStates
    from doorward_server.service.accounts import Accounts
    from doorward_server.service.plan_preview import PlanEffect, PlanPreviews

__all__ = ["AccountAdmin"]

SERVICE: Final = "/doorward.v1.AccountAdmin/"


class AccountAdmin:
    """The RPCs."""

    def __init__(self, accounts: Accounts, states: AccountStates, plans: PlanPreviews, *, max_page: int) -> None:
        self._accounts = accounts
        self._states = states
        self._plans = plans
        self._max_page = max_page

    def methods(self, binder: Binder) -> list[Method]:
        """Their part of the method table."""
        return [
            binder.method(SERVICE + "PutAccount", pb.PutAccountRequest, self.put_account),
            binder.method(SERVICE + "GetAccount", pb.GetAccountRequest, self.get_account),
            binder.method(SERVICE + "ListAccounts", pb.ListAccountsRequest, self.list_accounts),
            binder.method(SERVICE + "SuspendAccount", pb.SuspendAccountRequest, self.suspend_account),
            binder.method(SERVICE + "ResumeAccount", pb.ResumeAccountRequest, self.resume_account),
            binder.method(SERVICE + "DeleteAccount", pb.DeleteAccountRequest, self.delete_account),
            binder.method(SERVICE + "PreviewPlanChange", pb.PreviewPlanChangeRequest, self.preview_plan_change),
        ]

    async def put_account(self, request: pb.PutAccountRequest, call: Call) -> pb.PutAccountResponse:
        """Creates or changes an account."""
        fields = Fields()
        wanted = PutAccount(
            account_id=fields.identifier("account_id", request.account_id),
            display_name=fields.text("display_name", request.display_name, longest=LONGEST_DISPLAY_NAME, required=True),
            plan=fields.name("plan", request.plan, example="enterprise"),
        )
        await fields.done_with(lambda: self._accounts.plan_violations(wanted.plan))
        done = await self._accounts.put_account(request_of(call, validate_only=request.validate_only), wanted)
        return pb.PutAccountResponse(
            account=convert.account(done.value), propagation=convert.propagation(done.propagation)
        )

    async def get_account(self, request: pb.GetAccountRequest, _call: Call) -> pb.GetAccountResponse:
        """One account."""
        account_id = _account_id(request.account_id)
        return pb.GetAccountResponse(account=convert.account(await self._accounts.get_account(account_id)))

    async def list_accounts(self, request: pb.ListAccountsRequest, _call: Call) -> pb.ListAccountsResponse:
        """A page of accounts, by id."""
        fields = Fields()
        bound_to = (SERVICE + "ListAccounts",)
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=self._max_page)
        fields.done()
        accounts = await self._accounts.list_accounts(page)
        token = next_page_token(page, len(accounts), (accounts[-1].account_id,) if accounts else (), bound_to)
        return pb.ListAccountsResponse(accounts=map(convert.account, accounts), next_page_token=token)

    async def suspend_account(self, request: pb.SuspendAccountRequest, call: Call) -> pb.SuspendAccountResponse:
        """Stops the account's tokens until it is resumed."""
        account_id = _account_id(request.account_id)
        done = await self._states.suspend(request_of(call, validate_only=request.validate_only), account_id)
        return pb.SuspendAccountResponse(
            account=convert.account(done.value), propagation=convert.propagation(done.propagation)
        )

    async def resume_account(self, request: pb.ResumeAccountRequest, call: Call) -> pb.ResumeAccountResponse:
        """Lets them work again."""
        account_id = _account_id(request.account_id)
        done = await self._states.resume(request_of(call, validate_only=request.validate_only), account_id)
        return pb.ResumeAccountResponse(
            account=convert.account(done.value), propagation=convert.propagation(done.propagation)
        )

    async def delete_account(self, request: pb.DeleteAccountRequest, call: Call) -> pb.DeleteAccountResponse:
        """Stops them for good."""
        account_id = _account_id(request.account_id)
        done = await self._states.delete(request_of(call, validate_only=request.validate_only), account_id)
        return pb.DeleteAccountResponse(
            account=convert.account(done.value), propagation=convert.propagation(done.propagation)
        )

    async def preview_plan_change(
        self, request: pb.PreviewPlanChangeRequest, _call: Call
    ) -> pb.PreviewPlanChangeResponse:
        """A page of the tokens that another plan would change something for, and the totals."""
        fields = Fields()
        account_id = fields.identifier("account_id", request.account_id)
        plan = fields.name("plan", request.plan, example="enterprise")
        bound_to = (SERVICE + "PreviewPlanChange", account_id, plan)
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=self._max_page)
        await fields.done_with(lambda: self._accounts.plan_violations(plan))
        shown = await self._plans.preview(account_id, plan, require_number(page))
        last = (str(shown.effects[-1].token.ordinal),) if shown.effects else ()
        return pb.PreviewPlanChangeResponse(
            effects=map(_effect, shown.effects),
            next_page_token=next_page_token(page, len(shown.effects), last, bound_to),
            tokens_affected=shown.counts.tokens,
            grants_suspended=shown.counts.first,
            grants_restored=shown.counts.second,
            current_plan=shown.current_plan,
        )


def _account_id(value: str) -> str:
    fields = Fields()
    account_id = fields.identifier("account_id", value)
    fields.done()
    return account_id


def _effect(value: PlanEffect) -> pb.PlanChangeEffect:
    """Grants as they are now: those that would come back are suspended."""
    return pb.PlanChangeEffect(
        token_id=value.token.token_id,
        display_name=value.token.display_name,
        suspended=(convert.grant(grant, suspended=False) for grant in value.suspended),
        restored=(convert.grant(grant, suspended=True) for grant in value.restored),
    )
