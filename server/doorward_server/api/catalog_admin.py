"""SystemAdmin, the RPCs of the catalog: parse, call the use case, answer."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from doorward.v1 import system_admin_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.fields import Fields
from doorward_server.api.paging import next_page_token, page_of, require_pair
from doorward_server.api.requests import request_of
from doorward_server.service.catalog_apply import ApplyCatalog

if TYPE_CHECKING:
    from doorward.core.catalog import Catalog
    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.catalog.diff import ResourceChange
    from doorward_server.service.catalog_apply import CatalogApply
    from doorward_server.service.catalog_preview import CatalogPreviews, CountedPlan, CountedSet, TokenChange
    from doorward_server.service.catalog_text import CatalogTexts
    from doorward_server.service.system import System

__all__ = ["CatalogAdmin"]

SERVICE: Final = "/doorward.v1.SystemAdmin/"


class CatalogAdmin:
    """The RPCs."""

    def __init__(
        self,
        system: System,
        texts: CatalogTexts,
        previews: CatalogPreviews,
        applying: CatalogApply,
        *,
        max_page: int,
    ) -> None:
        self._system = system
        self._texts = texts
        self._previews = previews
        self._applying = applying
        self._max_page = max_page

    def methods(self, binder: Binder) -> list[Method]:
        """Their part of the method table."""
        return [
            binder.method(SERVICE + "GetCatalog", pb.GetCatalogRequest, self.get_catalog),
            binder.method(SERVICE + "PreviewCatalog", pb.PreviewCatalogRequest, self.preview_catalog),
            binder.method(SERVICE + "ApplyCatalog", pb.ApplyCatalogRequest, self.apply_catalog),
        ]

    async def get_catalog(self, _request: pb.GetCatalogRequest, _call: Call) -> pb.GetCatalogResponse:
        """The catalog in force."""
        shown = await self._system.get_catalog()
        return convert.catalog(shown.catalog, shown.toml)

    async def preview_catalog(self, request: pb.PreviewCatalogRequest, _call: Call) -> pb.PreviewCatalogResponse:
        """What a catalog would change, and a page of the tokens that it would change something for."""
        fields = Fields()
        text_digest = hashlib.sha256(request.catalog.encode()).hexdigest()
        bound_to = (SERVICE + "PreviewCatalog", text_digest, str(request.include_tokens))
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=self._max_page)
        catalog = await self._read(fields, request.catalog)
        require_pair(page)
        shown = await self._previews.preview(catalog, page if request.include_tokens else None)
        last = shown.tokens[-1].token if shown.tokens else None
        key = () if last is None else (last.account_id, last.token_id)
        return pb.PreviewCatalogResponse(
            set_changes=map(_set_change, shown.sets),
            plan_changes=map(_plan_change, shown.plans),
            resource_changes=map(_resource_change, shown.resources),
            token_changes=map(_token_change, shown.tokens),
            next_page_token=next_page_token(page, len(shown.tokens), key, bound_to),
            needs_force=shown.needs_force,
            current_catalog_version=shown.current_version,
            label=catalog.label,
        )

    async def apply_catalog(self, request: pb.ApplyCatalogRequest, call: Call) -> pb.ApplyCatalogResponse:
        """Replaces the catalog."""
        fields = Fields()
        if request.expected_catalog_version < 0:
            fields.wrong("expected_catalog_version", "must be a version, or 0 for no demand", "FIELD_OUT_OF_RANGE")
        wanted = ApplyCatalog(
            await self._read(fields, request.catalog), request.catalog, request.expected_catalog_version, request.force
        )
        done = await self._applying.apply(request_of(call, validate_only=request.validate_only), wanted)
        return pb.ApplyCatalogResponse(
            catalog_version=done.value.version,
            label=done.value.label,
            propagation=convert.propagation(done.propagation),
        )

    async def _read(self, fields: Fields, toml_text: str) -> Catalog:
        """The catalog of a request of which nothing else is left to look at.

        Raises:
            InvalidArgument: INVALID_FIELDS, with every fault of the text and of the other fields.
        """
        catalog, violations = await self._texts.read(toml_text)
        for violation in violations:
            fields.wrong(violation.field, violation.description, violation.reason)
        fields.done()
        assert catalog is not None  # noqa: S101 - else it had violations, and `done` has raised
        return catalog


def _set_change(value: CountedSet) -> pb.CatalogSetChange:
    return pb.CatalogSetChange(
        permission_set=value.change.name,
        kind=pb.CatalogChangeKind.ValueType(value.change.kind),
        permissions_gained=value.change.gained,
        permissions_lost=value.change.lost,
        tokens_gaining=value.gaining,
        tokens_losing=value.losing,
    )


def _plan_change(value: CountedPlan) -> pb.CatalogPlanChange:
    return pb.CatalogPlanChange(
        plan=value.change.name,
        kind=pb.CatalogChangeKind.ValueType(value.change.kind),
        permission_sets_added=value.change.sets_added,
        permission_sets_removed=value.change.sets_removed,
        accounts=value.accounts,
    )


def _resource_change(value: ResourceChange) -> pb.CatalogResourceChange:
    return pb.CatalogResourceChange(
        resource=value.name,
        kind=pb.CatalogChangeKind.ValueType(value.kind),
        actions_added=value.actions_added,
        actions_removed=value.actions_removed,
    )


def _token_change(value: TokenChange) -> pb.CatalogTokenChange:
    return pb.CatalogTokenChange(
        token_id=value.token.token_id,
        account_id=value.token.account_id,
        display_name=value.token.display_name,
        permissions_gained=sorted(value.effect.gained),
        permissions_lost=sorted(value.effect.lost),
    )
