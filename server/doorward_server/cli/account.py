"""`doorward account put | get | list`: customers, their plan and state."""

from typing import Annotated

import typer

from doorward.v1 import account_admin_pb2, types_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.values import Limit, ValidateOnly

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Customers: their plan, their state.")

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
    reached = wording.reached(answer, answer.propagation)
    output.show(answer, _details(answer.account), "", reached, as_json=server.as_json)


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
