"""What is sealed opens for the same request of the same caller, under any key that is still in the file, and for nothing else."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doorward_server.credentials.pepper import PepperRing
from doorward_server.credentials.sealing import Binding, CannotOpen, open_sealed, seal

OLD_KEY, NEW_KEY = secrets.token_bytes(32), secrets.token_bytes(32)
RING = PepperRing({"k_old": OLD_KEY}, "k_old")
PLAIN = b'{"secret": "what nobody else may read"}'


def a_binding() -> Binding:
    return Binding(secrets.token_bytes(16), "operator:tester", secrets.token_bytes(32))


@settings(deadline=None)
@given(plain=st.binary(max_size=300), request_id=st.binary(min_size=16, max_size=16), caller=st.text())
def test_what_is_sealed_opens_as_it_was(plain: bytes, request_id: bytes, caller: str) -> None:
    caller = caller.encode(errors="replace").decode()
    binding = Binding(request_id, caller, bytes(32))

    assert open_sealed(RING, binding, seal(RING, binding, plain)) == plain


def test_the_sealed_bytes_show_nothing_of_what_is_in_them_and_are_never_the_same() -> None:
    binding = a_binding()
    sealed = [seal(RING, binding, PLAIN) for _ in range(20)]

    assert len(set(sealed)) == 20
    assert not any(PLAIN[10:20] in one or binding.request_id in one for one in sealed)


@pytest.mark.parametrize(
    "changed",
    [
        lambda binding: replace(binding, request_id=secrets.token_bytes(16)),
        lambda binding: replace(binding, caller="operator:another"),
        lambda binding: replace(binding, request_hash=secrets.token_bytes(32)),
    ],
    ids=["another id", "another caller", "another request"],
)
def test_it_opens_for_no_other_binding(changed: object) -> None:
    binding = a_binding()
    sealed = seal(RING, binding, PLAIN)
    assert callable(changed)

    with pytest.raises(CannotOpen):
        open_sealed(RING, changed(binding), sealed)


def test_parts_of_a_binding_cannot_be_shifted_into_each_other() -> None:
    binding = Binding(b"0123456789abcdef", "operator:a", b"b" * 32)
    shifted = Binding(b"0123456789abcdefo", "perator:a", b"b" * 32)

    assert binding.info() != shifted.info()


def test_it_opens_after_another_key_was_activated_and_not_after_its_own_was_retired() -> None:
    binding = a_binding()
    sealed = seal(RING, binding, PLAIN)
    both = PepperRing({"k_old": OLD_KEY, "k_new": NEW_KEY}, "k_new")

    assert open_sealed(both, binding, sealed) == PLAIN
    assert b"k_new" in seal(both, binding, PLAIN)
    with pytest.raises(CannotOpen, match="lacks the key"):
        open_sealed(PepperRing({"k_new": NEW_KEY}, "k_new"), binding, sealed)


def test_another_key_of_the_same_id_does_not_open_it() -> None:
    binding = a_binding()

    with pytest.raises(CannotOpen):
        open_sealed(PepperRing({"k_old": NEW_KEY}, "k_old"), binding, seal(RING, binding, PLAIN))


def test_whatever_byte_is_changed_it_does_not_open() -> None:
    binding = a_binding()
    sealed = seal(RING, binding, PLAIN)

    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 0x01
        with pytest.raises(CannotOpen):
            open_sealed(RING, binding, bytes(changed))


@settings(deadline=None)
@given(cut=st.integers(min_value=0, max_value=70), junk=st.binary(max_size=60))
def test_what_is_cut_or_was_never_sealed_does_not_open(cut: int, junk: bytes) -> None:
    binding = a_binding()
    sealed = seal(RING, binding, PLAIN)

    for wrong in (sealed[: min(cut, len(sealed) - 1)], junk):
        with pytest.raises(CannotOpen):
            open_sealed(RING, binding, wrong)


def test_the_id_is_not_shown() -> None:
    binding = a_binding()

    assert repr(binding.request_id) not in repr(binding)
    assert binding.request_id.hex() not in repr(binding)
