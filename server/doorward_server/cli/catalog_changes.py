"""`doorward catalog diff | apply`: what a catalog's file would change, and putting it in force."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from doorward.v1 import system_admin_pb2
from doorward_server.cli import output, wording
from doorward_server.cli.connection import Server, calls_server
from doorward_server.cli.values import Limit, ValidateOnly

__all__ = ["add_to"]

CatalogFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="A whole catalog as TOML, as `catalog show --toml` prints it; -: standard input."
    ),
]
# The server takes 1 MiB; a file that was named by mistake is not read into memory.
_MOST_BYTES: Final = 2 * 1024 * 1024


def add_to(app: typer.Typer) -> None:
    """Adds the commands to those of `catalog`."""
    for command, in_short in (
        (diff, "Tell what a catalog would change."),
        (apply, "Put a catalog in force."),
    ):
        app.command(command.__name__, short_help=in_short)(calls_server(command))


def diff(
    server: Server,
    file: CatalogFile,
    tokens: Annotated[bool, typer.Option("--tokens", help="Also name the tokens that gain or lose something.")] = False,
    limit: Limit = 100,
) -> None:
    """Tell what applying the file would change: for sets, plans and resources, and how many tokens gain or lose something.

    Compares what decides, so that a reordered file has no changes. Changes nothing. --limit is about --tokens.
    """
    request = system_admin_pb2.PreviewCatalogRequest(catalog=_text_of(file), include_tokens=tokens)
    answer = server.call_paged(server.system.PreviewCatalog, request, "token_changes", limit)
    output.show(answer, *_difference(answer, file), as_json=server.as_json)


def apply(
    server: Server,
    file: CatalogFile,
    expected_version: Annotated[
        int, typer.Option(metavar="NUMBER", min=0, help="Only if this version is in force, as diff and show tell it.")
    ] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Also if grants or accounts use what it lacks; such grants are suspended.")
    ] = False,
    validate_only: ValidateOnly = False,
) -> None:
    """Replace the whole catalog: when this returns, every check is decided by the new one.

    No token is changed: tokens gain and lose permissions with their sets. See `catalog diff` first.
    """
    request = system_admin_pb2.ApplyCatalogRequest(
        catalog=_text_of(file), expected_catalog_version=expected_version, force=force, validate_only=validate_only
    )
    answer = server.call(server.system.ApplyCatalog, request)
    verb = "would be" if validate_only else "is"
    applied = f"Catalog version {answer.catalog_version}, labelled {output.shown(answer.label)}, {verb} in force."
    output.show(answer, applied, wording.reached(answer, answer.propagation), as_json=server.as_json)


def _text_of(file: Path) -> str:
    """The text as it is, its line ends too: it is kept and shown that way."""
    name = "standard input" if str(file) == "-" else str(file)
    try:
        if str(file) == "-":
            read = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with file.open("rb") as opened:
                read = opened.read(_MOST_BYTES + 1)
        text = read.decode()
    except OSError as error:
        raise typer.BadParameter(f"{name} cannot be read: {error.strerror}", param_hint="FILE") from None
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{name} is no text in UTF-8, as TOML is", param_hint="FILE") from None
    if len(read) > _MOST_BYTES:
        raise typer.BadParameter(f"{name} is longer than any catalog, which has at most 1 MiB", param_hint="FILE")
    return text


def _difference(answer: system_admin_pb2.PreviewCatalogResponse, file: Path) -> Iterator[output.Cell | output.Table]:
    label, version = output.shown(answer.label), answer.current_catalog_version
    yield f"{output.shown(str(file))}, labelled {label}, beside catalog version {version}, which is in force"
    if not (answer.set_changes or answer.plan_changes or answer.resource_changes):
        yield "No check would be decided otherwise."
        return
    for changes in (_sets(answer), _plans(answer), _resources(answer), _tokens(answer)):
        if changes is not None:
            yield ""
            yield changes
    yield ""
    if answer.needs_force:
        yield "It lacks what grants or accounts use: applying it needs --force, and suspends those grants."
    yield f"To apply exactly this: doorward catalog apply {output.shown(str(file))} --expected-version {version}"


def _sets(answer: system_admin_pb2.PreviewCatalogResponse) -> output.Table | None:
    rows = [
        (
            change.permission_set,
            _kind(change.kind),
            _names(change.permissions_gained),
            _names(change.permissions_lost),
            str(change.tokens_gaining),
            str(change.tokens_losing),
        )
        for change in answer.set_changes
    ]
    columns = ("PERMISSION SET", "CHANGE", "GAINS", "LOSES", "TOKENS GAINING", "TOKENS LOSING")
    return output.table(columns, rows) if rows else None


def _plans(answer: system_admin_pb2.PreviewCatalogResponse) -> output.Table | None:
    rows = [
        (
            change.plan,
            _kind(change.kind),
            _names(change.permission_sets_added),
            _names(change.permission_sets_removed),
            str(change.accounts),
        )
        for change in answer.plan_changes
    ]
    return output.table(("PLAN", "CHANGE", "COMES TO COVER", "NO LONGER COVERS", "ACCOUNTS"), rows) if rows else None


def _resources(answer: system_admin_pb2.PreviewCatalogResponse) -> output.Table | None:
    rows = [
        (change.resource, _kind(change.kind), _names(change.actions_added), _names(change.actions_removed))
        for change in answer.resource_changes
    ]
    return output.table(("RESOURCE", "CHANGE", "ACTIONS ADDED", "ACTIONS REMOVED"), rows) if rows else None


def _tokens(answer: system_admin_pb2.PreviewCatalogResponse) -> output.Table | None:
    rows = [
        (
            change.account_id,
            change.token_id,
            output.shown(change.display_name),
            _names(change.permissions_gained),
            _names(change.permissions_lost),
        )
        for change in answer.token_changes
    ]
    return output.table(("ACCOUNT", "TOKEN", "NAME", "GAINS", "LOSES"), rows) if rows else None


def _kind(kind: system_admin_pb2.CatalogChangeKind.ValueType) -> str:
    return system_admin_pb2.CatalogChangeKind.Name(kind).removeprefix("CATALOG_CHANGE_KIND_").lower()


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "-"
