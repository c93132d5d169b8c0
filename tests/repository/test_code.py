"""What a reader of the code would have to remember (style.md, section 6), each remembered by a short test.

Every rule is a function from a syntax tree to what breaks it. One test applies it to the code, the next to a line that
breaks it, so that a rule which finds nothing any more is noticed. Whoever needs an exception adds it with its reason.
"""

from __future__ import annotations

import ast
import sys
from typing import TYPE_CHECKING

import pytest

from tests.repository.sources import calls_in, dotted, modules_in, name_of, tree_of

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = modules_in("server/doorward_server", "client/doorward")
LONGEST_MODULE = 400

STARTS = {
    "TaskGroup", "create_task", "ensure_future", "run_coroutine_threadsafe", "to_thread", "run_in_executor", "Thread",
    "Timer", "ThreadPoolExecutor", "ProcessPoolExecutor", "Process", "start_new_thread",
}  # fmt: skip
MAY_START = {
    ("client/doorward/_aio_checks.py", "create_task"): "one for each batch under way, ended by the client's close",
    (
        "client/doorward/_aio_local.py",
        "create_task",
    ): "the stream's one, ended by close, and its writer, ended with the stream",
    ("client/doorward/_threads_local.py", "Thread"): "the stream's one, ended by close",
    ("client/doorward/_threads_local.py", "Timer"): "bounds the end of a stream, cancelled with it",
    ("server/doorward_server/app.py", "TaskGroup"): "the one TaskGroup",
    ("server/doorward_server/app.py", "create_task"): "the long-lived parts, stopped in the order of their start",
    ("server/doorward_server/api/stream_checks.py", "TaskGroup"): "the messages of one stream, ended before it is",
    ("server/doorward_server/api/stream_checks.py", "create_task"): "one message, in its stream's group",
    ("server/doorward_server/api/watch.py", "TaskGroup"): "what runs for one session, ended before its stream is",
    (
        "server/doorward_server/api/watch.py",
        "create_task",
    ): "its writer, its attendant, its asks and resolves, in its group",
    ("server/doorward_server/workers/parent.py", "TaskGroup"): "the parent of several, which is no server itself",
    ("server/doorward_server/workers/parent.py", "create_task"): "one keeper for each worker, stopped in order",
    ("server/doorward_server/monitoring.py", "Thread"): "answers while the loop is busy; started and stopped by app.py",
    ("server/doorward_server/replica/tasks.py", "create_task"): "in the app's TaskGroup: what outlives whoever asked",
    ("server/doorward_server/replica/timing.py", "ensure_future"): "ended before the function that started it returns",
    ("server/doorward_server/credentials/hashing.py", "ThreadPoolExecutor"): "the one thread of bcrypt",
    ("server/doorward_server/credentials/hashing.py", "run_in_executor"): "work for that thread, awaited by its owner",
    ("server/doorward_server/embedded/cluster.py", "to_thread"): "removes a directory, awaited at once",
    ("server/doorward_server/service/catalog_text.py", "to_thread"): "reads a catalog for seconds, awaited at once",
    ("server/doorward_server/embedded/postgres.py", "to_thread"): "bounds a log file, awaited at once",
}

# A shield keeps work alive that its waiter has left: a shared load, and a mutation (style.md, Cancellation).
MAY_SHIELD = {"server/doorward_server/replica/caches.py", "server/doorward_server/service/mutations.py"}

CLOCKS = {
    "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns",
    "time.process_time", "time.process_time_ns", "time.thread_time", "time.clock_gettime", "time.clock_gettime_ns",
    "time.gmtime", "time.localtime", "time.ctime",
}  # fmt: skip
CALENDARS = ("datetime.now", "datetime.utcnow", "datetime.today", "date.today")
MAY_READ_A_CLOCK = {
    ("client/doorward/clock.py", "time.monotonic_ns"): "the one clock",
    ("client/doorward/clock.py", "time.clock_gettime_ns"): "the one clock",
    ("client/doorward/_aio_checks.py", "self._loop.time"): "the loop's timer ends a wait",
    ("server/doorward_server/storage/connect.py", "asyncio.get_running_loop().time"): "the loop's timer ends a silence",
    ("server/doorward_server/storage/line.py", "asyncio.get_running_loop().time"): "the loop's timer ends a silence",
}

RUNS_SQL = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "fetchmany", "cursor", "prepare"}
MAY_RUN = {
    ("server/doorward_server/storage/migrate.py", "migration.sql"): "the text of a file that ships with the code"
}


def starts(tree: ast.AST) -> Iterator[str]:
    """What starts a task or a thread."""
    return (name.rpartition(".")[2] for name, _ in calls_in(tree) if name.rpartition(".")[2] in STARTS)


