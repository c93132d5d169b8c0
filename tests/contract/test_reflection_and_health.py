"""What tools and load balancers ask: reflection and health. Neither needs a credential."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from doorward.v1 import (
    account_admin_pb2,
    authorizer_pb2,
    error_reason_pb2,
    system_admin_pb2,
    token_admin_pb2,
    types_pb2,
)
from tests.support.wire import eventually

if TYPE_CHECKING:
    from tests.support.rows import Rows
    from tests.support.server import Stubs

SERVICES = [
    "doorward.v1.AccountAdmin",
    "doorward.v1.Authorizer",
    "doorward.v1.SystemAdmin",
    "doorward.v1.TokenAdmin",
]
FILES = (account_admin_pb2, authorizer_pb2, error_reason_pb2, system_admin_pb2, token_admin_pb2, types_pb2)


def reflected(stubs: Stubs, **asked: str) -> Any:
    """The answer of the reflection service to one question."""
    reflection = reflection_pb2_grpc.ServerReflectionStub(stubs.channel)
    request = reflection_pb2.ServerReflectionRequest(**asked)
    (answer,) = reflection.ServerReflectionInfo(iter([request]), timeout=20)
    return answer


def health(stubs: Stubs, service: str) -> str:
    """What the health service says of a service."""
    stub = health_pb2_grpc.HealthStub(stubs.channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def test_reflection_lists_the_services(stubs: Stubs) -> None:
    listed = reflected(stubs, list_services="")

    assert sorted(service.name for service in listed.list_services_response.service) == [
        *SERVICES,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_reflection_describes_a_service_with_all_it_needs(stubs: Stubs, service: str) -> None:
    answer = reflected(stubs, file_containing_symbol=service)

    files = [
        descriptor_pb2.FileDescriptorProto.FromString(file)
        for file in answer.file_descriptor_response.file_descriptor_proto
    ]
    committed = {}
    for module in FILES:
        committed[module.DESCRIPTOR.name] = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(committed[module.DESCRIPTOR.name])
    found = {file.name: file for file in files}
    (own,) = [file for file in files if service in {f"{file.package}.{each.name}" for each in file.service}]
    assert own == committed[own.name]
    assert all(file == committed[name] for name, file in found.items() if name in committed)


def test_every_message_can_be_found_by_its_name(stubs: Stubs) -> None:
    names = [name for module in FILES for name in module.DESCRIPTOR.message_types_by_name]

    answers = [reflected(stubs, file_containing_symbol=f"doorward.v1.{name}") for name in names]

    assert all(answer.HasField("file_descriptor_response") for answer in answers)


def test_a_name_that_is_not_there_is_not_found(stubs: Stubs) -> None:
    assert reflected(stubs, file_containing_symbol="doorward.v1.Nothing").error_response.error_code == 5


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_the_server_and_each_service_are_serving(stubs: Stubs, service: str) -> None:
    assert health(stubs, service) == "SERVING"


def test_the_health_of_an_unknown_service_is_not_found(stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health(stubs, "doorward.v1.Nothing")

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_without_a_lease_the_server_is_not_serving_until_it_has_one_again(stubs: Stubs, rows: Rows) -> None:
    stub: Any = health_pb2_grpc.HealthStub(stubs.channel)
    watched = stub.Watch(health_pb2.HealthCheckRequest(service="doorward.v1.Authorizer"), timeout=60)
    told = [next(watched).status]

    with rows.holding("LOCK TABLE replicas"):
        told.append(next(watched).status)
        unwell = {service: health(stubs, service) for service in ("", *SERVICES)}
    told.append(next(watched).status)
    watched.cancel()

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert told == [serving, not_serving, serving]
    assert unwell == dict.fromkeys(("", *SERVICES), "NOT_SERVING")
    eventually(lambda: health(stubs, "") == "SERVING")


def test_many_watchers_of_the_health_cost_nobody_anything(stubs: Stubs) -> None:
    stub: Any = health_pb2_grpc.HealthStub(stubs.channel)
    watching = [stub.Watch(health_pb2.HealthCheckRequest(), timeout=60) for _ in range(50)]
    try:
        assert {next(each).status for each in watching} == {health_pb2.HealthCheckResponse.SERVING}
        assert health(stubs, "") == "SERVING"
    finally:
        for each in watching:
            with contextlib.suppress(grpc.RpcError):
                each.cancel()
