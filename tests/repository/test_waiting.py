"""Tests wait for conditions, not for time (style.md, section 5): only `eventually`, which is bounded, may sleep."""

from __future__ import annotations

import ast

import pytest

from tests.repository.sources import dotted, modules_in, name_of, tree_of


def sleeps(tree: ast.AST, function: str = "") -> list[str]:
    """The functions that sleep, by name, without a bounded wait's own; `sleep(0)` waits for nothing and may stand."""
    found = []
    for node in ast.iter_child_nodes(tree):
        inside = function
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.args, *node.args.kwonlyargs]
            is_bounded = node.name == "eventually" and any(argument.arg == "within_s" for argument in arguments)
            inside = "" if is_bounded else node.name
            if is_bounded:
                continue
        if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] == "sleep":
            is_yield = [ast.unparse(argument) for argument in node.args] == ["0"]
            if not is_yield:
                found.append(inside or "module")
        found += sleeps(node, inside)
    return found


def test_no_test_sleeps() -> None:
    assert {name_of(path): found for path in modules_in("tests") if (found := sleeps(tree_of(path)))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "async def test_x():\n    await asyncio.sleep(0.1)",
        "def test_x():\n    time.sleep(1)",
        "def eventually(condition):\n    while not condition():\n        sleep(1)",
    ],
)
def test_a_sleep_is_found(code: str) -> None:
    assert sleeps(ast.parse(code))