def clock_readings(tree: ast.AST) -> Iterator[str]:
    """What reads a clock or hands one on, and imports that would hide it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield "from time import …"
        if isinstance(node, ast.Import):
            yield from (
                f"import time as {alias.asname}" for alias in node.names if alias.name == "time" and alias.asname
            )
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if name in CLOCKS or name.endswith((*CALENDARS, "loop().time", "loop.time")):
                yield name


def built_sql(tree: ast.Module) -> Iterator[str]:
    """Statements that are not constants, whole: a capital name, a literal, or one of several of these."""
    constants = {
        target.id: node.value
        for node in tree.body
        for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and node.value is not None
    }
    chosen: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            chosen.setdefault(node.targets[0].id, []).append(node.value)

    def stands(text: ast.expr | None) -> bool:
        match text:
            case ast.Constant():
                return True
            case ast.Name(id=name) if name.isupper():
                return stands(constants.get(name))
            case ast.Name(id=name):
                return name in chosen and all(stands(value) for value in chosen[name])
            case ast.Subscript():
                return stands(text.value)
            case ast.IfExp():
                return stands(text.body) and stands(text.orelse)
            case ast.Dict():
                return all(stands(value) for value in text.values)
            case ast.BinOp(op=ast.Add()):
                return stands(text.left) and stands(text.right)
        return False

    for name, call in calls_in(tree):
        if name.rpartition(".")[2] in RUNS_SQL and call.args and not stands(call.args[0]):
            yield dotted(call.args[0])


def foreign_imports(tree: ast.AST) -> Iterator[str]:
    """What is neither the standard library's nor the core's own."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            if name.partition(".")[0] not in sys.stdlib_module_names and not f"{name}.".startswith("doorward.core."):
                yield name


def test_tasks_and_threads_are_started_where_they_have_an_owner() -> None:
    assert {(name_of(path), what) for path in OURS for what in starts(tree_of(path))} == set(MAY_START)


def test_nothing_is_shielded_but_shared_loads_and_mutations() -> None:
    shielded = {name_of(path) for path in OURS for name, _ in calls_in(tree_of(path)) if name.endswith(".shield")}
    assert shielded == MAY_SHIELD


def test_nothing_is_waited_for_with_wait_for_which_cancels() -> None:
    waiting = [name_of(path) for path in OURS for name, _ in calls_in(tree_of(path)) if name.endswith("wait_for")]
    assert waiting == []


def test_clocks_are_read_in_one_module() -> None:
    assert {(name_of(path), what) for path in OURS for what in clock_readings(tree_of(path))} == set(MAY_READ_A_CLOCK)


def test_sql_is_constant() -> None:
    storage = modules_in("server/doorward_server/storage")
    assert {(name_of(path), what) for path in storage for what in built_sql(tree_of(path))} == set(MAY_RUN)


def test_the_core_imports_the_standard_library_alone() -> None:
    core = modules_in("client/doorward/core")
    assert core
    assert [(name_of(path), what) for path in core for what in foreign_imports(tree_of(path))] == []


def test_every_module_says_what_its_job_is() -> None:
    everything = modules_in("server/doorward_server", "client/doorward", "tests", "bench", "tools")
    assert [name_of(path) for path in everything if not ast.get_docstring(tree_of(path))] == []


def test_no_module_has_grown_too_long() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in OURS}
    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE} == {}


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (starts, "asyncio.create_task(work())"),
        (starts, "threading.Thread(target=work)"),
        (clock_readings, "now = time.monotonic()"),
        (clock_readings, "now = datetime.now(UTC)"),
        (clock_readings, "now = datetime.datetime.now(UTC)"),
        (clock_readings, "now = loop.time()"),
        (clock_readings, "read = partial(time.clock_gettime_ns, clock_id)"),
        (clock_readings, "from time import monotonic"),
        (clock_readings, "import time as t"),
        (built_sql, "async def f(c, t): await c.execute(f'SELECT {t}')"),
        (built_sql, "async def f(c, t): await c.fetch('SELECT %s' % t)"),
        (built_sql, "async def f(c, t): await c.fetchrow('SELECT {}'.format(t))"),
        (built_sql, "async def f(c, t): await c.fetchval(t)"),
        (built_sql, "READ = f'SELECT {COLUMNS}'\nasync def f(c): await c.fetchval(READ)"),
        (built_sql, "async def f(c, t):\n    sql = 'SELECT ' + t\n    await c.fetchval(sql)"),
        (foreign_imports, "import grpc"),
        (foreign_imports, "from doorward.v1 import types_pb2"),
        (foreign_imports, "from doorward import clock"),
        (foreign_imports, "from . import matrix"),
    ],
)
def test_the_rules_find_what_they_are_for(rule: object, line: str) -> None:
    assert callable(rule)
    assert list(rule(ast.parse(line)))
