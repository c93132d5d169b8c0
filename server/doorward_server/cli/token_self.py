"""`doorward token describe-self | rotate-self | revoke-self`: what a holder does with a token, the token as the credential."""

from typing import Annotated

import typer

from doorward.v1 import token_admin_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.presented import SecretFile, hand_over, new_secret_file
from doorward_server.cli.token import details_of
from doorward_server.cli.token_changes import Overlap, show_rotated
from doorward_server.cli.values import RepeatedId, request_id_of

__all__ = ["add_to"]

CREDENTIAL_HELP = """\
The token is the one that the command calls with: give its secret with --token-file, or in DOORWARD_TOKEN. It needs no
permission for that. Operators have no self.
"""


def add_to(app: typer.Typer) -> None:
    """Adds the commands to those of `token`."""
    for command, name, in_short in (
        (describe_self, "describe-self", "Show the token that calls."),
        (rotate_self, "rotate-self", "Make a new secret of the token that calls, and print it once."),
        (revoke_self, "revoke-self", "Revoke the token that calls, for good."),
    ):
        described = f"{command.__doc__}\n\n{CREDENTIAL_HELP}"
        app.command(name, short_help=in_short, help=described)(calls_server(command))


def describe_self(server: Server) -> None:
    """Show the token whose secret the command calls with, and when that secret stops because another took its place."""
    answer = server.call(server.tokens.DescribeSelf, token_admin_pb2.DescribeSelfRequest())
    parts: list[output.Cell | output.Table] = [details_of(answer.token)]
    if answer.HasField("secret_expire_time"):
        stops = wording.time(answer, "secret_expire_time")
        parts += ["", f"This secret was rotated out and stops at {stops}: change over to the current one."]
    output.show(answer, *parts, as_json=server.as_json)


def rotate_self(server: Server, overlap: Overlap, secret_file: SecretFile = None, request_id: RepeatedId = "") -> None:
    """Make a new secret of the token whose secret the command calls with, and print it. Needs allow_self_rotation.

    A repeat calls with the former secret, which works only within the overlap.
    """
    request = token_admin_pb2.RotateSelfRequest(
        overlap=overlap, request_id=request_id_of(request_id, validate_only=False)
    )
    with new_secret_file(secret_file) as file:
        answer = server.call(server.tokens.RotateSelf, request)
        secret_parts = hand_over(answer.secret, file, f"token {answer.token.token_id}")
        if file is not None:
            answer.ClearField("secret")
    show_rotated(server, answer, secret_parts)


def revoke_self(
    server: Server,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for people and the audit log.")] = "",
) -> None:
    """Revoke the token whose secret the command calls with, for good: when this returns, nobody says yes to it any more.

    A repeat cannot call any more: that it is not recognized says that it is done.
    """
    answer = server.call(server.tokens.RevokeSelf, token_admin_pb2.RevokeSelfRequest(reason=reason))
    reached = wording.reached(answer, answer.propagation)
    output.show(answer, details_of(answer.token), "", reached, as_json=server.as_json)
