"""`doorward catalog show`: resources, permission sets and plans in force."""

from typing import Annotated

import typer

from doorward.v1 import system_admin_pb2
from doorward_server.cli import output
from doorward_server.cli.connection import Server, calls_server

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="The catalog: what can be permitted, and on which plans.")


@app.callback()
def group() -> None:
    """The catalog: what can be permitted, and on which plans."""


@app.command("show")
@calls_server
def show(
    server: Server,
    toml: Annotated[bool, typer.Option("--toml", help="Print the TOML file itself, to keep or to edit.")] = False,
) -> None:
    """Show the catalog in force."""
    answer = server.call(server.system.GetCatalog, system_admin_pb2.GetCatalogRequest())
    if toml and not server.as_json:
        output.write(answer.catalog)
        return
    version = f"Catalog version {answer.catalog_version}, labelled {output.shown(answer.label)}"
    parts = (version, "", _resources(answer), "", _permission_sets(answer), "", _plans(answer))
    output.show(answer, *parts, as_json=server.as_json)


def _resources(answer: system_admin_pb2.GetCatalogResponse) -> output.Table:
    prefix = "PERMISSION_LEVEL_"
    rows = [
        (
            found.name,
            system_admin_pb2.PermissionLevel.Name(found.level).removeprefix(prefix).lower(),
            ", ".join(found.actions),
            output.shown(found.title),
        )
        for found in answer.resources
    ]
    return output.table(("RESOURCE", "LEVEL", "ACTIONS", "TITLE"), rows)


def _permission_sets(answer: system_admin_pb2.GetCatalogResponse) -> output.Table:
    rows = [
        (found.name, output.shown(found.title), ", ".join(found.aliases), str(len(found.permissions)),
         output.shown(found.description))
        for found in answer.permission_sets
    ]  # fmt: skip
    return output.table(("PERMISSION SET", "TITLE", "ALIASES", "PERMISSIONS", "DESCRIPTION"), rows)


def _plans(answer: system_admin_pb2.GetCatalogResponse) -> output.Table:
    rows = [(found.name, output.shown(found.title), ", ".join(found.permission_sets)) for found in answer.plans]
    return output.table(("PLAN", "TITLE", "PERMISSION SETS"), rows)
