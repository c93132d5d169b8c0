"""Proofs beside a naive model: what was proved is found, nothing else is, and no secret is in there."""

import gc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from doorward.core.proofs import Proofs
from doorward.core.secret import SecretKind, generate, new_id

TEXTS = st.sampled_from([b"text %d" % number for number in range(8)])
SUBJECTS = st.sampled_from(["one", "two", "three"])


class ProofsBesideADict(RuleBasedStateMachine):
    """The model never forgets of itself; the proofs may, but only as they tell by their length, and never change."""

    @initialize(capacity=st.integers(1, 6))
    def start(self, capacity: int) -> None:
        self.capacity = capacity
        self.proofs = Proofs(capacity)
        self.naive: dict[bytes, tuple[str, int]] = {}
        self.proved_since_cleared: set[bytes] = set()

    @rule(text=TEXTS, subject_id=SUBJECTS, version=st.integers(1, 3))
    def remember(self, text: bytes, subject_id: str, version: int) -> None:
        self.proofs.remember(self.proofs.proof_of(text), subject_id, version)
        self.naive[text] = (subject_id, version)
        self.proved_since_cleared.add(text)
        assert self.proofs.find(self.proofs.proof_of(text)) == (subject_id, version)

    @rule(text=TEXTS)
    def find(self, text: bytes) -> None:
        found = self.proofs.find(self.proofs.proof_of(text))
        assert found in (None, self.naive.get(text))
        if len(self.proved_since_cleared) <= self.capacity:
            assert found == self.naive.get(text)

    @rule(subject_id=SUBJECTS)
    def forget(self, subject_id: str) -> None:
        self.proofs.forget(subject_id)
        self.naive = {text: proved for text, proved in self.naive.items() if proved[0] != subject_id}

    @rule()
    def clear(self) -> None:
        self.proofs.clear()
        self.naive.clear()
        self.proved_since_cleared.clear()

    @invariant()
    def nothing_is_found_that_was_not_proved(self) -> None:
        found = {text: self.proofs._by_proof.peek(self.proofs.proof_of(text)) for text in self.naive}
        assert all(proved in (None, self.naive[text]) for text, proved in found.items())
        assert len(self.proofs) == sum(proved is not None for proved in found.values())

    @invariant()
    def proofs_and_their_index_are_bounded_and_agree(self) -> None:
        indexed = [proof for proofs in self.proofs._by_subject.values() for proof in proofs]
        assert len(indexed) == len(set(indexed)) == len(self.proofs) <= self.capacity
        assert all(self.proofs._by_subject.values())


ProofsBesideADict.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
TestProofsBesideADict = ProofsBesideADict.TestCase


def test_a_proof_is_another_in_each_process() -> None:
    assert Proofs(1).proof_of(b"text") != Proofs(1).proof_of(b"text")


def test_a_proof_is_keyed_and_of_the_whole_text() -> None:
    proofs, same = Proofs(1, b"k" * 32), Proofs(1, b"k" * 32)

    assert proofs.proof_of(b"text") == same.proof_of(b"text") == proofs.proof_of(b"text")
    assert len(proofs.proof_of(b"text")) == 32
    assert len({proofs.proof_of(text) for text in (b"", b"t", b"text", b"text\0", b"Text")}) == 5
    assert Proofs(1, b"j" * 32).proof_of(b"text") != proofs.proof_of(b"text")


@pytest.mark.parametrize("key", [b"", b"k" * 15, b"k" * 65])
def test_a_key_that_is_too_short_or_too_long_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="16 to 64 bytes"):
        Proofs(1, key)


def test_text_up_to_the_bound_has_a_proof_and_longer_text_is_refused() -> None:
    proofs = Proofs(1)
    proofs.proof_of(b"s" * 128)

    with pytest.raises(ValueError, match="at most 128 bytes") as raised:
        proofs.proof_of(b"s" * 129)

    assert "sss" not in str(raised.value)


def test_nothing_that_is_kept_contains_the_secret() -> None:
    proofs = Proofs(10)
    secret = generate(SecretKind.TOKEN, new_id())
    text = secret.reveal().encode()

    proofs.remember(proofs.proof_of(text), secret.subject_id, 1)

    reached: set[int] = set()
    waiting: list[object] = [proofs]
    while waiting:
        thing = waiting.pop()
        if id(thing) in reached or isinstance(thing, type):
            continue
        reached.add(id(thing))
        assert thing not in (text, secret.reveal())
        waiting += gc.get_referents(thing)
    assert len(reached) > 10


def test_what_is_used_stays_when_others_come() -> None:
    proofs = Proofs(3)
    used = proofs.proof_of(b"used")
    proofs.remember(used, "used", 1)

    for number in range(20):
        proofs.remember(proofs.proof_of(b"%d" % number), f"id{number}", 1)
        assert proofs.find(used) == ("used", 1)
