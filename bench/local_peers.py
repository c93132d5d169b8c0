"""cedarpy, casbin and a dict lookup, with Doorward's model and questions. Run by `local.py` with the peers' own Python.

Standard input: a line of JSON with the model and the questions; then a line with a peer's name for each round. The first is
answered by the answers of every peer, the others by `{ns}` for a check. It ends with its input, and imports nothing of ours.

Every peer may keep what it can: Cedar's policies and entities are parsed once, casbin's model is loaded once. The set of a
grant is a policy (Cedar) or a role (casbin), its scope a project or all of an account, as in Doorward.
"""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import casbin
import cedarpy

if TYPE_CHECKING:
    from collections.abc import Callable

CASBIN_MODEL: Final = """
[request_definition]
r = sub, act, acc, dom
[policy_definition]
p = sub, act
[role_definition]
g = _, _, _
[policy_effect]
e = some(where (p.eft == allow))
[matchers]
m = r.act == p.act && (g(r.sub, p.sub, r.dom) || g(r.sub, p.sub, r.acc))
"""


def cedar(job: dict[str, Any]) -> list[Callable[[], bool]]:
    """A policy for each permission set; a token's entity names the projects, or the account, that it holds the set on."""
    names = sorted(job["sets"])
    policies = "\n".join(
        f'permit(principal, action in Action::"{name}", resource) '
        f"when {{ principal has {name} && resource in principal.{name} }};"
        for name in names
    )
    actions: dict[str, list[str]] = {}
    for name in names:
        for permission in job["sets"][name]:
            actions.setdefault(permission, []).append(name)
    account = _uid("Account", job["account_id"])
    entities = [
        _entity(account),
        *(_entity(_uid("Action", name)) for name in names),
        *(_entity(_uid("Action", name), [_uid("Action", held) for held in sets]) for name, sets in actions.items()),
        *(_entity(_uid("Project", name), [account]) for name in job["projects"]),
    ]
    for token_id, grants in job["grants"].items():
        scopes = {name: account if scope == "*" else _uid("Project", scope) for name, scope in grants}
        attrs = {name: [{"__entity": scope}] for name, scope in scopes.items()}
        entities.append({**_entity(_uid("Token", token_id)), "attrs": attrs})
    parsed, graph = cedarpy.PolicySet.from_str(policies), cedarpy.Entities.from_json_str(json.dumps(entities))

    def question(token_id: str, permission: str, project_id: str | None) -> Callable[[], bool]:
        request = {
            "principal": _uid("Token", token_id),
            "action": _uid("Action", permission),
            "resource": _uid("Project", project_id) if project_id else account,
            "context": {},
        }
        return lambda: bool(cedarpy.is_authorized(request, parsed, graph).allowed)

    return [question(*asked) for asked in job["questions"]]


def _uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


def _entity(uid: dict[str, str], parents: list[dict[str, str]] | None = None) -> dict[str, Any]:
    return {"uid": uid, "attrs": {}, "parents": parents or []}


def casbin_rbac(job: dict[str, Any]) -> list[Callable[[], bool]]:
    """RBAC with domains: a role for each set, whose domain is the project, or the account for all of it."""
    enforcer = casbin.Enforcer(casbin.Enforcer.new_model(text=CASBIN_MODEL))
    enforcer.add_policies([[name, permission] for name, held in job["sets"].items() for permission in held])
    account_id = job["account_id"]
    links = [
        [token_id, name, account_id if scope == "*" else scope]
        for token_id, grants in job["grants"].items()
        for name, scope in grants
    ]
    enforcer.add_grouping_policies(links)

    def question(token_id: str, permission: str, project_id: str | None) -> Callable[[], bool]:
        place = project_id or account_id
        return lambda: bool(enforcer.enforce(token_id, permission, account_id, place))

    return [question(*asked) for asked in job["questions"]]


def lookup(job: dict[str, Any]) -> list[Callable[[], bool]]:
    """What is left when everything was decided before: for scale."""
    asked = [tuple(question) for question in job["questions"]]
    answers = dict(zip(asked, job["expected"], strict=True))

    def question(key: tuple[Any, ...]) -> Callable[[], bool]:
        return lambda: bool(answers[key])

    return [question(key) for key in asked]


def main() -> None:
    """Measures a round of the peer that each line names."""
    job = json.loads(sys.stdin.readline())
    peers = {"cedarpy": cedar(job), "casbin": casbin_rbac(job), "lookup": lookup(job)}
    print(json.dumps({name: [question() for question in questions] for name, questions in peers.items()}), flush=True)
    for line in sys.stdin:
        name = json.loads(line)
        times = job["times"][name]
        questions = peers[name]
        began = time.perf_counter_ns()
        for _ in range(times):
            for question in questions:
                question()
        print(json.dumps({"ns": (time.perf_counter_ns() - began) / times / len(questions)}), flush=True)


if __name__ == "__main__":
    main()
