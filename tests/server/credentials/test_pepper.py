"""The pepper ring and the edits of its file, on real files."""

from __future__ import annotations

import base64
import copy
import hashlib
import hmac
import pickle
import secrets
import traceback
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doorward_server.credentials import pepper
from doorward_server.credentials.pepper import KEY_BYTES, PepperInvalid, PepperRing
from doorward_server.credentials.pepper_file import MAX_FILE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.logging import LogCaptureFixture


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pepper.keys"


def a_key() -> str:
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def write(path: Path, *lines: str) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    path.chmod(0o600)


def keys_in(path: Path) -> list[str]:
    """Every key of the file, as it stands there, in hex and as Python would print its bytes."""
    encoded = [words[2] for line in path.read_text().splitlines() if (words := line.split())[:1] == ["key"]]
    raw = [base64.b64decode(text) for text in encoded]
    return encoded + [key.hex() for key in raw] + [repr(key)[2:-1] for key in raw]


def everything_shown(error: BaseException) -> str:
    """The error as the most talkative handler would show it: with its causes and all local variables but the test's."""
    assert error.__traceback__ is not None
    ours = error.__traceback__.tb_next
    assert ours is not None
    shown = traceback.TracebackException(type(error), error, ours, capture_locals=True)
    return "".join(shown.format()) + repr(error) + repr(vars(error))


# The ring


def test_digest_is_hmac_sha256_under_the_current_key(path: Path) -> None:
    ring = pepper.create(path)
    key = base64.b64decode(keys_in(path)[0])

    key_id, digest = ring.digest("text")

    assert key_id == ring.current_id
    assert digest == hmac.new(key, b"text", hashlib.sha256).digest()


@settings(deadline=None)
@given(text=st.text())
def test_text_and_its_utf8_have_the_same_digest_under_both_names(text: str) -> None:
    ring = PepperRing({"k_a": bytes(32)}, "k_a")

    assert ring.digest(text)[1] == ring.digest(text.encode())[1] == ring.digest_under("k_a", text)


def test_lone_surrogate_is_no_error_that_carries_the_text() -> None:
    assert PepperRing({"k_a": bytes(32)}, "k_a").digest("\ud800")


def test_digest_under_a_key_that_the_file_lacks_is_none(path: Path) -> None:
    assert pepper.create(path).digest_under("k_lost", "text") is None


def test_digest_under_an_older_key_stays_what_it_was(path: Path) -> None:
    former = pepper.create(path)
    key_id, digest = former.digest("text")

    pepper.activate(path, pepper.add(path))
    ring = pepper.load(path)

    assert ring.digest_under(key_id, "text") == digest
    assert ring.digest("text") != (key_id, digest)


@settings(deadline=None)
@given(info=st.binary(max_size=200))
def test_a_derived_key_is_hkdf_sha256_of_the_key_and_the_info(info: bytes) -> None:
    """RFC 5869, written out: extract with the label for a salt, expand to one block."""
    key = secrets.token_bytes(KEY_BYTES)
    ring = PepperRing({"k_a": key, "k_b": bytes(32)}, "k_b")
    extracted = hmac.digest(b"doorward pepper derivation", key, "sha256")

    assert ring.derive("k_a", info) == hmac.digest(extracted, info + b"\x01", "sha256")
    assert ring.derive("k_b", info) != ring.derive("k_a", info)
    assert ring.derive("k_c", info) is None


def test_fingerprints_tell_keys_apart_and_nothing_of_a_key(path: Path) -> None:
    pepper.create(path)
    pepper.add(path)
    ring = pepper.load(path)

    fingerprints = ring.fingerprints()

    assert set(fingerprints) == set(ring.key_ids)
    assert len(set(fingerprints.values())) == 2
    assert fingerprints == pepper.load(path).fingerprints()
    for fingerprint in fingerprints.values():
        assert len(bytes.fromhex(fingerprint)) == 32
        assert fingerprint not in keys_in(path)
        assert fingerprint not in [hashlib.sha256(base64.b64decode(key)).hexdigest() for key in keys_in(path)[:2]]


def test_ring_shows_no_key_and_does_not_leave_the_process(path: Path) -> None:
    ring = pepper.create(path)

    for shown in (repr(ring), str(ring), f"{ring}"):
        assert ring.current_id in shown
        assert not any(key in shown for key in keys_in(path))
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            leave(ring)


