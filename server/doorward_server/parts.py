"""The parts of one server process, wired: the replica that holds the matrix, the use cases, and the method table over them.

Nothing runs yet, and nothing here decides anything: `app.py` starts and stops the parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from doorward.core.token_table import Tables
from doorward_server.api.account_admin import AccountAdmin
from doorward_server.api.asking import Asking
from doorward_server.api.audit_events import AuditEvents
from doorward_server.api.authorizer import AuthorizerApi
from doorward_server.api.catalog_admin import CatalogAdmin
from doorward_server.api.explain import ExplainApi
from doorward_server.api.operator_admin import OperatorAdmin
from doorward_server.api.permitted import PermittedApi
from doorward_server.api.project_admin import ProjectAdmin
from doorward_server.api.stream_checks import StreamChecks
from doorward_server.api.system_admin import SystemAdmin
from doorward_server.api.token_admin import TokenAdmin
from doorward_server.api.token_changes import TokenChanges
from doorward_server.api.token_ends import TokenEnds
from doorward_server.api.token_lists import TokenLists
from doorward_server.api.token_self import TokenSelf
from doorward_server.api.watch import WatchApi
from doorward_server.api.wrapper import Binder
from doorward_server.credentials.hashing import Hasher
from doorward_server.replica.barrier import Barrier
from doorward_server.replica.caches import Caches
from doorward_server.replica.feed import Feed
from doorward_server.replica.holding import Holding
from doorward_server.replica.lease_keeper import LeaseKeeper, Reporter
from doorward_server.replica.recognition import Recognition
from doorward_server.replica.usage import Usage
from doorward_server.service.account_states import AccountStates
from doorward_server.service.accounts import Accounts
from doorward_server.service.administration import Administration
from doorward_server.service.allowances import Allowances
from doorward_server.service.audit import Audit
from doorward_server.service.authorize import Authorizer
from doorward_server.service.callers import Callers
from doorward_server.service.catalog_apply import CatalogApply
from doorward_server.service.catalog_preview import CatalogPreviews
from doorward_server.service.catalog_text import CatalogTexts
from doorward_server.service.catalogs import Catalogs
from doorward_server.service.find_tokens import FindTokens
from doorward_server.service.freshness import Freshness
from doorward_server.service.idempotency import Idempotency
from doorward_server.service.issue import Issue
from doorward_server.service.mutations import Mutations
from doorward_server.service.new_secrets import NewSecrets
from doorward_server.service.operators import Operators
from doorward_server.service.permitted import Permitted
from doorward_server.service.plan_preview import PlanPreviews
from doorward_server.service.projects import Projects
from doorward_server.service.propagation import AwaitPropagation
from doorward_server.service.refusals import Refusals
from doorward_server.service.report_leaked import REPORT_EVERY_NS, REPORTS_AT_ONCE, ReportLeaked
from doorward_server.service.retention import Retention
from doorward_server.service.revoke import Revoke
from doorward_server.service.revoke_many import RevokeMany
from doorward_server.service.rotate import Rotate
from doorward_server.service.self_service import SelfService
from doorward_server.service.switch import Switch
from doorward_server.service.system import System
from doorward_server.service.token_mutations import TokenMutations
from doorward_server.service.tokens import Tokens
from doorward_server.service.update import Update
from doorward_server.storage.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable

    from doorward_server.api.methods import Method
    from doorward_server.credentials.pepper import PepperRing
    from doorward_server.replica.tasks import Tasks
    from doorward_server.replica.timing import Timing
    from doorward_server.settings import Settings
    from doorward_server.storage.pool import Database

__all__ = ["ReplicaParts", "methods_of"]


class ReplicaParts:
    """The parts of one replica, wired. Nothing runs yet."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        ring: PepperRing,
        timing: Timing,
        tasks: Tasks,
        on_registering: Callable[[str], None] | None = None,
    ) -> None:
        self.timing = timing
        tables = Tables(settings.token_cache)
        self.holding = Holding(
            self.timing,
            hold_ms=settings.hold_ms,
            tables=tables,
            proofs=settings.token_cache,
            # A watcher keeps its place for long: one of two is left for calls that come and go, and for StreamChecks.
            max_watchers=min(settings.max_watchers, settings.max_concurrent_rpcs // 2),
        )
        self.lines = [Line(database) for _ in range(3)]
        self.keeper = LeaseKeeper(self.holding, self.lines[0], settings.listen, on_registering)
        self.reporter = Reporter(self.holding, self.lines[1], self.keeper)
        self.feed = Feed(self.holding, self.lines[2], listen=settings.database_pooler == "session")
        self.hasher = Hasher(timing.clock)
        self.caches = Caches(self.holding, database, tasks)
        self.recognition = Recognition(self.holding, self.caches, database, ring, self.hasher)
        self.mutations = Mutations(Barrier(database, self.timing), tasks)
        self.refusals = Refusals(database, self.timing)
        self.usage = Usage(self.holding, database, settings.usage_interval)
        self.retention = Retention(settings, database, self.timing)


def methods_of(settings: Settings, database: Database, ring: PepperRing, replica: ReplicaParts) -> list[Method]:
    """Every use case, and the method table over them."""
    holding, mutations = replica.holding, replica.mutations
    catalogs = Catalogs()
    callers = Callers(holding, replica.recognition, database, catalogs)
    tokens = Tokens(database, catalogs)
    new_secrets, idempotency = NewSecrets(ring, replica.hasher), Idempotency(ring)
    issue = Issue(
        database,
        mutations,
        callers,
        catalogs,
        new_secrets,
        idempotency,
        max_live_tokens=settings.max_live_tokens,
    )
    token_mutations = TokenMutations(database, mutations, callers, catalogs)
    revoke, waiting = Revoke(token_mutations), AwaitPropagation(database, mutations)
    itself = SelfService(database, tokens, revoke)
    rotate = Rotate(database, token_mutations, new_secrets, idempotency)
    changes = TokenChanges(
        Update(database, catalogs, token_mutations),
        rotate,
        Switch(token_mutations),
        settings,
    )
    binder = Binder(callers)
    return [
        *_administration(settings, database, replica, callers, catalogs, new_secrets, binder),
        *TokenAdmin(tokens, issue, revoke, waiting, settings).methods(binder),
        *_finding_and_ending(settings, database, replica, callers, catalogs, binder),
        *TokenSelf(itself, rotate).methods(binder),
        *AuditEvents(Audit(database), max_page=settings.max_page).methods(binder),
        *changes.methods(binder),
        *_authorizer(settings, database, replica, callers, catalogs, tokens),
    ]


def _finding_and_ending(
    settings: Settings, database: Database, replica: ReplicaParts, callers: Callers, catalogs: Catalogs, binder: Binder
) -> list[Method]:
    """What finds tokens, and what ends many of them or one whose secret leaked."""
    find = FindTokens(database, catalogs)
    allowances = Allowances(replica.timing, burst=REPORTS_AT_ONCE, interval_ns=REPORT_EVERY_NS)
    leaked = ReportLeaked(database, replica.mutations, replica.recognition, replica.refusals, allowances)
    many = RevokeMany(database, replica.mutations, callers, catalogs)
    return [
        *TokenLists(find, settings).methods(binder),
        *TokenEnds(find, many, leaked, settings).methods(binder),
    ]


def _authorizer(
    settings: Settings,
    database: Database,
    replica: ReplicaParts,
    callers: Callers,
    catalogs: Catalogs,
    tokens: Tokens,
) -> list[Method]:
    """What is decided from memory, and what is told about it: Authorizer."""
    holding = replica.holding
    authorizer = Authorizer(holding, replica.caches, replica.recognition)
    asking, freshness = Asking(authorizer, callers), Freshness(holding, replica.keeper, database)
    checks = AuthorizerApi(
        holding, authorizer, callers, replica.recognition, freshness, tokens, max_batch=settings.max_batch
    )
    permitted = Permitted(database, catalogs, holding, freshness)
    # A stream keeps its place for long; three of four places are left for calls that come and go.
    most_streams = max(1, settings.max_concurrent_rpcs // 4)
    return [
        *checks.methods(),
        *ExplainApi(asking, authorizer, freshness).methods(),
        *PermittedApi(asking, permitted, holding, max_page=settings.max_page).methods(),
        *StreamChecks(asking, checks, most_streams=most_streams).methods(),
        *WatchApi(asking, authorizer, callers, replica.recognition, holding).methods(),
    ]


def _administration(
    settings: Settings,
    database: Database,
    replica: ReplicaParts,
    callers: Callers,
    catalogs: Catalogs,
    new_secrets: NewSecrets,
    binder: Binder,
) -> list[Method]:
    """What operators alone may call: AccountAdmin and SystemAdmin."""
    administration = Administration(database, replica.mutations, callers)
    accounts, states = Accounts(database, administration, catalogs), AccountStates(administration)
    projects, operators = Projects(database, administration), Operators(database, administration, new_secrets)
    system, texts = System(database), CatalogTexts()
    previewing, applying = (
        CatalogPreviews(database, catalogs, texts),
        CatalogApply(database, administration, catalogs, texts),
    )
    most = settings.max_page
    return [
        *AccountAdmin(accounts, states, PlanPreviews(database, catalogs), max_page=most).methods(binder),
        *ProjectAdmin(projects, max_page=most).methods(binder),
        *CatalogAdmin(system, texts, previewing, applying, max_page=most).methods(binder),
        *OperatorAdmin(operators, max_page=most).methods(binder),
        *SystemAdmin(system, max_page=most).methods(binder),
    ]
