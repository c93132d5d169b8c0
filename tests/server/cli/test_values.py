"""What is written in an option: grants, durations, times, labels."""

import datetime as dt

import pytest
import typer

from doorward.core.secret import SecretKind, generate, new_id
from doorward.v1 import types_pb2
from doorward_server.cli.values import Label, labels_of, parse_duration, parse_grant, parse_label, parse_time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("job_admin:*", types_pb2.Grant(permission_set="job_admin", all_projects=True)),
        ("metadata_only:p1", types_pb2.Grant(permission_set="metadata_only", project_ids=["p1"])),
        (
            "metadata_only:proj_a,proj_b",
            types_pb2.Grant(permission_set="metadata_only", project_ids=["proj_a", "proj_b"]),
        ),
    ],
)
def test_a_grant_is_a_set_and_its_projects(text: str, expected: types_pb2.Grant) -> None:
    assert parse_grant(text) == expected


@pytest.mark.parametrize(
    "text", ["", "job_admin", "job_admin:", ":*", ":p1", "job_admin:p1,*", "job_admin:*,*", "a:p1,,p2", "a:,"]
)
def test_what_is_no_grant_is_refused_and_never_means_all(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="SET:"):
        parse_grant(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90d", 7_776_000),
        ("12h", 43_200),
        ("30m", 1_800),
        ("45s", 45),
        ("2w", 1_209_600),
        ("1d12h", 129_600),
        ("0s", 0),
    ],
)
def test_a_duration_is_a_number_with_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text).seconds == seconds


@pytest.mark.parametrize(
    "text", ["", "90", "d", "-1d", "1.5h", "1y", "1d ", "90D", "٣d", "9" * 13 + "s", "999999999999d"]
)
def test_what_is_no_duration_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"90d|10,000 years"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2027-01-01T00:00:00Z", dt.datetime(2027, 1, 1, tzinfo=dt.UTC)),
        ("2027-01-01 00:00:00Z", dt.datetime(2027, 1, 1, tzinfo=dt.UTC)),
        ("2027-01-01T02:30:00.25+02:30", dt.datetime(2027, 1, 1, 0, 0, 0, 250_000, tzinfo=dt.UTC)),
    ],
)
def test_a_time_has_its_zone(text: str, expected: dt.datetime) -> None:
    assert parse_time(text).ToDatetime(dt.UTC) == expected


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "2027-01-01", "2027-01-01T00:00:00", "2027-13-01T00:00:00Z", "90d", "1"]
)
def test_a_time_without_zone_or_sense_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="2027-01-01T00:00:00Z"):
        parse_time(text)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_beyond_the_calendar_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("team=data", ("team", "data")), ("a=", ("a", "")), ("a=b=c", ("a", "b=c"))]
)
def test_a_label_is_split_at_its_first_equals_sign(text: str, expected: tuple[str, str]) -> None:
    assert parse_label(text) == expected


@pytest.mark.parametrize("text", ["", "team", "=data", "="])
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="KEY=VALUE"):
        parse_label(text)


def test_a_label_that_is_given_twice_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="'team' is given twice"):
        labels_of([Label("team", "data"), Label("other", "x"), Label("team", "data")])


@pytest.mark.parametrize("parse", [parse_grant, parse_duration, parse_time, parse_label])
def test_no_error_repeats_a_secret(parse: object) -> None:
    secret = generate(SecretKind.TOKEN, new_id()).reveal()
    with pytest.raises(typer.BadParameter) as refused:
        parse(secret)  # type: ignore[operator]
    assert secret[22:] not in str(refused.value.message)