# Reading


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("keys", "is no statement"),
        ("key k_b", "is no statement"),
        ("current k_a extra", "is no statement"),
        ("KEY k_b {key}", "is no statement"),
        ("{key}", "is no statement"),
        ("key {key} k_b", "no proper key id"),
        ("key K_B {key}", "no proper key id"),
        ("key " + 33 * "b" + " {key}", "no proper key id"),
        ("key k_a {key}", "a second time"),
        ("key k_b {key}!", "not in base64"),
        ("key k_b ä{key}", "not in base64"),
        ("key k_b {short}", "has 31 bytes; expected 32"),
        ("key k_b {long}", "has 33 bytes; expected 32"),
        ("key k_b {same}", "another id's key again"),
        ("current k_b", "as line 1 does"),
    ],
)
def test_wrong_line_is_named_with_what_would_be_right_and_without_its_keys(
    path: Path, line: str, problem: str, caplog: LogCaptureFixture
) -> None:
    key, same = a_key(), a_key()
    short, long = (base64.b64encode(secrets.token_bytes(length)).decode() for length in (31, 33))
    filled = line.format(key=key, same=same, short=short, long=long)
    write(path, "current k_a", "# a comment", f"key k_a {same}", "", filled)

    with pytest.raises(PepperInvalid, match=problem) as raised:
        pepper.load(path)

    assert str(raised.value).startswith(f"{path}:5: ")
    shown = everything_shown(raised.value) + caplog.text
    assert not any(text in shown for text in (key, same, short, long))


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "has no key; expected a line `key <id>"),
        (["# nothing"], "has no key; expected a line `key <id>"),
        (["key k_a {key}"], "names no current key; expected a line `current <id>` with one of k_a"),
        (["key k_a {key}", "current k_b"], ":2: names a current key that the file lacks; it has k_a"),
        (["key k_a {key}", "current {key}"], ":2: names a current key that the file lacks; it has k_a"),
    ],
)
def test_incomplete_file_is_refused_and_says_what_is_missing(path: Path, lines: list[str], problem: str) -> None:
    key = a_key()
    write(path, *(line.format(key=key) for line in lines))

    with pytest.raises(PepperInvalid) as raised:
        pepper.load(path)

    assert problem in str(raised.value)
    assert key not in everything_shown(raised.value)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), removed=st.integers(0, 60), put=st.binary(max_size=30))
def test_damaged_file_is_loaded_or_refused_and_never_shown(path: Path, at: float, removed: int, put: bytes) -> None:
    path.unlink(missing_ok=True)
    pepper.create(path)
    pepper.add(path)
    keys, whole = keys_in(path), path.read_bytes()
    begin = int(at * len(whole))
    path.write_bytes(whole[:begin] + put + whole[begin + removed :])

    shown = ""
    try:
        ring = pepper.load(path)
        shown = repr(ring)
        complete = [ring.digest("")[0], *(ring.digest_under(key_id, "") for key_id in ring.key_ids)]
    except PepperInvalid as error:
        shown = everything_shown(error)
        complete = ["refused"]

    assert all(complete)
    assert not any(key in shown for key in keys)


# Edits


def test_created_file_is_what_load_reads(path: Path) -> None:
    created = pepper.create(path)

    loaded = pepper.load(path)

    assert loaded.key_ids == (created.current_id,)
    assert loaded.digest("text") == created.digest("text")


def test_two_created_files_share_neither_id_nor_key(tmp_path: Path) -> None:
    one, other = pepper.create(tmp_path / "one"), pepper.create(tmp_path / "other")

    assert one.current_id != other.current_id
    assert one.digest("text")[1] != other.digest("text")[1]


def test_create_refuses_to_overwrite(path: Path) -> None:
    pepper.create(path)
    before = path.read_bytes()

    with pytest.raises(PepperInvalid, match="exists already") as raised:
        pepper.create(path)

    assert path.read_bytes() == before
    assert not any(key in everything_shown(raised.value) for key in keys_in(path))


def test_added_key_is_known_but_not_current(path: Path) -> None:
    former = pepper.create(path)

    key_id = pepper.add(path)
    ring = pepper.load(path)

    assert ring.current_id == former.current_id
    assert ring.key_ids == (former.current_id, key_id)
    assert ring.digest_under(key_id, "text") not in (None, former.digest("text")[1])


