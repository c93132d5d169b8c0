"""`doorward account put | get | list | suspend | resume | delete | preview-plan`: customers, their plan and state."""

from typing import Annotated, TypeAlias

import typer

from doorward.v1 import account_admin_pb2, types_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.values import Limit, ValidateOnly

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Customers: their plan, their state.")

# What every change of an account is answered with.
_Changed: TypeAlias = (
    account_admin_pb2.PutAccountResponse
    | account_admin_pb2.SuspendAccountResponse
    | account_admin_pb2.ResumeAccountResponse
    | account_admin_pb2.DeleteAccountResponse
)

AccountId = Annotated[str, typer.Argument(metavar="ACCOUNT_ID", help="For example acme.")]


@app.command("put", short_help="Create an account, or rename it or change its plan.")
@calls_server
def put(
    server: Server,
    account_id: AccountId,
    display_name: Annotated[str, typer.Option(metavar="TEXT", help="The account's name for people.")],
    plan: Annotated[str, typer.Option(metavar="NAME", help="A plan of the catalog, for example team.")],
    validate_only: ValidateOnly = False,
) -> None:
    """Create the account, or give it this name and plan.

    Tokens and projects stay. After a change of plan, grants that the new one does not cover are suspended, and come back
    when it covers them again.
    """
    request = account_admin_pb2.PutAccountRequest(
        account_id=account_id, display_name=display_name, plan=plan, validate_only=validate_only
    )
    answer = server.call(server.accounts.PutAccount, request)
    _show(server, answer)


@app.command("get")
@calls_server
def get(server: Server, account_id: AccountId) -> None:
    """Show one account, a deleted one too."""
    answer = server.call(server.accounts.GetAccount, account_admin_pb2.GetAccountRequest(account_id=account_id))
    output.show(answer, _details(answer.account), as_json=server.as_json)


@app.command("list")
@calls_server
def list_(server: Server, limit: Limit = 100) -> None:
    """List accounts by id, deleted ones too."""
    request = account_admin_pb2.ListAccountsRequest()
    answer = server.call_paged(server.accounts.ListAccounts, request, "accounts", limit)
    rows = [
        (account.account_id, output.shown(account.display_name), account.plan, wording.account_state(account.state))
        for account in answer.accounts
    ]
    columns = ("ACCOUNT", "NAME", "PLAN", "STATE")
    output.show_list(answer, columns, rows, "There is no account.", as_json=server.as_json)


@app.command("suspend", short_help="Stop an account's tokens, reversibly.")
@calls_server
def suspend(server: Server, account_id: AccountId, validate_only: ValidateOnly = False) -> None:
    """Suspend the account: when this returns, every check of its tokens is denied, until it is resumed.

    Tokens, grants and projects stay, and can be changed and revoked; no token can be issued.
    """
    request = account_admin_pb2.SuspendAccountRequest(account_id=account_id, validate_only=validate_only)
    answer = server.call(server.accounts.SuspendAccount, request)
    _show(server, answer)


@app.command("resume", short_help="Let a suspended account's tokens work again.")
@calls_server
def resume(server: Server, account_id: AccountId, validate_only: ValidateOnly = False) -> None:
    """Resume a suspended account: its tokens work again, those that did not stop in the meantime."""
    request = account_admin_pb2.ResumeAccountRequest(account_id=account_id, validate_only=validate_only)
    answer = server.call(server.accounts.ResumeAccount, request)
    _show(server, answer)


@app.command("delete", short_help="Stop an account's tokens, for good.")
@calls_server
def delete(server: Server, account_id: AccountId, validate_only: ValidateOnly = False) -> None:
    """Delete the account, for good: when this returns, every check of its tokens is denied, and its id is used up.

    It stays readable, and so do its tokens. Its projects keep their ids until they are deleted. To stop it for a while,
    use suspend.
    """
    request = account_admin_pb2.DeleteAccountRequest(account_id=account_id, validate_only=validate_only)
    answer = server.call(server.accounts.DeleteAccount, request)
    _show(server, answer)


@app.command("preview-plan", short_help="Tell what another plan would change.")
@calls_server
def preview_plan(
    server: Server,
    account_id: AccountId,
    plan: Annotated[str, typer.Option(metavar="NAME", help="The plan to try, for example team.")],
    limit: Limit = 100,
) -> None:
    """Tell which grants of which tokens a change of plan would suspend, and which would come back. Changes nothing."""
    request = account_admin_pb2.PreviewPlanChangeRequest(account_id=account_id, plan=plan)
    answer = server.call_paged(server.accounts.PreviewPlanChange, request, "effects", limit)
    rows = [
        (
            effect.token_id,
            output.shown(effect.display_name),
            wording.grants_in_short(effect.suspended) or "-",
            wording.grants_in_short(effect.restored) or "-",
        )
        for effect in answer.effects
    ]
    summary = (
        f"From {answer.current_plan} to {plan}: {answer.tokens_affected} tokens affected, "
        f"{answer.grants_suspended} grants suspended, {answer.grants_restored} restored."
    )
    columns = ("TOKEN", "NAME", "WOULD BE SUSPENDED", "WOULD COME BACK")
    parts = (output.table(columns, rows), "", summary) if rows else (summary,)
    output.show(answer, *parts, as_json=server.as_json)


def _show(server: Server, answer: _Changed) -> None:
    """What became of the account, and how far that has reached."""
    reached = wording.reached(answer, answer.propagation)
    output.show(answer, _details(answer.account), "", reached, as_json=server.as_json)


def _details(account: types_pb2.Account) -> output.Table:
    return output.details(
        [
            ("Account", account.account_id),
            ("Name", output.shown(account.display_name)),
            ("Plan", output.shown(account.plan)),
            ("State", wording.account_state(account.state)),
            ("Created", wording.time(account, "create_time")),
            ("Updated", wording.time(account, "update_time")),
        ]
    )
