"""The contract keeps its own rules: style, compatibility, and a comment on everything (design section 3).

Comments are read from an image that buf makes with source info, so what is tested is what a reader sees.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
BUF = Path(sys.executable).with_name("buf")
BASELINE = ROOT / "protos" / "baseline.binpb"

# Numbers of fields in descriptor.proto: they make the paths by which source info names a declaration.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
FIELDS, NESTED_MESSAGES, NESTED_ENUMS, ONEOFS = 2, 3, 4, 8
RPCS, VALUES = 2, 2

FIELD_WORDS = ("Required.", "Optional.", "Output only.", "Immutable.")
# RPCs that change nothing; every other one is a mutation.
READS = {
    "AccountAdmin": {"GetAccount", "ListAccounts", "ListProjects", "PreviewPlanChange"},
    "Authorizer": {
        "BatchCheck",
        "Check",
        "ExplainCheck",
        "IntrospectToken",
        "ListPermissions",
        "ListTokensWithPermission",
        "StreamChecks",
        "Watch",
    },
    "SystemAdmin": {"GetCatalog", "ListOperators", "ListReplicas", "PreviewCatalog"},
    "TokenAdmin": {
        "AwaitPropagation",
        "DescribeSelf",
        "GetToken",
        "ListAuditEvents",
        "ListPermissionSets",
        "ListTokens",
    },
}
# Empty whatever was reported, so that its answer tells nothing about the secret.
SILENT = {"ReportLeakedToken"}


class Declared(NamedTuple):
    """Something that the contract declares, with the comment above it, and for a member of a oneof that of the oneof."""

    kind: str
    name: str
    comment: str
    oneof_comment: str = ""


def buf(*arguments: str, stdin: bytes | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([BUF, *arguments], cwd=cwd, input=stdin, capture_output=True, check=False)


def image_of(workspace: Path) -> bytes:
    built = buf("build", "--path", "protos/doorward", "--output", "-", cwd=workspace)
    assert built.returncode == 0, built.stderr.decode()
    return built.stdout


def broken_by(image: bytes) -> str:
    """What `buf breaking` says against the baseline; empty: nothing is broken."""
    compared = buf("breaking", "-", "--against", str(BASELINE), "--exclude-imports", stdin=image)
    assert compared.returncode in {0, 100}, compared.stderr.decode()
    return compared.stdout.decode()


@pytest.fixture(scope="module")
def image() -> bytes:
    return image_of(ROOT)


@pytest.fixture(scope="module")
def files(image: bytes) -> list[FileDescriptorProto]:
    return [file for file in FileDescriptorSet.FromString(image).file if file.package == "doorward.v1"]


def declared_in(file: FileDescriptorProto) -> Iterator[Declared]:
    comments = {tuple(place.path): place.leading_comments.strip() for place in file.source_code_info.location}

    def said(kind: str, name: str, path: tuple[int, ...]) -> Declared:
        return Declared(kind, name, comments.get(path, ""))

    def in_enum(enum: EnumDescriptorProto, path: tuple[int, ...], outer: str) -> Iterator[Declared]:
        yield said("enum", f"{outer}{enum.name}", path)
        for k, value in enumerate(enum.value):
            yield said("enum value", f"{outer}{enum.name}.{value.name}", (*path, VALUES, k))

    def in_message(message: DescriptorProto, path: tuple[int, ...], outer: str) -> Iterator[Declared]:
        if message.options.map_entry:
            return
        name = f"{outer}{message.name}"
        yield said("message", name, path)
        for k, field in enumerate(message.field):
            oneof = comments.get((*path, ONEOFS, field.oneof_index), "") if field.HasField("oneof_index") else ""
            yield said("field", f"{name}.{field.name}", (*path, FIELDS, k))._replace(oneof_comment=oneof)
        optional = {field.oneof_index for field in message.field if field.proto3_optional}
        for k, group in enumerate(message.oneof_decl):
            if k not in optional:
                yield said("oneof", f"{name}.{group.name}", (*path, ONEOFS, k))
        for k, nested in enumerate(message.nested_type):
            yield from in_message(nested, (*path, NESTED_MESSAGES, k), f"{name}.")
        for k, enum in enumerate(message.enum_type):
            yield from in_enum(enum, (*path, NESTED_ENUMS, k), f"{name}.")

    for k, message in enumerate(file.message_type):
        yield from in_message(message, (MESSAGES, k), "")
    for k, enum in enumerate(file.enum_type):
        yield from in_enum(enum, (ENUMS, k), "")
    for k, service in enumerate(file.service):
        yield said("service", service.name, (SERVICES, k))
        for n, rpc in enumerate(service.method):
            yield said("rpc", f"{service.name}.{rpc.name}", (SERVICES, k, RPCS, n))


def messages_of(files: list[FileDescriptorProto]) -> dict[str, DescriptorProto]:
    """Every message by its name within the package, nested ones as `Outer.Inner`; not those that protoc makes of maps."""
    found: dict[str, DescriptorProto] = {}

    def add(message: DescriptorProto, outer: str) -> None:
        if not message.options.map_entry:
            found[f"{outer}{message.name}"] = message
        for nested in message.nested_type:
            add(nested, f"{outer}{message.name}.")

    for file in files:
        for message in file.message_type:
            add(message, "")
    return found


def reachable_from_requests(files: list[FileDescriptorProto]) -> set[str]:
    """The messages that a caller writes: requests, and what their fields are made of."""
    messages = messages_of(files)
    waiting = [name for name in messages if name.endswith("Request")]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in messages:
            continue
        seen.add(name)
        waiting.extend(
            field.type_name.removeprefix(".doorward.v1.")
            for field in messages[name].field
            if field.type == FieldDescriptorProto.TYPE_MESSAGE
        )
    return seen


def test_contract_passes_buf_lint() -> None:
    linted = buf("lint")
    assert linted.returncode == 0, (linted.stdout + linted.stderr).decode()


def test_contract_breaks_nobody_who_uses_the_last_release(image: bytes) -> None:
    assert broken_by(image) == ""


def test_a_removed_field_is_seen_as_a_break(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    types = tmp_path / "protos" / "doorward" / "v1" / "types.proto"
    before = types.read_text("utf-8")
    after = before.replace("string revoke_reason = 12;", "reserved 12;")
    assert after != before
    types.write_text(after, "utf-8")

    assert "revoke_reason" in broken_by(image_of(tmp_path))


def test_the_six_files_of_the_contract_are_there(files: list[FileDescriptorProto]) -> None:
    assert sorted(file.name.removeprefix("doorward/v1/") for file in files) == [
        "account_admin.proto",
        "authorizer.proto",
        "error_reason.proto",
        "system_admin.proto",
        "token_admin.proto",
        "types.proto",
    ]


def test_everything_declared_has_a_comment(files: list[FileDescriptorProto]) -> None:
    everything = [declared for file in files for declared in declared_in(file)]
    kinds = {declared.kind for declared in everything}
    assert kinds == {"service", "rpc", "message", "field", "oneof", "enum", "enum value"}
    assert [f"{declared.kind} {declared.name}" for declared in everything if not declared.comment] == []


def test_fields_that_a_caller_writes_say_whether_they_must_be_set(files: list[FileDescriptorProto]) -> None:
    written = reachable_from_requests(files)
    fields = [declared for file in files for declared in declared_in(file) if declared.kind == "field"]
    assert [
        field.name
        for field in fields
        if field.name.rpartition(".")[0] in written
        and not field.comment.startswith(FIELD_WORDS)
        and not field.oneof_comment.startswith(FIELD_WORDS)
    ] == []


def test_a_message_that_is_written_is_told_from_one_that_is_only_read(files: list[FileDescriptorProto]) -> None:
    written = reachable_from_requests(files)
    assert {"IssueTokenRequest", "Grant", "Consistency"} <= written
    assert not {"IssueTokenResponse", "Propagation", "Replica"} & written


def test_every_rpc_has_its_own_request_and_response(files: list[FileDescriptorProto]) -> None:
    rpcs = [rpc for file in files for service in file.service for rpc in service.method]
    assert len(rpcs) > 0
    assert [
        rpc.name
        for rpc in rpcs
        if rpc.input_type != f".doorward.v1.{rpc.name}Request" or rpc.output_type != f".doorward.v1.{rpc.name}Response"
    ] == []
    assert len({rpc.name for rpc in rpcs}) == len(rpcs)


def test_the_rpcs_that_only_read_are_all_there(files: list[FileDescriptorProto]) -> None:
    declared = {service.name: {rpc.name for rpc in service.method} for file in files for service in file.service}
    assert declared.keys() == READS.keys()
    assert {name: reads - declared[name] for name, reads in READS.items()} == {name: set() for name in READS}


def test_every_mutation_tells_its_propagation(files: list[FileDescriptorProto]) -> None:
    messages = messages_of(files)
    mutations = {
        rpc.name
        for file in files
        for service in file.service
        for rpc in service.method
        if rpc.name not in READS[service.name]
    }
    assert {"RevokeToken", "PutAccount", "ApplyCatalog", "ReportLeakedToken"} <= mutations
    propagating = {
        name
        for name in mutations
        for field in messages[f"{name}Response"].field
        if (field.name, field.type_name) == ("propagation", ".doorward.v1.Propagation")
    }
    assert mutations - propagating == SILENT
    assert not messages["ReportLeakedTokenResponse"].field


def test_a_presented_or_shown_secret_is_always_called_secret(files: list[FileDescriptorProto]) -> None:
    texts = [
        f"{name}.{field.name}"
        for name, message in messages_of(files).items()
        for field in message.field
        if field.type == FieldDescriptorProto.TYPE_STRING
    ]
    assert "CheckRequest.secret" in texts
    assert [
        name for name in texts if name.endswith(("token", "key", "credential")) and not name.endswith("page_token")
    ] == []
