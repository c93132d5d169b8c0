"""What a process keeps in memory of a token and of its account: exact tuples, and the names of their places.

Tuples of str, int, bytes, bool and None, because CPython takes such tuples off the garbage collector's lists, however
deep they nest, and a hundred thousand of them then cost its passes nothing; instances of classes, NamedTuples and enum
members it keeps. So entries are made by `token_entry` and `account_entry` only, which see to that, and read by the index
constants below. Used by loads (which make entries), `matrix` and `token_table` (design sections 2, 7, 11).
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias, TypeVar

T = TypeVar("T")


class AccountState(IntEnum):
    """State of an account, in the numbers of the contract."""

    ACTIVE = 1
    SUSPENDED = 2
    DELETED = 3


class Grant(NamedTuple):
    """One permission set on all projects of the account (None) or on the named ones. An empty tuple gives nothing."""

    permission_set: str
    project_ids: tuple[str, ...] | None


# The same as a plain pair, which is how an entry holds it. A Grant is one too.
GrantEntry: TypeAlias = tuple[str, tuple[str, ...] | None]

# version, digest or None, the id of the pepper it was made under or None, the time it ends or None for never
SecretEntry: TypeAlias = tuple[int, bytes | None, str | None, int | None]
SECRET_VERSION: Final = 0
SECRET_DIGEST: Final = 1
SECRET_PEPPER_ID: Final = 2
SECRET_NOT_AFTER_US: Final = 3

# What suspended grants would give: account-level mask, mask on all projects, named projects in order, the mask of each
SuspendedGains: TypeAlias = tuple[int, int, tuple[str, ...], tuple[int, ...]]
SUSPENDED_ACCOUNT_MASK: Final = 0
SUSPENDED_ALL_PROJECTS_MASK: Final = 1
SUSPENDED_PROJECT_IDS: Final = 2
SUSPENDED_MASKS: Final = 3

# The catalog's version and the plan it was compiled under; the masks of account-level permissions and of project-level
# ones on all projects; the named projects in order and the mask of each; the account-level permissions that grants on
# named projects hold in vain; the union of the masks of the named projects; what suspended grants would give, or None
Compiled: TypeAlias = tuple[int, str, int, int, tuple[str, ...], tuple[int, ...], int, int, SuspendedGains | None]
COMPILED_CATALOG_VERSION: Final = 0
COMPILED_PLAN: Final = 1
COMPILED_ACCOUNT_MASK: Final = 2
COMPILED_ALL_PROJECTS_MASK: Final = 3
COMPILED_PROJECT_IDS: Final = 4
COMPILED_MASKS: Final = 5
COMPILED_NAMED_ACCOUNT_MASK: Final = 6
COMPILED_ANY_PROJECT_MASK: Final = 7
COMPILED_SUSPENDED: Final = 8

# Gives nothing and is current for no catalog, whose versions begin at 0.
NEVER_COMPILED: Final[Compiled] = (-1, "", 0, 0, (), (), 0, 0, None)

# token id, account id, revoked, disabled, time of expiry or None for never, live secrets, grants, compiled
TokenEntry: TypeAlias = tuple[
    str, str, bool, bool, int | None, tuple[SecretEntry, ...], tuple[GrantEntry, ...], Compiled
]
TOKEN_ID: Final = 0
TOKEN_ACCOUNT_ID: Final = 1
TOKEN_IS_REVOKED: Final = 2
TOKEN_IS_DISABLED: Final = 3
TOKEN_EXPIRE_US: Final = 4
TOKEN_SECRETS: Final = 5
TOKEN_GRANTS: Final = 6
TOKEN_COMPILED: Final = 7

# account id, plan, state (an AccountState's number, not the member)
AccountEntry: TypeAlias = tuple[str, str, int]
ACCOUNT_ID: Final = 0
ACCOUNT_PLAN: Final = 1
ACCOUNT_STATE: Final = 2

# operator id, role, revoked, time of expiry or None for never, secrets (one)
OperatorEntry: TypeAlias = tuple[str, str, bool, int | None, tuple[SecretEntry, ...]]
OPERATOR_ID: Final = 0
OPERATOR_ROLE: Final = 1
OPERATOR_IS_REVOKED: Final = 2
OPERATOR_EXPIRE_US: Final = 3
OPERATOR_SECRETS: Final = 4


def token_entry(
    token_id: str,
    account_id: str,
    *,
    revoked: bool,
    disabled: bool,
    expire_us: int | None,
    secrets: Iterable[SecretEntry],
    grants: Iterable[GrantEntry],
) -> TokenEntry:
    """A token as it is kept, not compiled yet: `matrix.compile_token` does that on first use."""
    plain_grants = tuple((name, ids if ids is None else tuple(ids)) for name, ids in grants)
    return (
        token_id,
        shared(account_id),
        bool(revoked),
        bool(disabled),
        expire_us,
        tuple((version, digest, pepper_id, not_after_us) for version, digest, pepper_id, not_after_us in secrets),
        shared(plain_grants) if sum(len(ids or ()) for _, ids in plain_grants) <= _LONGEST_SHARED else plain_grants,
        NEVER_COMPILED,
    )


def account_entry(account_id: str, plan: str, state: int) -> AccountEntry:
    """An account as it is kept; state may be an `AccountState`."""
    return (account_id, shared(plan), int(state))


def operator_entry(
    operator_id: str, role: str, *, revoked: bool, expire_us: int | None, secrets: Iterable[SecretEntry]
) -> OperatorEntry:
    """An operator as it is kept; role is the plain text of the database."""
    plain_secrets = tuple((version, digest, pepper, not_after) for version, digest, pepper, not_after in secrets)
    return (operator_id, shared(str(role)), bool(revoked), expire_us, plain_secrets)


def find_live_secret(secrets: tuple[SecretEntry, ...], version: int, now_us: int) -> SecretEntry | None:
    """The secret of this version if it has not ended at now_us, else None: then the text is not recognized."""
    for secret in secrets:
        if secret[SECRET_VERSION] == version:
            not_after_us = secret[SECRET_NOT_AFTER_US]
            return secret if not_after_us is None or now_us < not_after_us else None
    return None


# Tokens are alike: most have one of a few hundred grants, masks and plans. One object for equal ones saves more than
# half of an entry. Emptied when full: what is in use goes on being used, and the next equal ones share anew.
_SHARED_LIMIT: Final = 4_096
_LONGEST_SHARED: Final = 16  # longer tuples are rarely equal, and would be kept here after the last token that had them
_shared: dict[object, object] = {}


def shared(value: T) -> T:
    """The same value, as the object that was given first among equal ones of late. Values of one type only are equal."""
    if isinstance(value, tuple) and len(value) > _LONGEST_SHARED:
        return value
    if len(_shared) >= _SHARED_LIMIT:
        _shared.clear()
    return _shared.setdefault(value, value)  # type: ignore[return-value]
