"""Where calls go and how: targets, what is encrypted, what gRPC is told to retry and to balance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorward._channel import route_of
from doorward._service_config import ATTEMPTS, NOT_REPEATED, THROTTLING, service_config
from tests.support.wire import every_rpc

if TYPE_CHECKING:
    from doorward._channel import Connecting, Route

SERVICE = "doorward.v1.Authorizer"


def route(target: str | list[str], how: Connecting | None = None) -> Route:
    return route_of(target, SERVICE, how or {})


def options_of(target: str | list[str], how: Connecting | None = None) -> dict[str, Any]:
    return dict(route(target, how).options)


def config_of(target: str | list[str], how: Connecting | None = None) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(options_of(target, how)["grpc.service_config"])
    return config


@pytest.mark.parametrize(
    ("given_target", "expected"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("localhost:50051", "localhost:50051"),
        ("[::1]:50051", "[::1]:50051"),
        ("unix:/run/doorward.sock", "unix:/run/doorward.sock"),
        (["127.0.0.1:1", "127.0.0.1:2"], "ipv4:127.0.0.1:1,127.0.0.1:2"),
        (["localhost:1", "127.0.0.1:2"], "ipv4:127.0.0.1:1,127.0.0.1:2"),
        (["127.0.0.1:1", "127.0.0.1:1"], "127.0.0.1:1"),
        (["[::1]:1", "[::1]:2"], "ipv6:[::1]:1,[::1]:2"),
        (["unix:/a", "unix:/b"], "unix:/a,/b"),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("ipv4:///127.0.0.1:1", "127.0.0.1:1"),
    ],
)
def test_a_target_on_this_machine_needs_nothing_more(given_target: str | list[str], expected: str) -> None:
    made = route(given_target)
    assert made.target == expected
    assert made.credentials is None


ELSEWHERE = ["10.0.0.7:50051", "doorward.internal:50051", "dns:///doorward.internal:50051", "[2001:db8::1]:50051"]


@pytest.mark.parametrize("target", [*ELSEWHERE, ["127.0.0.1:1", "10.0.0.7:1"]])
def test_another_machine_needs_tls_or_a_word_that_it_does_not(target: str | list[str]) -> None:
    with pytest.raises(ValueError, match="in the clear"):
        route(target)
    assert route(target, {"insecure": True}).credentials is None


@pytest.mark.parametrize("target", ELSEWHERE)
def test_with_tls_another_machine_may_be_called(target: str) -> None:
    assert route(target, {"tls": True}).credentials is not None


@pytest.mark.parametrize(
    "target",
    [
        "",
        "doorward",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        ":1",
        "unix:",
        "http://a:1/b",
        [],
        [""],
    ],
)
def test_what_is_no_target_is_refused(target: str | list[str]) -> None:
    with pytest.raises(ValueError, match="target"):
        route(target)


@pytest.mark.parametrize(
    "targets", [["a.internal:1", "b.internal:1"], ["127.0.0.1:1", "[::1]:1"], ["127.0.0.1:1", "unix:/a"]]
)
def test_several_servers_that_grpc_cannot_be_given_at_once_are_refused(targets: list[str]) -> None:
    with pytest.raises(ValueError, match="several servers"):
        route(targets, {"insecure": True})


@given(st.text(max_size=30))
def test_whatever_the_text_it_is_a_target_or_a_value_error(text: str) -> None:
    try:
        made = route(text)
    except ValueError:
        return
    assert made.target


def test_several_servers_are_balanced_and_their_health_watched() -> None:
    for target in (["127.0.0.1:1", "127.0.0.1:2"], "dns:///doorward.internal:50051", "doorward.internal:50051"):
        config = config_of(target, {"insecure": True})
        assert config["loadBalancingConfig"] == [{"round_robin": {}}]
        assert config["healthCheckConfig"] == {"serviceName": SERVICE}


def test_one_server_is_asked_whatever_it_says_of_its_health() -> None:
    for target in ("127.0.0.1:1", "localhost:1", "unix:/a", ["127.0.0.1:1"]):
        config = config_of(target)
        assert "loadBalancingConfig" not in config
        assert "healthCheckConfig" not in config


def test_of_several_servers_with_tls_the_common_name_must_be_given() -> None:
    with pytest.raises(ValueError, match="tls_server_name"):
        route(["127.0.0.1:1", "127.0.0.1:2"], {"tls": True})
    named = options_of(["127.0.0.1:1", "127.0.0.1:2"], {"tls_server_name": "doorward.internal"})
    assert named["grpc.default_authority"] == "doorward.internal"


def test_the_authority_of_several_servers_is_one_of_them_and_no_list() -> None:
    assert options_of(["127.0.0.1:1", "127.0.0.1:2"])["grpc.default_authority"] == "127.0.0.1:1"
    assert "grpc.default_authority" not in options_of("127.0.0.1:1")


def test_whether_it_is_balanced_can_be_said() -> None:
    assert "healthCheckConfig" not in config_of("doorward.internal:1", {"insecure": True, "balanced": False})
    assert "healthCheckConfig" in config_of("127.0.0.1:1", {"balanced": True})


def test_a_certificate_goes_with_its_key() -> None:
    with pytest.raises(ValueError, match="go together"):
        route("127.0.0.1:1", {"tls_cert": b"x"})


def test_tls_cannot_be_wished_away_beside_what_needs_it() -> None:
    with pytest.raises(ValueError, match="tls_ca"):
        route("127.0.0.1:1", {"tls": False, "tls_ca": b"x"})


def test_a_connection_is_probed_no_more_often_than_a_server_allows() -> None:
    assert options_of("127.0.0.1:1")["grpc.keepalive_time_ms"] == 30_000
    assert options_of("127.0.0.1:1", {"keepalive": 12.5})["grpc.keepalive_time_ms"] == 12_500
    assert "grpc.keepalive_time_ms" not in options_of("127.0.0.1:1", {"keepalive": None})
    for seconds in (0.0, 9.9, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="keepalive"):
            route("127.0.0.1:1", {"keepalive": seconds})


def test_no_proxy_sees_the_credential_unless_the_caller_says_so() -> None:
    assert options_of("127.0.0.1:1")["grpc.enable_http_proxy"] == 0
    assert options_of("127.0.0.1:1", {"options": [("grpc.enable_http_proxy", 1)]})["grpc.enable_http_proxy"] == 1


# ---- what gRPC does by itself


def policy_of(config: dict[str, Any], service: str, method: str) -> dict[str, Any] | None:
    """The retry policy that holds for a method: gRPC takes the entry that names it, else that of its service."""
    for name in ({"service": service, "method": method}, {"service": service}):
        for entry in config["methodConfig"]:
            if name in entry["name"]:
                policy: dict[str, Any] | None = entry.get("retryPolicy")
                return policy
    raise AssertionError(f"nothing is said of {service}/{method}")


@pytest.mark.parametrize("rpc", every_rpc(), ids=lambda rpc: rpc.name)
def test_every_rpc_is_sent_again_or_listed_as_one_that_is_not(rpc: Any) -> None:
    service, method = rpc.path[1:].split("/")
    policy = policy_of(json.loads(service_config(service, is_balanced=True)), service, method)
    if method in NOT_REPEATED[service]:
        assert policy is None
    else:
        assert policy is not None
        assert policy["maxAttempts"] == ATTEMPTS
        assert policy["retryableStatusCodes"] == ["UNAVAILABLE"]


def test_only_rpcs_of_the_contract_are_listed() -> None:
    listed = {f"/{service}/{method}" for service, methods in NOT_REPEATED.items() for method in methods}
    assert listed <= {rpc.path for rpc in every_rpc()}


def test_what_makes_a_secret_is_sent_again() -> None:
    assert not {"IssueToken", "RotateToken", "RotateSelf"} & NOT_REPEATED["doorward.v1.TokenAdmin"]


def test_streams_are_not_sent_again() -> None:
    streams = {rpc.path.rpartition("/")[2] for rpc in every_rpc() if rpc.is_stream}
    assert streams <= NOT_REPEATED[SERVICE]


def test_retries_are_within_what_grpc_takes() -> None:
    # Beyond these gRPC ignores the whole configuration, or bends it, without a word.
    assert ATTEMPTS <= 5
    assert 0 < THROTTLING["maxTokens"] <= 1000
