"""Writes what changes of a token in place: its fields, grants and labels, and whether it is disabled (design section 6).

Called by `service/update.py` and `service/switch.py`, inside the door: the row of the token's account is locked, so that
what was decided on still stands. Secrets are `token_secrets.py`'s.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from doorward_server.storage.tokens import flatten

if TYPE_CHECKING:
    from doorward_server.model import Token
    from doorward_server.storage.transaction import Transaction

__all__ = ["set_disabled", "update"]

# One round trip. Rows that stay are left as they are, so no statement deletes what another one of it inserts. Grants
# and labels carry the token's ordinal: lists that filter by them follow the order of issue.
UPDATE = """
WITH token AS (
    UPDATE tokens
    SET display_name = $2, description = $3, labels = $4::jsonb, allow_self_rotation = $5, expire_time = $6,
        update_time = $7
    WHERE token_id = $1
    RETURNING account_id, ordinal
), ungranted AS (
    DELETE FROM grants
    WHERE token_id = $1
      AND NOT EXISTS (
          SELECT FROM unnest($8::text[], $9::text[]) AS given (permission_set, scope)
          WHERE given.permission_set = grants.permission_set AND given.scope = grants.scope
      )
), granted AS (
    INSERT INTO grants (token_id, account_id, permission_set, scope, ordinal)
    SELECT $1, account_id, given.permission_set, given.scope, ordinal
    FROM token, unnest($8::text[], $9::text[]) AS given (permission_set, scope)
    ON CONFLICT DO NOTHING
), unlabelled AS (
    DELETE FROM token_labels WHERE token_id = $1 AND key <> ALL ($10::text[])
)
INSERT INTO token_labels (account_id, key, value, ordinal, token_id)
SELECT account_id, given.key, given.value, ordinal, $1
FROM token, unnest($10::text[], $11::text[]) AS given (key, value)
ON CONFLICT (token_id, key) DO UPDATE SET value = excluded.value WHERE token_labels.value <> excluded.value
"""

SET_DISABLED = "UPDATE tokens SET disabled = $2, update_time = $3 WHERE token_id = $1"


async def update(tx: Transaction, token: Token) -> None:
    """Writes the token's fields that can be updated, and its grants and labels whole. Its account's row is locked."""
    sets, scopes = flatten(token.grants)
    labels = dict(token.labels)
    await tx.connection.execute(
        UPDATE,
        token.token_id,
        token.display_name,
        token.description,
        json.dumps(labels, sort_keys=True),
        token.allow_self_rotation,
        token.expire_time,
        token.update_time,
        sets,
        scopes,
        list(labels),
        list(labels.values()),
    )
    tx.wrote_token(token.token_id)


async def set_disabled(tx: Transaction, token_id: str, *, disabled: bool) -> None:
    """Disables or enables the token at `tx.now`. Its account's row is locked."""
    await tx.connection.execute(SET_DISABLED, token_id, disabled, tx.now)
    tx.wrote_token(token_id)
