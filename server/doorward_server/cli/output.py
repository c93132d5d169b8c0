"""What a command prints: tables for people, JSON for programs (design section 9).

A table is as wide as what it holds: an id is never cut and never broken over two lines. Text that came from a server is
shown so that no character of it can move the cursor. Secrets are printed by `token issue` and `operator create`, which
say so; nothing here looks for them.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, TypeAlias

import typer
from google.protobuf import json_format
from rich.console import Console
from rich.table import Table
from rich.text import Text

from doorward_server.cli.failure import FAILED, fail

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message

__all__ = [
    "Cell",
    "Table",
    "details",
    "json_of",
    "note",
    "say",
    "show",
    "show_list",
    "shown",
    "styled",
    "table",
    "write",
]

Cell: TypeAlias = str | Text
# More than any row needs: rich fits a table to its console, and a terminal folds by itself what is wider than it.
_WIDTH: Final = 1_000_000


def show(message: Message, *parts: Cell | Table, as_json: bool) -> None:
    """The answer: `message` for programs, else `parts` for people."""
    if as_json:
        write(f"{json_of(message)}\n")
    else:
        say(*parts)


def show_list(
    message: Message, columns: Sequence[str], rows: Sequence[Sequence[Cell]], nothing: str, *, as_json: bool
) -> None:
    """The answer of a list: `message` for programs, else a row for each thing; `nothing` is said where there is none."""
    if as_json or rows:
        show(message, table(columns, rows), as_json=as_json)
    else:
        note(nothing)


def say(*parts: Cell | Table) -> None:
    """Prints for people, one part below the other. Coloured on a terminal, else plain."""
    console = Console(file=sys.stdout, width=_WIDTH, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        for part in parts:
            console.print(part, no_wrap=True, overflow="ignore", crop=False)
    write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def note(text: str) -> None:
    """Says something beside the answer, on standard error."""
    typer.echo(text, err=True)


def json_of(message: Message) -> str:
    """Protobuf's JSON with the contract's field names, those too that have their default; ASCII."""
    return json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Table:
    """A row for each thing."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(Text(column), no_wrap=True, overflow="ignore")
    for row in rows:
        made.add_row(*(_cell(value) for value in row))
    return made


def details(fields: Iterable[tuple[str, Cell]]) -> Table:
    """One thing, a line for each field; a value may have several lines."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(no_wrap=True, overflow="ignore", style="bold")
    made.add_column(no_wrap=True, overflow="ignore")
    for name, value in fields:
        made.add_row(Text(name), _cell(value))
    return made


def styled(text: str, style: str) -> Text:
    """Text of our own in a style, for a terminal."""
    return Text(text, style=style)


def shown(text: str) -> str:
    """Text that came from elsewhere, with every character that cannot be seen written as its escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _cell(value: Cell) -> Text:
    return value if isinstance(value, Text) else Text(value)


def write(text: str) -> None:
    """To standard output, all of it. Whoever closed it gets exit code 2: 1 is `check`'s."""
    try:
        typer.echo(text, nl=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Else the interpreter tries once more to flush at its end, and complains.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None
    except OSError as error:
        fail(f"the answer could not be written to standard output: {error.strerror}")
