"""What gRPC itself does with the calls of a channel: retries, balancing, health. There is no retry loop of ours.

- UNAVAILABLE alone is retried, at another server if there is one: up to five attempts within the call's deadline. Not
  retried are RPCs whose repeat is not the same call again: NOT_REPEATED.
- Retries stop while most attempts fail, so that clients do not multiply the load of servers that are coming back.
- With several servers: round_robin, and each must be SERVING for this service in gRPC's health protocol; a Doorward
  server says so while it holds a lease. With one server there is nowhere else to go, and its own answer says more.

Design section 8; the format is gRPC's service config. Called by `_channel.py`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NOT_REPEATED", "service_config"]

# Most attempts that gRPC allows.
ATTEMPTS: Final = 5
# In tokens: a failed attempt takes one, an answered call gives some back, and below half of them nothing is retried. As
# many as gRPC allows, for a killed server fails every call at once that it had, and each shall get its second attempt.
THROTTLING: Final = {"maxTokens": 1000, "tokenRatio": 0.5}
# A check has a deadline of tenths of a second, a change one of many seconds.
CHECK_BACKOFF: Final = {"initialBackoff": "0.02s", "maxBackoff": "0.2s", "backoffMultiplier": 2}
CHANGE_BACKOFF: Final = {"initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2}
CHECKING: Final = "doorward.v1.Authorizer"

# By service: a repeat after a change that was made but not answered would not end like the first call.
NOT_REPEATED: Final[Mapping[str, frozenset[str]]] = {
    "doorward.v1.Authorizer": frozenset({"StreamChecks", "Watch"}),  # streams are opened anew by who keeps them
    "doorward.v1.AccountAdmin": frozenset({"DeleteProject"}),  # NOT_FOUND the second time
    "doorward.v1.TokenAdmin": frozenset(
        {
            "UpdateToken",  # with an etag: ETAG_MISMATCH by its own first attempt
            "RevokeSelf",  # CREDENTIAL_UNRECOGNIZED the second time
        }
    ),
    "doorward.v1.SystemAdmin": frozenset(
        {
            "ApplyCatalog",  # raises the version again, or is refused for it
            "CreateOperator",  # another operator, and there is no request_id
        }
    ),
}


def service_config(service: str, *, is_balanced: bool) -> str:
    """The configuration of a channel that calls one service, as JSON."""
    backoff = CHECK_BACKOFF if service == CHECKING else CHANGE_BACKOFF
    retried = {
        "name": [{"service": service}],
        "retryPolicy": {"maxAttempts": ATTEMPTS, **backoff, "retryableStatusCodes": ["UNAVAILABLE"]},
    }
    alone = {"name": [{"service": service, "method": method} for method in sorted(NOT_REPEATED[service])]}
    config: dict[str, Any] = {"methodConfig": [retried, alone], "retryThrottling": THROTTLING}
    if is_balanced:
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        config["healthCheckConfig"] = {"serviceName": service}
    return json.dumps(config)
