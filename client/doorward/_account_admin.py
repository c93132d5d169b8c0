"""AccountAdmin's calls from arguments: accounts and their projects. Answers are the contract's messages.

Each function is a method of `AccountAdminClient` in both dialects. What an RPC does, leaves alone and refuses is told in
`protos/doorward/v1/account_admin.proto`. `timeout`: seconds; the client's default if None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward._shared import call
from doorward.v1 import account_admin_pb2 as pb

if TYPE_CHECKING:
    from doorward._shared import Call


def put_account(
    account_id: str, *, display_name: str, plan: str, validate_only: bool = False, timeout: float | None = None
) -> Call[pb.PutAccountResponse]:
    """Creates the account, or gives it this name and plan. A repeat changes nothing."""
    request = pb.PutAccountRequest(
        account_id=account_id, display_name=display_name, plan=plan, validate_only=validate_only
    )
    return call(request, pb.PutAccountResponse, timeout)


def get_account(account_id: str, *, timeout: float | None = None) -> Call[pb.GetAccountResponse]:
    """Reads one account, a deleted one too."""
    return call(pb.GetAccountRequest(account_id=account_id), pb.GetAccountResponse, timeout)


def list_accounts(
    *, page_size: int = 0, page_token: str = "", timeout: float | None = None
) -> Call[pb.ListAccountsResponse]:
    """A page of accounts in the order of their ids; `next_page_token` leads to the next one."""
    request = pb.ListAccountsRequest(page_size=page_size, page_token=page_token)
    return call(request, pb.ListAccountsResponse, timeout)


def suspend_account(
    account_id: str, *, validate_only: bool = False, timeout: float | None = None
) -> Call[pb.SuspendAccountResponse]:
    """Suspends the account: once this returns, every check of its tokens is denied. `resume_account` takes it back."""
    request = pb.SuspendAccountRequest(account_id=account_id, validate_only=validate_only)
    return call(request, pb.SuspendAccountResponse, timeout)


def resume_account(
    account_id: str, *, validate_only: bool = False, timeout: float | None = None
) -> Call[pb.ResumeAccountResponse]:
    """Resumes a suspended account: its tokens work again as they did."""
    request = pb.ResumeAccountRequest(account_id=account_id, validate_only=validate_only)
    return call(request, pb.ResumeAccountResponse, timeout)


def delete_account(
    account_id: str, *, validate_only: bool = False, timeout: float | None = None
) -> Call[pb.DeleteAccountResponse]:
    """Deletes the account, for good: once this returns, all its tokens have stopped. Its id is never used again."""
    request = pb.DeleteAccountRequest(account_id=account_id, validate_only=validate_only)
    return call(request, pb.DeleteAccountResponse, timeout)


def put_project(
    account_id: str,
    project_id: str,
    *,
    display_name: str,
    validate_only: bool = False,
    timeout: float | None = None,
) -> Call[pb.PutProjectResponse]:
    """Creates the project in the account, or gives it this name. Its id is unique in the whole deployment."""
    request = pb.PutProjectRequest(
        account_id=account_id, project_id=project_id, display_name=display_name, validate_only=validate_only
    )
    return call(request, pb.PutProjectResponse, timeout)


def list_projects(
    account_id: str, *, page_size: int = 0, page_token: str = "", timeout: float | None = None
) -> Call[pb.ListProjectsResponse]:
    """A page of the account's projects in the order of their ids."""
    request = pb.ListProjectsRequest(account_id=account_id, page_size=page_size, page_token=page_token)
    return call(request, pb.ListProjectsResponse, timeout)


def delete_project(
    account_id: str, project_id: str, *, validate_only: bool = False, timeout: float | None = None
) -> Call[pb.DeleteProjectResponse]:
    """Deletes the project; its id leaves every grant. Not sent again by gRPC: a repeat after success is NotFound."""
    request = pb.DeleteProjectRequest(account_id=account_id, project_id=project_id, validate_only=validate_only)
    return call(request, pb.DeleteProjectResponse, timeout)


def preview_plan_change(
    account_id: str, *, plan: str, page_size: int = 0, page_token: str = "", timeout: float | None = None
) -> Call[pb.PreviewPlanChangeResponse]:
    """A page of the grants that a change of plan would suspend, or bring back. Changes nothing."""
    request = pb.PreviewPlanChangeRequest(account_id=account_id, plan=plan, page_size=page_size, page_token=page_token)
    return call(request, pb.PreviewPlanChangeResponse, timeout)
