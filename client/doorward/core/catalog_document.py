"""Reads a catalog's document, the plain values of its TOML text, and tells everything that is wrong with it at once.

What comes out is checked, complete and still in names: `catalog` makes bits of it. A violation is one sentence that
begins with the path of what it is about and says what would be right. Unknown keys are violations, so that a mistyped
one is not taken for nothing. Called by `Catalog.build` only (design section 1).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

SCHEMA: Final = 1
MOST_RESOURCES: Final = 512  # of a level
MOST_SETS: Final = 1_000
MOST_PLANS: Final = 100
LONGEST_TITLE: Final = 200
LONGEST_DESCRIPTION: Final = 1_000
ACTIONS: Final = ("read", "write")
EVERY: Final = "*"
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
# What no database, table or terminal takes; a description may have lines.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_BUT_LINES: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NAME_RULE: Final = "a name is a lower-case letter and up to 62 of a-z, 0-9 and _"


class CatalogInvalid(ValueError):
    """The document is no catalog. `violations` has everything that is wrong with it."""

    def __init__(self, violations: tuple[str, ...]) -> None:
        super().__init__("; ".join(violations))
        self.violations = violations


@dataclass(frozen=True, slots=True)
class ResourceText:
    """A resource as the document describes it."""

    title: str
    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetText:
    """A permission set as the document describes it, "*" and the read that a write includes written out."""

    title: str
    description: str
    aliases: tuple[str, ...]
    permissions: frozenset[str]


@dataclass(frozen=True, slots=True)
class PlanText:
    """A plan as the document describes it, "*" written out."""

    title: str
    permission_sets: frozenset[str]
    set_titles: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Document:
    """A whole catalog in names, valid."""

    label: str
    account_resources: Mapping[str, ResourceText]
    project_resources: Mapping[str, ResourceText]
    permission_sets: Mapping[str, SetText]
    plans: Mapping[str, PlanText]


def read_document(values: Mapping[str, object]) -> Document:
    """The document of these plain values.

    Raises:
        CatalogInvalid: with every violation.
    """
    reading = _Reading()
    document = reading.document(values)
    if reading.violations:
        raise CatalogInvalid(tuple(reading.violations))
    return document


@dataclass(slots=True)
class _Reading:
    """One pass over a document. Each method reads one part and returns what it could make of it."""

    violations: list[str] = field(default_factory=list)
    # What "*" gives by action, once for all sets: a catalog may have a thousand of them, and a thousand resources.
    everything: dict[str, frozenset[str]] = field(default_factory=dict)

    def document(self, values: Mapping[str, object]) -> Document:
        values = self.table("catalog", values)
        self.known_keys("", values, ("schema", "version", *_TABLES))
        if type(values.get("schema")) is not int or values["schema"] != SCHEMA:  # True and 1.0 equal 1
            self.wrong("schema", f"must be {SCHEMA}")
        label = self.title("version", values.get("version"))
        tables = {name: self.named_table(name, values.get(name, {}), most) for name, most in _TABLES.items()}
        if any(len(tables[name]) > most for name, most in _TABLES.items()):
            return _NOTHING  # what follows takes time by the product of these sizes
        account, project = (
            {name: self.resource(_at(part, name), value) for name, value in tables[part].items()}
            for part in ("account_resources", "project_resources")
        )
        for name in sorted(account.keys() & project.keys()):
            self.wrong(_at("project_resources", name), "is an account resource too; a resource has one level")
        resources = {**account, **project}
        sets = {
            name: self.permission_set(_at("permission_sets", name), value, resources)
            for name, value in tables["permission_sets"].items()
        }
        self.distinct_aliases(sets)
        plans = {name: self.plan(_at("plans", name), value, sets) for name, value in tables["plans"].items()}
        for part in ("permission_sets", "plans"):
            if not tables[part]:
                self.wrong(part, "must have at least one entry")
        return Document(label, account, project, sets, plans)

    def resource(self, path: str, value: object) -> ResourceText:
        values = self.table(path, value)
        self.known_keys(path, values, ("title", "actions"))
        actions = self.names(f"{path}.actions", values.get("actions", []))
        for action in actions:
            if action not in ACTIONS:
                self.wrong(f"{path}.actions", f"{action[:80]!r} is no action; the actions are read and write")
        if not actions:
            self.wrong(f"{path}.actions", 'must be ["read"], ["write"] or ["read", "write"]')
        title = self.title(f"{path}.title", values.get("title"))
        return ResourceText(title, tuple(action for action in ACTIONS if action in actions))

    def permission_set(self, path: str, value: object, resources: Mapping[str, ResourceText]) -> SetText:
        values = self.table(path, value)
        self.known_keys(path, values, ("title", "description", "aliases", *ACTIONS))
        violations_before = len(self.violations)
        read, write = (
            self.permissions(f"{path}.{action}", values.get(action, []), action, resources) for action in ACTIONS
        )
        permissions = write if read <= write else read if write <= read else read | write
        if not permissions and len(self.violations) == violations_before:
            self.wrong(path, "must give a permission: name a resource under read or write")
        aliases = self.names(f"{path}.aliases", values.get("aliases", []))
        for alias in aliases:
            if _NAME.fullmatch(alias) is None:
                self.wrong(f"{path}.aliases", f"{alias[:80]!r} is no name; {_NAME_RULE}")
        title = self.title(f"{path}.title", values.get("title"))
        description = self.description(f"{path}.description", values.get("description", ""))
        return SetText(title, description, aliases, permissions)

    def permissions(
        self, path: str, value: object, action: str, resources: Mapping[str, ResourceText]
    ) -> frozenset[str]:
        """What a list of resources under `action` gives, the read that a write includes too."""
        names = self.names(path, value)
        if EVERY in names:
            if len(names) > 1:
                self.wrong(path, '"*" stands for every resource and must stand alone')
            if action not in self.everything:
                self.everything[action] = _given(resources, action, resources)
            return self.everything[action]
        for name in names:
            if name not in resources:
                self.wrong(path, f"{name[:80]!r} is no resource of this catalog")
            elif action not in resources[name].actions:
                self.wrong(path, f"{name} has no action {action}, only {', '.join(resources[name].actions)}")
        return _given((name for name in names if name in resources), action, resources)

    def distinct_aliases(self, sets: Mapping[str, SetText]) -> None:
        owner = {name: name for name in sets}
        for name, permission_set in sets.items():
            for alias in permission_set.aliases:
                if owner.setdefault(alias, name) != name or alias == name:
                    path = f"{_at('permission_sets', name)}.aliases"
                    self.wrong(path, f"{alias[:80]!r} already names the set {owner[alias][:80]}")

    def plan(self, path: str, value: object, sets: Mapping[str, SetText]) -> PlanText:
        values = self.table(path, value)
        self.known_keys(path, values, ("title", "permission_sets", "set_titles"))
        covered = self.names(f"{path}.permission_sets", values.get("permission_sets"))
        if EVERY in covered:
            if len(covered) > 1:
                self.wrong(f"{path}.permission_sets", '"*" stands for every permission set and must stand alone')
            covered = tuple(sets)
        covered_sets = frozenset(covered)
        for name in covered:
            if name not in sets:
                self.wrong(f"{path}.permission_sets", f"{name[:80]!r} is no permission set of this catalog")
        titles_path = f"{path}.set_titles"
        titles = self.table(titles_path, values.get("set_titles", {}))
        for name in titles:
            if name not in covered_sets:
                self.wrong(_at(titles_path, name), "must be a permission set that the plan covers")
        set_titles = {name: self.title(_at(titles_path, name), title) for name, title in titles.items()}
        title = self.title(f"{path}.title", values.get("title"))
        return PlanText(title, covered_sets, set_titles)

    # ---- the kinds of values

    def table(self, path: str, value: object) -> Mapping[str, object]:
        if not isinstance(value, Mapping):
            self.wrong(path, "must be a table")
            return {}
        texts = {key: entry for key, entry in value.items() if isinstance(key, str)}
        if len(texts) < len(value):
            self.wrong(path, "must have texts for keys")
        return texts

    def named_table(self, path: str, value: object, most: int) -> Mapping[str, object]:
        """A table whose keys are names that the catalog gives."""
        values = self.table(path, value)
        if len(values) > most:
            self.wrong(path, f"has {len(values)} entries, at most {most} are allowed")
        for key in values:
            if _NAME.fullmatch(key) is None:
                self.wrong(_at(path, key), _NAME_RULE)
        return values

    def names(self, path: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            self.wrong(path, "must be a list of names")
            return ()
        times = Counter(value)
        for name, count in times.items():
            if count > 1:
                self.wrong(path, f"names {name[:80]!r} more than once")
        return tuple(times)

    def title(self, path: str, value: object) -> str:
        return self.text(path, value, 1, LONGEST_TITLE, _CONTROL)

    def description(self, path: str, value: object) -> str:
        return self.text(path, value, 0, LONGEST_DESCRIPTION, _CONTROL_BUT_LINES)

    def text(self, path: str, value: object, shortest: int, longest: int, forbidden: re.Pattern[str]) -> str:
        if not isinstance(value, str):
            self.wrong(path, "must be a text")
            return ""
        if not shortest <= len(value) <= longest:
            self.wrong(path, f"has {len(value)} characters, {shortest} to {longest} are allowed")
        if forbidden.search(value):
            self.wrong(path, "has a control character")
        return value

    def known_keys(self, path: str, values: Mapping[str, object], known: tuple[str, ...]) -> None:
        for key in sorted(values.keys() - set(known)):
            self.wrong(_at(path, key), f"is unknown here; known are {', '.join(known)}")

    def wrong(self, path: str, sentence: str) -> None:
        self.violations.append(f"{path}: {sentence}")


_TABLES: Final = {
    "account_resources": MOST_RESOURCES,
    "project_resources": MOST_RESOURCES,
    "permission_sets": MOST_SETS,
    "plans": MOST_PLANS,
}


_NOTHING: Final = Document("", {}, {}, {}, {})


def _at(path: str, key: str) -> str:
    """The path of an entry, however long its key: a message never grows by the product of two lengths."""
    return f"{path}.{key[:80]}" if path else key[:80]


def _given(names: Iterable[str], action: str, resources: Mapping[str, ResourceText]) -> frozenset[str]:
    """The permissions on those of these resources that have the action."""
    included = ACTIONS if action == "write" else (action,)
    return frozenset(
        f"{name}:{given}"
        for name in names
        if action in resources[name].actions
        for given in included
        if given in resources[name].actions
    )
