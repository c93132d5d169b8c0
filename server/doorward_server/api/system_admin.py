"""SystemAdmin, the RPC of the replicas. Those of the catalog: `catalog_admin.py`; of operators: `operator_admin.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.v1 import system_admin_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.fields import Fields
from doorward_server.api.paging import next_page_token, page_of

if TYPE_CHECKING:
    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.model import ReplicaRow
    from doorward_server.service.system import System

__all__ = ["SystemAdmin"]

SERVICE: Final = "/doorward.v1.SystemAdmin/"


class SystemAdmin:
    """The RPC."""

    def __init__(self, system: System, *, max_page: int) -> None:
        self._system = system
        self._max_page = max_page

    def methods(self, binder: Binder) -> list[Method]:
        """Its part of the method table."""
        return [binder.method(SERVICE + "ListReplicas", pb.ListReplicasRequest, self.list_replicas)]

    async def list_replicas(self, request: pb.ListReplicasRequest, _call: Call) -> pb.ListReplicasResponse:
        """A page of the registered replicas, in the order of their start."""
        fields = Fields()
        bound_to = (SERVICE + "ListReplicas",)
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=self._max_page)
        fields.done()
        shown = await self._system.list_replicas()
        rows = [row for row in shown.rows if page.after is None or _key(row) > page.after][: page.size]
        return pb.ListReplicasResponse(
            replicas=(convert.replica(row, shown.end) for row in rows),
            next_page_token=next_page_token(page, len(rows), _key(rows[-1]) if rows else (), bound_to),
            revision=f"{shown.end.epoch}.{shown.end.number}",
        )


def _key(row: ReplicaRow) -> tuple[str, ...]:
    return (row.started_time.isoformat(timespec="microseconds"), row.replica_id)
