"""Which rule a path has: a table of routes, for guards that stand before the router and so have to read the path themselves.

    GET /projects/{project_id}/jobs        {name} is one segment, whatever is in it
    POST /projects/{project_id}/jobs
    WEBSOCKET /projects/{project_id}/log
    GET /static/*                          the rest of the path, of one segment or more

The first route that fits counts, as in Starlette and most routers: write them in the same order. Paths are compared decoded,
case and a slash at the end included. GET is HEAD too, unless HEAD has a route of its own. Design section 8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["WEBSOCKET", "Routes"]

R = TypeVar("R")

WEBSOCKET: Final = "WEBSOCKET"
_ROUTE: Final = re.compile(r"([A-Z]+) (/\S*)")
_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_LITERAL: Final = re.compile(r"[^{}%?#*\\]*")
_REST: Final = "*"


@dataclass(frozen=True, slots=True)
class _Route(Generic[R]):
    """One row. `segments`: a literal, or None for a parameter; `names`: of the parameters, by position."""

    text: str
    segments: tuple[str | None, ...]
    names: Mapping[int, str]
    takes_rest: bool
    rule: R

    def fits(self, path: tuple[str | None, ...]) -> bool:
        """Whether every literal stands where it should. A parameter is no empty segment."""
        length = len(self.segments)
        if len(path) <= length if self.takes_rest else len(path) != length:
            return False
        return all(
            found != "" if wanted is None else found == wanted
            for wanted, found in zip(self.segments, path, strict=False)
        )

    def hides(self, other: _Route[R]) -> bool:
        """Whether nothing is left for a row that comes later."""
        if other.takes_rest and not self.takes_rest:
            return False
        return self.fits((*other.segments, None) if other.takes_rest else other.segments)


class Routes(Generic[R]):
    """The table."""

    def __init__(self, rules: Mapping[str, R]) -> None:
        """Reads every row once.

        Raises:
            ValueError: a row that is none, or that an earlier one leaves nothing for.
        """
        self._by_method: dict[str, list[_Route[R]]] = {}
        for text, rule in rules.items():
            method, route = _parsed(text, rule)
            rows = self._by_method.setdefault(method, [])
            for earlier in rows:
                if earlier.hides(route):
                    raise ValueError(f"{text!r} comes after {earlier.text!r}, which takes every path that it would")
            rows.append(route)

    def parameters(self) -> Iterator[tuple[str, R, frozenset[str]]]:
        """Each row: its text, its rule, and the names of its parameters."""
        for rows in self._by_method.values():
            for route in rows:
                yield route.text, route.rule, frozenset(route.names.values())

    def find(self, method: str, path: tuple[str, ...]) -> tuple[R, dict[str, str]] | None:
        """The rule of a request and the parameters of its path, or None: it is refused."""
        for candidate in ("HEAD", "GET") if method == "HEAD" else (method,):
            for route in self._by_method.get(candidate, ()):
                if route.fits(path):
                    return route.rule, {name: path[position] for position, name in route.names.items()}
        return None


def _parsed(text: str, rule: R) -> tuple[str, _Route[R]]:
    match = _ROUTE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no route; write METHOD /path, for example GET /projects/{{project_id}}/jobs")
    segments = match[2].split("/")[1:]
    takes_rest = segments[-1] == _REST
    if takes_rest:
        segments.pop()
    names: dict[int, str] = {}
    for position, segment in enumerate(segments):
        parameter = _PARAMETER.fullmatch(segment)
        if parameter is not None:
            names[position] = parameter[1]
        elif _LITERAL.fullmatch(segment) is None or (segment in {"", ".", ".."} and position < len(segments) - 1):
            raise ValueError(f"{text!r}: {segment!r} is neither a segment as it is decoded nor one {{name}}")
    if len(set(names.values())) != len(names):
        raise ValueError(f"{text!r} has two parameters of one name")
    shape = tuple(None if position in names else segment for position, segment in enumerate(segments))
    return match[1], _Route(text, shape, names, takes_rest, rule)
