"""What the guards of gRPC have in common: ids in messages and metadata, refusals as statuses, handlers of four kinds.

Where an id may stand:
    "project_id", "job.project_id"   a field of the request message. Of a stream of requests: of its first message, which
                                     the guard reads before the handler runs; a later message may repeat the id or leave it
                                     empty, and one that names another ends the stream.
    from_metadata("project-id")      a key of the call's metadata, once. Nothing is read before the handler runs.
    a callable                       is given the message, and returns the id; of a stream, as a field.

Nothing here waits. Design section 8; google.rpc for the details of a status.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from google.rpc import error_details_pb2, status_pb2

from doorward.integrations._guard import question_of, secret_in
from doorward.integrations._refusals import Kind, NotAdmitted, Refusal
from doorward.integrations._rules import Needs, Open, Rule, id_in

if TYPE_CHECKING:
    from doorward.integrations._guard import Gate, Question

__all__ = [
    "DOMAIN",
    "HEALTH",
    "FromMetadata",
    "Place",
    "Rules",
    "Table",
    "behaviour_of",
    "from_metadata",
    "handler_like",
    "is_in_metadata",
    "question_in",
    "require_same",
    "require_secret",
    "status_of",
]

# Of ErrorInfo: these reasons are the guard's, and stand for the guarded service.
DOMAIN: Final = "doorward.guard"
# What a load balancer calls without a credential: `**dict.fromkeys(HEALTH, OPEN)`.
HEALTH: Final = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")

_PATH: Final = re.compile(r"/[A-Za-z_][A-Za-z0-9_.]*/[A-Za-z_][A-Za-z0-9_]*")
_FIELDS: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_KEY: Final = re.compile(r"(?!.*-bin$)[0-9a-z_.-]+")
_CODES: Final = {
    Kind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Kind.DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Kind.UNCLEAR: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.UNDECIDED: grpc.StatusCode.UNAVAILABLE,
    Kind.FAILED: grpc.StatusCode.INTERNAL,
}


@dataclass(frozen=True, slots=True)
class FromMetadata:
    """A key of the call's metadata."""

    key: str


Place: TypeAlias = str | FromMetadata | Callable[[Any], str]
Rules: TypeAlias = Mapping[str, Rule[Place]]
Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]


def from_metadata(key: str) -> FromMetadata:
    """The id stands in the call's metadata.

    Raises:
        ValueError: no key that holds text.
    """
    if _KEY.fullmatch(key) is None or key == "authorization":
        raise ValueError(f"{key!r} is no key of metadata that holds an id; they are in lower case, without -bin")
    return FromMetadata(key)


class Table:
    """Which rule a method has."""

    def __init__(self, rules: Rules) -> None:
        """Looks at every rule once, so that a mistake ends the start of the service and not a request.

        Raises:
            ValueError: a method or a place that cannot be one.
            TypeError: something that is no rule.
        """
        for method, rule in rules.items():
            if _PATH.fullmatch(method) is None:
                raise ValueError(f"{method!r} is no method; write /package.Service/Method")
            if isinstance(rule, Open):
                continue
            if not isinstance(rule, Needs):
                raise TypeError(f"{method}: a rule is Needs(…) or OPEN")
            place = rule.place
            if isinstance(place, str) and _FIELDS.fullmatch(place) is None:
                raise ValueError(f"{method}: {place!r} is no field of a message; write project_id or job.project_id")
            if not isinstance(place, str | FromMetadata) and not callable(place):
                raise TypeError(
                    f"{method}: an id stands in a field, in from_metadata(…), or is what a callable returns"
                )
        self._rules = dict(rules)

    def find(self, method: str) -> Rule[Place] | None:
        """The rule of a method as gRPC names it, or None: it is refused."""
        return self._rules.get(method)


def is_in_metadata(needs: Needs[Place]) -> bool:
    """Whether the id is known before any message has come."""
    return isinstance(needs.place, FromMetadata)


def question_in(gate: Gate[Any], needs: Needs[Place], metadata: Metadata | None, message: object) -> Question:
    """What a call asks for. `message`: the request, or the first one; None where the id stands in the metadata.

    Raises:
        NotAdmitted: credential or id are missing, repeated or malformed, or the rule does not fit the message.
    """
    with gate.closed_on_error():
        pairs = tuple(metadata or ())
        secret = secret_in(value for key, value in pairs if key == "authorization")
        place = needs.place
        if isinstance(place, FromMetadata):
            found = id_in(tuple(value for key, value in pairs if key == place.key), needs.id_name)
        else:
            found = id_in((_read(place, message),), needs.id_name)
        return question_of(needs, secret, found)


def require_secret(gate: Gate[Any], metadata: Metadata | None) -> None:
    """Before a stream is read at all.

    Raises:
        NotAdmitted: its credential is missing, repeated or malformed.
    """
    with gate.closed_on_error():
        secret_in(value for key, value in metadata or () if key == "authorization")


def require_same(gate: Gate[Any], needs: Needs[Place], question: Question, message: object) -> None:
    """A later message of a stream is about what its first one was about.

    Raises:
        NotAdmitted: it names something else, which nobody was asked about.
    """
    place = needs.place
    if isinstance(place, FromMetadata):
        return
    with gate.closed_on_error():
        if _read(place, message) not in {"", None, question.project_id or question.account_id}:
            sentence = f"Every message of this stream must name the same {needs.id_name}, or none."
            raise NotAdmitted(Refusal(Kind.DENIED, "RESOURCE_CHANGED", sentence, needs.permission))


def status_of(refusal: Refusal) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """A refusal as code, message and trailing metadata: ErrorInfo with the reason, and RetryInfo where a repeat helps."""
    code = _CODES[refusal.kind]
    status = status_pb2.Status(code=code.value[0], message=refusal.message)
    metadata = {"permission": refusal.permission} if refusal.permission else {}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=metadata))
    if refusal.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(refusal.retry_after_s * 1000))
        status.details.add().Pack(retry)
    return code, refusal.message, (("grpc-status-details-bin", status.SerializeToString()),)


def handler_like(handler: grpc.RpcMethodHandler[Any, Any], behaviour: Callable[..., Any]) -> Any:
    """A handler of the same kind, with the same messages, that behaves so."""
    make = (
        (grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler),
        (grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler),
    )[bool(handler.request_streaming)][bool(handler.response_streaming)]
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def behaviour_of(handler: grpc.RpcMethodHandler[Any, Any]) -> Callable[..., Any]:
    """The one of its four functions that it has."""
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    behaviour: Callable[..., Any] = getattr(handler, kind)
    return behaviour


def _read(place: str | Callable[[Any], str], message: object) -> object:
    if not isinstance(place, str):
        return place(message)
    found = message
    for name in place.split("."):
        found = getattr(found, name)
    return found