def test_new_id_that_is_taken_is_refused_before_the_file_is_spoilt(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "token_hex", lambda count: count * "ab")
    pepper.create(path)
    before = path.read_bytes()

    with pytest.raises(PepperInvalid, match="k_abababab a second time"):
        pepper.add(path)

    assert path.read_bytes() == before


def test_activated_key_makes_the_new_digests_and_a_repeat_changes_nothing(path: Path) -> None:
    pepper.create(path)
    key_id = pepper.add(path)

    pepper.activate(path, key_id)
    once = path.read_bytes()
    pepper.activate(path, key_id)

    assert pepper.load(path).digest("text")[0] == key_id
    assert path.read_bytes() == once


def test_retired_key_is_gone_and_the_others_stay(path: Path) -> None:
    former = pepper.create(path)
    key_id = pepper.add(path)
    pepper.activate(path, key_id)

    pepper.retire(path, former.current_id)

    assert pepper.load(path).key_ids == (key_id,)


def test_retire_refuses_the_current_key(path: Path) -> None:
    current_id = pepper.create(path).current_id
    pepper.add(path)
    before = path.read_bytes()

    with pytest.raises(PepperInvalid, match=f"{current_id} is the current key; activate another"):
        pepper.retire(path, current_id)

    assert path.read_bytes() == before


@pytest.mark.parametrize("edit", [pepper.activate, pepper.retire])
def test_edit_of_an_unknown_key_names_the_known_ones_and_not_what_was_given(path: Path, edit: object) -> None:
    current_id = pepper.create(path).current_id
    before, pasted = path.read_bytes(), a_key()
    assert callable(edit)

    with pytest.raises(PepperInvalid, match=f"no key of this id; it has {current_id}") as raised:
        edit(path, pasted)

    assert pasted not in str(raised.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("edit", [pepper.add, lambda path: pepper.retire(path, "k_a")])
def test_edit_of_a_damaged_file_names_its_line_and_leaves_it_alone(path: Path, edit: object) -> None:
    key = a_key()
    write(path, "current k_a", f"key k_a {key}", "damaged")
    before = path.read_bytes()
    assert callable(edit)

    with pytest.raises(PepperInvalid, match=":3: is no statement") as raised:
        edit(path)

    assert path.read_bytes() == before
    assert key not in everything_shown(raised.value)


def test_edits_keep_comments_whatever_their_bytes(path: Path) -> None:
    comment = "# Schlüssel, \u0085 kept by Zoë\u2028".encode() + b"\xff"
    path.write_bytes(comment + b"\r\n\ncurrent k_a\n" + f"  key\tk_a {a_key()}".encode())
    path.chmod(0o600)

    key_id = pepper.add(path)
    pepper.activate(path, key_id)
    pepper.retire(path, "k_a")

    assert path.read_bytes().startswith(comment + b"\n\ncurrent " + key_id.encode() + b"\nkey ")
    assert pepper.load(path).key_ids == (key_id,)


def test_full_file_takes_no_key_more_and_stays_readable(path: Path) -> None:
    lines = [f"key k_{number} {a_key()}" for number in range((MAX_FILE_BYTES - 100) // 60)]
    write(path, "current k_0", *lines)
    room = MAX_FILE_BYTES - path.stat().st_size
    with path.open("a") as file:
        file.write(f"#{(room - 2) * '.'}\n")
    assert path.stat().st_size == MAX_FILE_BYTES

    with pytest.raises(PepperInvalid, match="retire keys") as raised:
        pepper.add(path)

    assert len(pepper.load(path).key_ids) == len(lines)
    assert lines[0].split()[2] not in everything_shown(raised.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["add", "activate", "retire"]), st.integers(0, 5)), max_size=12))
def test_any_series_of_edits_keeps_every_key_that_was_not_retired(path: Path, steps: list[tuple[str, int]]) -> None:
    path.unlink(missing_ok=True)
    current = pepper.create(path).current_id
    digests = {current: pepper.load(path).digest("text")[1]}

    for step, index in steps:
        chosen = list(digests)[index % len(digests)]
        if step == "add":
            added = pepper.add(path)
            digests[added] = pepper.load(path).digest_under(added, "text") or b""
        elif step == "activate":
            pepper.activate(path, chosen)
            current = chosen
        elif chosen != current:
            pepper.retire(path, chosen)
            del digests[chosen]
        ring = pepper.load(path)
        assert ring.current_id == current
        assert {key_id: ring.digest_under(key_id, "text") for key_id in ring.key_ids} == digests
