"""AccountAdmin: parse, call the use case, answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward.v1 import account_admin_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.fields import LONGEST_DISPLAY_NAME, Fields
from doorward_server.api.paging import next_page_token, page_of
from doorward_server.api.requests import request_of
from doorward_server.service.accounts import PutAccount, PutProject

if TYPE_CHECKING:
    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.service.accounts import Accounts

__all__ = ["AccountAdmin"]

SERVICE = "/doorward.v1.AccountAdmin/"


class AccountAdmin:
    """The service's RPCs."""

    def __init__(self, accounts: Accounts, *, max_page: int) -> None:
        self._accounts = accounts
        self._max_page = max_page

    def methods(self, binder: Binder) -> list[Method]:
        """Its part of the method table."""
        return [
            binder.method(SERVICE + "PutAccount", pb.PutAccountRequest, self.put_account),
            binder.method(SERVICE + "GetAccount", pb.GetAccountRequest, self.get_account),
            binder.method(SERVICE + "ListAccounts", pb.ListAccountsRequest, self.list_accounts),
            binder.method(SERVICE + "PutProject", pb.PutProjectRequest, self.put_project),
            binder.method(SERVICE + "ListProjects", pb.ListProjectsRequest, self.list_projects),
            binder.unimplemented(SERVICE + "SuspendAccount"),
            binder.unimplemented(SERVICE + "ResumeAccount"),
            binder.unimplemented(SERVICE + "DeleteAccount"),
            binder.unimplemented(SERVICE + "DeleteProject"),
            binder.unimplemented(SERVICE + "PreviewPlanChange"),
        ]

    async def put_account(self, request: pb.PutAccountRequest, call: Call) -> pb.PutAccountResponse:
        """Creates or changes an account."""
        fields = Fields()
        wanted = PutAccount(
            account_id=fields.identifier("account_id", request.account_id),
            display_name=fields.text("display_name", request.display_name, longest=LONGEST_DISPLAY_NAME, required=True),
            plan=fields.name("plan", request.plan, example="enterprise"),
        )
        await fields.done_with(lambda: self._accounts.further_violations(wanted))
        done = await self._accounts.put_account(request_of(call, validate_only=request.validate_only), wanted)
        return pb.PutAccountResponse(
            account=convert.account(done.value), propagation=convert.propagation(done.propagation)
        )

    async def get_account(self, request: pb.GetAccountRequest, _call: Call) -> pb.GetAccountResponse:
        """One account."""
        fields = Fields()
        account_id = fields.identifier("account_id", request.account_id)
        fields.done()
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

    async def put_project(self, request: pb.PutProjectRequest, call: Call) -> pb.PutProjectResponse:
        """Creates or renames a project."""
        fields = Fields()
        wanted = PutProject(
            account_id=fields.identifier("account_id", request.account_id),
            project_id=fields.identifier("project_id", request.project_id),
            display_name=fields.text("display_name", request.display_name, longest=LONGEST_DISPLAY_NAME, required=True),
        )
        fields.done()
        done = await self._accounts.put_project(request_of(call, validate_only=request.validate_only), wanted)
        return pb.PutProjectResponse(
            project=convert.project(done.value), propagation=convert.propagation(done.propagation)
        )

    async def list_projects(self, request: pb.ListProjectsRequest, _call: Call) -> pb.ListProjectsResponse:
        """A page of an account's projects, by id."""
        fields = Fields()
        account_id = fields.identifier("account_id", request.account_id)
        bound_to = (SERVICE + "ListProjects", account_id)
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=self._max_page)
        fields.done()
        projects = await self._accounts.list_projects(account_id, page)
        token = next_page_token(page, len(projects), (projects[-1].project_id,) if projects else (), bound_to)
        return pb.ListProjectsResponse(projects=map(convert.project, projects), next_page_token=token)
