"""AccountAdmin, the RPCs of projects: parse, call the use case, answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from doorward.v1 import account_admin_pb2 as pb
from doorward_server.api import convert
from doorward_server.api.fields import LONGEST_DISPLAY_NAME, Fields
from doorward_server.api.paging import next_page_token, page_of
from doorward_server.api.requests import request_of
from doorward_server.service.projects import PutProject

if TYPE_CHECKING:
    from doorward_server.api.methods import Call, Method
    from doorward_server.api.wrapper import Binder
    from doorward_server.service.projects import Projects

__all__ = ["ProjectAdmin"]

SERVICE: Final = "/doorward.v1.AccountAdmin/"


class ProjectAdmin:
    """The RPCs."""

    def __init__(self, projects: Projects, *, max_page: int) -> None:
        self._projects = projects
        self._max_page = max_page

    def methods(self, binder: Binder) -> list[Method]:
        """Their part of the method table."""
        return [
            binder.method(SERVICE + "PutProject", pb.PutProjectRequest, self.put_project),
            binder.method(SERVICE + "ListProjects", pb.ListProjectsRequest, self.list_projects),
            binder.method(SERVICE + "DeleteProject", pb.DeleteProjectRequest, self.delete_project),
        ]

    async def put_project(self, request: pb.PutProjectRequest, call: Call) -> pb.PutProjectResponse:
        """Creates or renames a project."""
        fields = Fields()
        wanted = PutProject(
            account_id=fields.identifier("account_id", request.account_id),
            project_id=fields.identifier("project_id", request.project_id),
            display_name=fields.text("display_name", request.display_name, longest=LONGEST_DISPLAY_NAME, required=True),
        )
        fields.done()
        done = await self._projects.put_project(request_of(call, validate_only=request.validate_only), wanted)
        return pb.PutProjectResponse(
            project=convert.project(done.value), propagation=convert.propagation(done.propagation)
        )

    async def list_projects(self, request: pb.ListProjectsRequest, _call: Call) -> pb.ListProjectsResponse:
        """A page of an account's projects, by id."""
        fields = Fields()
        account_id = fields.identifier("account_id", request.account_id)
        bound_to = (SERVICE + "ListProjects", account_id)
        page = page_of(fields, request.page_size, request.page_token, bound_to, most=self._max_page)
        fields.done()
        projects = await self._projects.list_projects(account_id, page)
        token = next_page_token(page, len(projects), (projects[-1].project_id,) if projects else (), bound_to)
        return pb.ListProjectsResponse(projects=map(convert.project, projects), next_page_token=token)

    async def delete_project(self, request: pb.DeleteProjectRequest, call: Call) -> pb.DeleteProjectResponse:
        """Takes a project away, out of every grant."""
        fields = Fields()
        account_id = fields.identifier("account_id", request.account_id)
        project_id = fields.identifier("project_id", request.project_id)
        fields.done()
        asked = request_of(call, validate_only=request.validate_only)
        done = await self._projects.delete_project(asked, account_id, project_id)
        return pb.DeleteProjectResponse(
            project=convert.project(done.value.project),
            grants_changed=done.value.grants_changed,
            grants_removed=done.value.grants_removed,
            propagation=convert.propagation(done.propagation),
        )
