"""Which rule a path has: the first that fits, against a naive reading of the same table; and tables that cannot be right."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorward.integrations._refusals import NotAdmitted
from doorward.integrations._routes import Routes
from doorward.integrations._rpc import Table, from_metadata
from doorward.integrations._rules import OPEN, Needs, id_in
from doorward.integrations.asgi import Guard, from_header
from tests.support.deciders import Decider

if TYPE_CHECKING:
    from collections.abc import Callable


def segments(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")[1:])


TABLE = Routes(
    {
        "GET /": "root",
        "GET /projects": "projects",
        "GET /projects/": "projects with a slash",
        "GET /projects/new": "new",
        "GET /projects/{project_id}": "project",
        "GET /projects/{project_id}/files/*": "files",
        "HEAD /projects": "head",
        "POST /projects/{project_id}/jobs/{job_id}": "job",
        "GET /a.b/ü": "literal",
    }
)


@pytest.mark.parametrize(
    ("method", "path", "rule", "parameters"),
    [
        ("GET", "/", "root", {}),
        ("GET", "/projects", "projects", {}),
        ("GET", "/projects/", "projects with a slash", {}),
        ("GET", "/projects/new", "new", {}),
        ("GET", "/projects/news", "project", {"project_id": "news"}),
        ("GET", "/projects/{project_id}", "project", {"project_id": "{project_id}"}),
        ("GET", "/projects/p/files/a", "files", {"project_id": "p"}),
        ("GET", "/projects/p/files/a/b/", "files", {"project_id": "p"}),
        ("GET", "/projects/p/files/", "files", {"project_id": "p"}),
        ("HEAD", "/projects", "head", {}),
        ("HEAD", "/projects/p", "project", {"project_id": "p"}),
        ("POST", "/projects/p/jobs/1", "job", {"project_id": "p", "job_id": "1"}),
        ("GET", "/a.b/ü", "literal", {}),
    ],
)
def test_the_first_route_that_fits_counts(method: str, path: str, rule: str, parameters: dict[str, str]) -> None:
    assert TABLE.find(method, segments(path)) == (rule, parameters)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/Projects"),
        ("GET", "/projects/p/"),
        ("GET", "/projects/p/files"),
        ("GET", "/projects//files/a"),
        ("GET", "/aXb/ü"),
        ("POST", "/projects"),
        ("OPTIONS", "/projects"),
        ("get", "/projects"),
        ("HEAD", "/nowhere"),
        ("WEBSOCKET", "/"),
    ],
)
def test_what_no_route_fits_has_no_rule(method: str, path: str) -> None:
    assert TABLE.find(method, segments(path)) is None


NAMES = st.sampled_from(["a", "b", "{x}", "{y}"])
ROUTES = st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3), st.booleans()), min_size=1, max_size=5)
PATHS = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=4)


def naive(templates: list[str], path: str) -> str | None:
    """The first template that fits, by regular expressions."""
    for template in templates:
        expression = re.sub(r"\{.\}", "[^/]+", template).replace("*", ".*")
        if re.fullmatch(expression, path):
            return template
    return None


@given(ROUTES, PATHS)
def test_the_table_reads_as_its_routes_do(routes: list[tuple[list[str], bool]], path: list[str]) -> None:
    templates: list[str] = []
    rules: dict[str, str] = {}
    for shape, takes_rest in routes:
        named = [f"{{p{position}}}" if name.startswith("{") else name for position, name in enumerate(shape)]
        text = "/" + "/".join([*named, *(["*"] if takes_rest else [])])
        templates.append(re.sub(r"\{p.\}", "{x}", text))
        # A route that is refused because an earlier one hides it must not be missed below.
        with contextlib.suppress(ValueError):
            Routes({**rules, f"GET {text}": text})
            rules[f"GET {text}"] = text
    found = Routes(rules).find("GET", tuple(path))
    wanted = naive(templates, "/" + "/".join(path))
    assert (re.sub(r"\{p.\}", "{x}", found[0]) if found else None) == wanted


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("GET /a/{x}", "GET /a/b"),
        ("GET /a/{x}", "GET /a/{y}"),
        ("GET /a/*", "GET /a/b/c"),
        ("GET /a/*", "GET /a/b/*"),
        ("GET /{x}/*", "GET /a/b/*"),
        ("GET /*", "GET /"),
    ],
)
def test_a_route_that_can_never_count_is_a_mistake(first: str, second: str) -> None:
    with pytest.raises(ValueError, match="comes after"):
        Routes({first: 1, second: 2})
    if first != "GET /a/{x}" or second != "GET /a/{y}":
        Routes({second: 2, first: 1})  # the narrow one first
    Routes({first: 1, second.replace("GET", "POST"): 2})


@pytest.mark.parametrize(
    "text",
    [
        "/a",
        "get /a",
        "GET a",
        "GET  /a",
        "GET /a b",
        "GET /a%20b",
        "GET /a?b=c",
        "GET /a#b",
        "GET //a",
        "GET /./a",
        "GET /../a",
        "GET /{x}{y}",
        "GET /{x}-a",
        "GET /{x:path}",
        "GET /{}",
        "GET /{x}/{x}",
        "GET /*/a",
        "GET /a*",
        "GET /a\\b",
        "GET ",
        "",
    ],
)
def test_what_is_no_route_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"route|segment|name"):
        Routes({text: 1})


# ---- rules


@pytest.mark.parametrize(
    "permission", ["", "jobs", "jobs:", ":read", "jobs:read:x", "Jobs:read", "jobs read", "jobs:*"]
)
def test_a_rule_names_a_permission(permission: str) -> None:
    with pytest.raises(ValueError, match="permission"):
        Needs(permission, project_id="project_id")


@pytest.mark.parametrize("places", [{}, {"project_id": "p", "account_id": "a"}])
def test_a_rule_names_one_place(places: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Needs("jobs:read", **places)


@pytest.mark.parametrize(
    "values",
    [(), ("a", "a"), ("a", "b"), ("",), (None,), (1,), (b"a",), ("a b",), ("a/b",), ("ü",), ("a" * 65,), ("a\n",)],
)
def test_an_id_is_one_and_can_be_one(values: tuple[object, ...]) -> None:
    with pytest.raises(NotAdmitted) as caught:
        id_in(values, "project_id")
    assert "project_id" in caught.value.refusal.message
    assert caught.value.refusal.reason == "RESOURCE_UNCLEAR"


@pytest.mark.parametrize("value", ["a", "A-_9", "a" * 64])
def test_an_id_is_taken_as_it_stands(value: str) -> None:
    assert id_in((value,), "project_id") == value


MISTAKES: dict[str, tuple[Callable[[], object], type[Exception]]] = {
    "no method of gRPC": (lambda: Table({"StartJob": OPEN}), ValueError),
    "a whole service": (lambda: Table({"/shop.v1.Jobs/*": OPEN}), ValueError),
    "no rule": (lambda: Table({"/a.B/C": "jobs:read"}), TypeError),  # type: ignore[dict-item]
    "None as a rule": (lambda: Table({"/a.B/C": None}), TypeError),  # type: ignore[dict-item]
    "no field": (lambda: Table({"/a.B/C": Needs("jobs:read", project_id="project-id")}), ValueError),
    "no place": (lambda: Table({"/a.B/C": Needs("jobs:read", project_id=1)}), TypeError),  # type: ignore[arg-type]
    "binary metadata": (lambda: from_metadata("project-bin"), ValueError),
    "metadata in capitals": (lambda: from_metadata("Project-Id"), ValueError),
    "the credential as an id": (lambda: from_metadata("authorization"), ValueError),
    "the credential's header as an id": (lambda: from_header("Authorization"), ValueError),
    "no header": (lambda: from_header("project id"), ValueError),
    "no parameter of the path": (
        lambda: _guard({"GET /{project_id}": Needs("jobs:read", project_id="project")}),
        ValueError,
    ),
    "no rule of a path": (lambda: _guard({"GET /": "open"}), TypeError),
    "no place in HTTP": (lambda: _guard({"GET /": Needs("jobs:read", project_id=1)}), TypeError),
    "a realm that ends its quotes": (lambda: _guard({}, realm='a" b'), ValueError),
    "a realm of two lines": (lambda: _guard({}, realm="a\r\nb"), ValueError),
}


def _guard(rules: object, **options: str) -> Guard:
    async def app(*_: object) -> None: ...

    return Guard(app, Decider().aio, rules, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_rules_ends_the_start_of_the_service(mistake: str) -> None:
    make, error = MISTAKES[mistake]
    with pytest.raises(error):
        make()


def test_the_name_of_a_header_has_no_case() -> None:
    assert from_header("X-Project-Id") == from_header("x-project-id")
