"""What a watcher asks for: its hello, and what a resolve is answered (contract, Watch; design section 7, Watchers).

Each answer is one step without an await: the entry is looked up, its keys are held from then on, and the snapshot is
queued. What is missing is named, and the step is made anew when it was brought. Called by `watch.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.core.entries import TOKEN_GRANTS, TOKEN_ID
from doorward.core.secret import SecretKind, find_secret
from doorward_server.api.fields import Fields
from doorward_server.replica import watch_refusals
from doorward_server.replica.caches import Missing
from doorward_server.replica.watch_messages import (
    ProjectSnapshot,
    TokenSnapshot,
    UnrecognizedSnapshot,
    keys_of_token,
)
from doorward_server.replica.watchers import MOST_HELD

if TYPE_CHECKING:
    from doorward.core.entries import TokenEntry
    from doorward.v1 import authorizer_pb2 as pb
    from doorward_server.api.asking import Asked
    from doorward_server.replica.holding import Holding
    from doorward_server.replica.recognition import Recognition
    from doorward_server.replica.watch_session import Session
    from doorward_server.service.authorize import Authorizer

__all__ = ["WatchAnswers", "required_hello"]

LONGEST_AGENT: Final = 100
# Of the project ids in a snapshot, so that it fits the largest message (4 MiB) with all that stands around them.
MOST_PROJECT_BYTES: Final = 3 * 1024 * 1024
# What surrounds an id in a message.
ID_BYTES: Final = 2


class WatchAnswers:
    """Answers resolves, under the lease that the caller has captured."""

    def __init__(self, authorizer: Authorizer, recognition: Recognition, holding: Holding) -> None:
        self._authorizer = authorizer
        self._tokens = recognition.tokens
        self._holding = holding

    def token(self, session: Session, request_id: int, text: bytes, asked: Asked) -> bool | Missing:
        """Queues the token of a secret, or that it is not recognized; or names what is missing to tell.

        Raises:
            Unavailable: NO_LEASE.
            Exhausted: TOO_MANY_REQUESTS, too much is held, or the token does not fit a message.
        """
        watchers = self._holding.watchers
        holder = self._authorizer.find_holder(text, asked.catalog, asked.now_us, asked.refuted)
        if isinstance(holder, Missing):
            return holder
        if holder is None:
            secret = find_secret(text, SecretKind.TOKEN)
            token_id = "" if secret is None else secret.subject_id
            keys = () if secret is None else (f"token:{token_id}",)
            watchers.snapshot(session, UnrecognizedSnapshot(request_id, token_id), keys)
            return True
        token, account = holder
        if _project_bytes(token) > MOST_PROJECT_BYTES:
            raise watch_refusals.is_too_large()
        version = self._tokens.version_of(text)
        if version is None:
            # So many secrets were proved meanwhile that this proof is forgotten.
            return Missing("proof", token[TOKEN_ID])
        watchers.snapshot(session, TokenSnapshot(request_id, token, account, version), keys_of_token(token))
        # Presented it was, and from here on nobody is told of its uses.
        self._holding.used[token[TOKEN_ID]] = asked.now_us
        return True

    def project(self, session: Session, request_id: int, project_id: str) -> bool | Missing:
        """The same of a project.

        Raises:
            Unavailable, Exhausted: as `token`.
        """
        owner = self._authorizer.find_project_account(project_id)
        if isinstance(owner, Missing):
            return owner
        snapshot = ProjectSnapshot(request_id, project_id, owner)
        self._holding.watchers.snapshot(session, snapshot, (f"project:{project_id}",))
        return True


def _project_bytes(token: TokenEntry) -> int:
    return sum(ID_BYTES + len(project_id) for _, ids in token[TOKEN_GRANTS] for project_id in ids or ())


def required_hello(message: pb.WatchRequest) -> pb.WatchRequest.Hello:
    """What opens a session. A warm start is never granted: a position without its nonce may be another history's.

    Raises:
        InvalidArgument: INVALID_FIELDS.
    """
    fields = Fields()
    if message.WhichOneof("body") != "hello":
        fields.wrong("hello", "is required: it is the first message of a session", "FIELD_REQUIRED")
        fields.done()
    hello = message.hello
    fields.text("hello.agent", hello.agent, longest=LONGEST_AGENT)
    if hello.resume_position:
        fields.revision("hello.resume_position", hello.resume_position)
    elif hello.resume_keys:
        fields.wrong("hello.resume_keys", "must be empty without a resume_position", "FIELD_CONFLICT")
    if len(hello.resume_keys) > MOST_HELD:
        text = f"has {len(hello.resume_keys)} keys; at most {MOST_HELD} are allowed"
        fields.wrong("hello.resume_keys", text, "TOO_MANY_ITEMS")
    fields.done()
    return hello
