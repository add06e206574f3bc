from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flead.errors import BadConfiguration, BadSecureSum
from flead.network import Vector
from flead.secret_sharing import PRIME, SHARE_BYTES, Randomness, combine, factors_at_zero, split
from flead.secure_sum import (
    MAX_TOTAL,
    Encoding,
    Keys,
    Kind,
    Party,
    Share,
    Words,
    agreed_mask,
    places_of,
    recovered,
    signed_mask,
    unmask,
)

ENCODING = Encoding(devices=12, max_samples=1_000_000, max_weight=100.0)
SESSION = "session-1"


def randomness(seed: int) -> Randomness:
    """Random bytes that are the same in each run of a test."""
    return np.random.default_rng(seed).bytes


def party(name: str, seed: int = 0) -> Party:
    return Party(SESSION, name, randomness(hash_of(name) + seed), fewest=2)


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big")


class Round:
    """A session whose server and devices all keep to the protocol."""

    def __init__(self, inputs: dict[str, Words], threshold: int, shared: Collection[str] | None = None) -> None:
        self.inputs = inputs
        self.threshold = threshold
        self.parties = {name: party(name) for name in inputs}
        self.roster = {name: p.keys for name, p in self.parties.items()}
        self.sealed = {
            n: p.share(self.roster, threshold) for n, p in self.parties.items() if shared is None or n in shared
        }
        self.masked: dict[str, Words] = {}

    def sealed_for(self, name: str) -> dict[str, bytes]:
        return {sender: sealed[name] for sender, sealed in self.sealed.items() if sender != name}

    def mask(self, names: Collection[str]) -> Words:
        for name in names:
            self.masked[name] = self.parties[name].mask(self.inputs[name], self.sealed_for(name))
        total = np.zeros_like(next(iter(self.inputs.values())))
        for words in self.masked.values():
            total = total + words
        return total

    def open(self, helpers: Collection[str]) -> dict[str, dict[str, Share]]:
        return {name: self.parties[name].open(self.masked) for name in helpers}

    def unmask(self, total: Words, opened: dict[str, dict[str, Share]]) -> Words:
        return unmask(total, SESSION, self.roster, self.sealed, self.masked, self.threshold, opened)


def inputs(n: int, size: int = 5) -> tuple[dict[str, Words], dict[str, Vector], dict[str, int]]:
    rng = np.random.default_rng(n)
    names = [f"mote-{i}" for i in range(n)]
    models = {name: rng.normal(0, 3, size) for name in names}
    samples = {name: int(rng.integers(1, 10_000)) for name in names}
    return {name: ENCODING.encode(models[name], samples[name]) for name in names}, models, samples


@given(data=st.data(), n=st.integers(3, 12))
@settings(max_examples=25, deadline=None)
def test_the_sum_is_the_weighted_mean_whoever_leaves_at_whatever_step(data: st.DataObject, n: int) -> None:
    values, models, samples = inputs(n)
    threshold = data.draw(st.integers(2 * n // 3 + 1, n), label="threshold")
    shared = data.draw(st.sets(st.sampled_from(sorted(values)), min_size=threshold), label="shared")
    survivors = data.draw(st.sets(st.sampled_from(sorted(shared)), min_size=threshold), label="survivors")
    helpers = data.draw(st.sets(st.sampled_from(sorted(survivors)), min_size=threshold), label="helpers")
    session = Round(values, threshold, shared)
    total = session.unmask(session.mask(survivors), session.open(helpers))
    mean, count = ENCODING.decode(total, len(survivors))
    assert count == sum(samples[name] for name in survivors)
    exact = sum(models[name] * samples[name] for name in sorted(survivors)) / count
    np.testing.assert_allclose(mean, exact, rtol=0, atol=ENCODING.error + 1e-12)


def test_one_helper_too_few_and_there_is_no_sum() -> None:
    session = Round(inputs(5)[0], threshold=4)
    total = session.mask(sorted(session.inputs))
    with pytest.raises(BadSecureSum, match="3 devices help to unmask, and 4 are needed"):
        session.unmask(total, session.open(["mote-0", "mote-1", "mote-2"]))


def test_what_the_server_sees_of_a_device_looks_like_noise() -> None:
    session = Round({name: np.zeros(20_000, np.uint64) for name in "abcd"}, threshold=3)
    session.mask("abcd")
    for words in session.masked.values():
        counts = np.bincount(np.frombuffer(words.tobytes(), np.uint8), minlength=256)
        expected = words.nbytes / 256
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert 255 - 5 * 22.6 < chi2 < 255 + 5 * 22.6  # 255 degrees of freedom: a standard deviation of 22.6
    masked = list(session.masked.values())
    assert not any(np.array_equal(a, b) for i, a in enumerate(masked) for b in masked[:i])


def test_a_device_that_was_taken_for_lost_is_hidden_by_its_own_mask_when_its_values_come_late() -> None:
    # The others have opened its mask key, so that the server can take away every mask that it agreed on with them.
    session = Round(inputs(4)[0], threshold=3)
    others = ["mote-1", "mote-2", "mote-3"]
    session.mask(others)
    opened = session.open(others)
    late = session.parties["mote-0"].mask(session.inputs["mote-0"], session.sealed_for("mote-0"))
    key = recovered(SESSION, session.roster, {"mote-0": Kind.MASK_KEY}, 3, opened)["mote-0"]
    for peer in others:
        agreed = agreed_mask(
            X25519PrivateKey.from_private_bytes(key), session.roster[peer].mask, SESSION, "mote-0", peer
        )
        late = late - signed_mask(agreed, "mote-0", peer, late.size)
    left = late - session.inputs["mote-0"]
    assert (left > 2**40).all()  # its own mask: small numbers here would be the values, shining through
    with pytest.raises(BadSecureSum, match="0 devices help"):
        recovered(SESSION, session.roster, {"mote-0": Kind.SEED}, 3, opened)


def test_a_server_that_tells_devices_of_different_survivors_sees_no_devices_values() -> None:
    """It lets mote-0 mask with as few peers as it may, and has each of these dropped by as many helpers as it can."""
    values, _, _ = inputs(5)
    session = least_accepted(values)
    few = {f"mote-{i}": session.sealed_for("mote-0")[f"mote-{i}"] for i in range(1, session.threshold)}
    session.parties["mote-0"].mask(values["mote-0"], few)
    others = sorted(session.inputs)[1:]
    session.mask(others)
    opened = {}
    for place, name in enumerate(others):
        gone = [peer for peer in few if peer != name]
        gone = (gone[place:] + gone[:place])[: len(values) - session.threshold]
        opened[name] = session.parties[name].open([peer for peer in session.inputs if peer not in gone])
    recovered(SESSION, session.roster, {"mote-0": Kind.SEED}, session.threshold, opened)  # its own mask is gone, then
    kept = [
        peer
        for peer in few
        if sum(shares[peer].kind is Kind.MASK_KEY for shares in opened.values()) < session.threshold
    ]
    assert kept, "every mask that mote-0 agreed on can be taken away"


def least_accepted(values: dict[str, Words]) -> Round:
    for threshold in range(2, len(values)):
        with suppress(BadSecureSum):
            return Round(values, threshold)
    return Round(values, len(values))


def test_shares_fewer_than_the_threshold_fit_every_secret() -> None:
    shares = split(b"s" * 32, 5, 3, os.urandom)
    first, second = (int.from_bytes(share, "big") for share in shares[:2])
    for guess in (bytes(32), b"guess" * 6 + b"!!", b"s" * 32):
        # The third share that goes with the guess: on the parabola through it and the two that are known.
        third = (int.from_bytes(guess, "big") - 3 * first + 3 * second) % PRIME
        together = [shares[0], shares[1], third.to_bytes(SHARE_BYTES, "big")]
        assert combine(factors_at_zero([1, 2, 3]), together) == guess


@pytest.mark.parametrize(("shares", "threshold"), [(2, 2), (5, 3), (9, 9), (40, 27)])
def test_any_enough_shares_make_the_secret(shares: int, threshold: int) -> None:
    rng = np.random.default_rng(shares)
    for secret in (bytes(32), b"\xff" * 32, rng.bytes(32)):
        made = split(secret, shares, threshold, os.urandom)
        places = sorted(int(i) for i in rng.permutation(shares)[:threshold])
        assert combine(factors_at_zero([i + 1 for i in places]), [made[i] for i in places]) == secret


def test_the_modulus_is_prime() -> None:
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):  # Miller and Rabin
        x = pow(base, odd, PRIME)
        assert x in (1, PRIME - 1) or any(pow(x, 2**i, PRIME) == PRIME - 1 for i in range(1, twos))


def test_a_changed_bit_of_a_sealed_share_is_caught() -> None:
    session = Round(inputs(4)[0], threshold=3)
    for bit in (0, 12 * 8, 93 * 8 + 7):  # of the nonce, the shares, the tag
        sealed = session.sealed_for("mote-0")
        changed = bytearray(sealed["mote-1"])
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadSecureSum, match="'mote-1' were changed on their way"):
            session.parties["mote-0"].mask(session.inputs["mote-0"], sealed | {"mote-1": bytes(changed)})


def test_shares_sealed_for_another_device_cannot_be_read() -> None:
    session = Round(inputs(4)[0], threshold=3)
    sealed = session.sealed_for("mote-0") | {"mote-1": session.sealed["mote-1"]["mote-2"]}
    with pytest.raises(BadSecureSum, match="changed on their way"):
        session.parties["mote-0"].mask(session.inputs["mote-0"], sealed)


def flipped(share: Share, bit: int = 0) -> Share:
    value = int.from_bytes(share.value, "big") ^ 1 << bit
    return replace(share, value=value.to_bytes(SHARE_BYTES, "big"))


@pytest.mark.parametrize("about", ["mote-1", "mote-6"])  # a survivor, and one that left
def test_a_changed_bit_of_an_opened_share_is_caught(about: str) -> None:
    session = Round(inputs(7)[0], threshold=5)
    total = session.mask([f"mote-{i}" for i in range(6)])
    opened = session.open([f"mote-{i}" for i in range(5)])
    opened["mote-2"][about] = flipped(opened["mote-2"][about])
    with pytest.raises(BadSecureSum, match=f"the shares of '{about}' do not make the secret"):
        session.unmask(total, opened)


def test_one_wrong_helper_spoils_nothing_where_there_is_one_more_than_needed() -> None:
    session = Round(inputs(7)[0], threshold=5)
    total = session.mask([f"mote-{i}" for i in range(6)])
    right = session.unmask(total, session.open([f"mote-{i}" for i in range(5)]))
    for liar in range(6):
        opened = session.open([f"mote-{i}" for i in range(6)])
        opened[f"mote-{liar}"] = {peer: flipped(share, 7) for peer, share in opened[f"mote-{liar}"].items()}
        np.testing.assert_array_equal(session.unmask(total, opened), right)


def test_shares_of_the_wrong_kind_do_not_help() -> None:
    session = Round(inputs(4)[0], threshold=3)
    session.mask(sorted(session.inputs))
    opened = session.open(sorted(session.inputs))
    with pytest.raises(BadSecureSum, match="0 devices help"):
        recovered(SESSION, session.roster, {"mote-1": Kind.MASK_KEY}, 3, opened)


class TestADeviceRefuses:
    def test_both_shares_of_a_peer(self) -> None:
        session = Round(inputs(5)[0], threshold=4)
        session.mask(sorted(session.inputs))
        device = session.parties["mote-0"]
        first = device.open(["mote-0", "mote-1", "mote-2", "mote-3"])
        assert device.open(["mote-3", "mote-2", "mote-1", "mote-0"]) == first
        with pytest.raises(BadSecureSum, match="together they would show its values"):
            device.open(sorted(session.inputs))

    def test_a_sum_over_too_few(self) -> None:
        session = Round(inputs(5)[0], threshold=4)
        session.mask(sorted(session.inputs))
        with pytest.raises(BadSecureSum, match="over 3 devices, and 4 are needed"):
            session.parties["mote-0"].open(["mote-0", "mote-1", "mote-2"])

    def test_a_sum_without_itself(self) -> None:
        session = Round(inputs(5)[0], threshold=4)
        session.mask(sorted(session.inputs))
        with pytest.raises(BadSecureSum, match="not in it with us"):
            session.parties["mote-0"].open(["mote-1", "mote-2", "mote-3", "mote-4"])

    def test_to_help_before_it_gave_its_values(self) -> None:
        session = Round(inputs(3)[0], threshold=3)
        with pytest.raises(BadSecureSum, match="not in it with us"):
            session.parties["mote-0"].open(sorted(session.inputs))

    def test_to_mask_other_values_a_second_time(self) -> None:
        session = Round(inputs(3)[0], threshold=3)
        device, sealed = session.parties["mote-0"], session.sealed_for("mote-0")
        first = device.mask(session.inputs["mote-0"], sealed)
        np.testing.assert_array_equal(device.mask(session.inputs["mote-0"], sealed), first)
        with pytest.raises(BadSecureSum, match="mask twice"):
            device.mask(session.inputs["mote-0"] + np.uint64(1), sealed)
        with pytest.raises(BadSecureSum, match="mask twice"):
            device.mask(session.inputs["mote-0"], sealed | {"mote-1": sealed["mote-2"]})

    def test_to_go_on_with_too_few(self) -> None:
        session = Round(inputs(4)[0], threshold=3)
        with pytest.raises(BadSecureSum, match="2 devices go on, and 3 are needed"):
            session.parties["mote-0"].mask(session.inputs["mote-0"], {"mote-1": session.sealed["mote-1"]["mote-0"]})

    @pytest.mark.parametrize("threshold", [2, 3, 4])
    def test_a_threshold_of_two_thirds_or_less(self, threshold: int) -> None:
        parties = [party(f"mote-{i}") for i in range(6)]
        with pytest.raises(BadSecureSum, match="two thirds"):
            parties[0].share({p.name: p.keys for p in parties}, threshold)

    def test_a_threshold_above_all(self) -> None:
        parties = [party(f"mote-{i}") for i in range(3)]
        with pytest.raises(BadSecureSum, match="threshold is 4 of 3"):
            parties[0].share({p.name: p.keys for p in parties}, 4)

    def test_company_that_is_too_small(self) -> None:
        alone = Party(SESSION, "mote-0", os.urandom, fewest=3)
        other = party("mote-1")
        with pytest.raises(BadSecureSum, match="fewer than 3"):
            alone.share({"mote-0": alone.keys, "mote-1": other.keys}, 2)
        with pytest.raises(BadConfiguration, match="2 at least"):
            Party(SESSION, "mote-0", os.urandom, fewest=1)

    def test_a_roster_that_changes(self) -> None:
        parties = [party(f"mote-{i}") for i in range(4)]
        roster = {p.name: p.keys for p in parties}
        sealed = parties[0].share(roster, 3)
        assert parties[0].share(roster, 3) == sealed
        with pytest.raises(BadSecureSum, match="changed the roster"):
            parties[0].share(roster, 4)
        with pytest.raises(BadSecureSum, match="changed the roster"):
            parties[0].share(roster | {"mote-1": party("mote-1", 1).keys}, 3)

    def test_a_roster_with_other_keys_in_its_name_or_one_key_twice(self) -> None:
        parties = [party(f"mote-{i}") for i in range(4)]
        roster = {p.name: p.keys for p in parties}
        with pytest.raises(BadSecureSum, match="our own keys"):
            parties[0].share(roster | {"mote-0": party("mote-0", 1).keys}, 3)
        with pytest.raises(BadSecureSum, match="same key"):
            parties[0].share(roster | {"mote-1": parties[2].keys}, 3)

    def test_a_public_key_that_makes_every_secret_the_same(self) -> None:
        parties = [party(f"mote-{i}") for i in range(3)]
        roster = {p.name: p.keys for p in parties} | {"mote-1": Keys(bytes(32), b"1" * 32, b"1" * 32)}
        with pytest.raises(BadSecureSum, match="is none"):
            parties[0].share(roster, 3)


class TestSignedKeys:
    def fleet(self, signs: bool = True) -> tuple[list[Party], dict[str, Keys]]:
        secrets = {f"mote-{i}": Ed25519PrivateKey.generate() for i in range(3)}
        trusted = {name: key.public_key() for name, key in secrets.items()}
        parties = [
            Party(SESSION, name, os.urandom, fewest=2, identity=key if signs else None, trusted=trusted)
            for name, key in secrets.items()
        ]
        return parties, {p.name: p.keys for p in parties}

    def test_are_taken(self) -> None:
        parties, roster = self.fleet()
        assert parties[0].share(roster, 3).keys() == {"mote-1", "mote-2"}

    def test_that_are_missing_are_refused(self) -> None:
        parties, roster = self.fleet(signs=False)
        with pytest.raises(BadSecureSum, match="not signed by the device"):
            parties[0].share(roster, 3)

    def test_put_there_by_the_server_are_refused(self) -> None:
        parties, roster = self.fleet()
        forged = replace(party("mote-1").keys, signature=roster["mote-1"].signature)
        with pytest.raises(BadSecureSum, match="'mote-1' are not signed"):
            parties[0].share(roster | {"mote-1": forged}, 3)

    def test_of_another_session_are_refused(self) -> None:
        parties, roster = self.fleet()
        with pytest.raises(BadSecureSum, match="not signed"):
            roster["mote-1"].check("session-2", "mote-1", Ed25519PrivateKey.generate().public_key())
        assert parties[0].session == SESSION

    def test_of_a_stranger_are_refused(self) -> None:
        parties, roster = self.fleet()
        with pytest.raises(BadSecureSum, match="'sybil' has no identity key"):
            parties[0].share(roster | {"sybil": party("sybil").keys}, 3)


class TestEncoding:
    @given(
        devices=st.integers(2, 1_000), samples=st.integers(1, 1_000_000), weight=st.floats(1e-9, 1e6),
        sign=st.sampled_from([-1.0, 1.0]),
    )  # fmt: skip
    def test_no_sum_of_the_largest_values_overflows(
        self, devices: int, samples: int, weight: float, sign: float
    ) -> None:
        samples = min(samples, MAX_TOTAL // devices)
        encoding = Encoding(devices=devices, max_samples=samples, max_weight=weight)
        one = encoding.encode(np.array([sign * weight]), samples)
        exact = int(one.view(np.int64)[0]) * devices  # Python's integers do not overflow
        assert abs(exact) < 2**63
        mean, count = encoding.decode(one * np.uint64(devices), devices)
        assert count == samples * devices
        assert abs(mean[0] - sign * weight) <= encoding.error * (1 + 1e-6) + 1e-15 * weight

    @pytest.mark.parametrize("theta", [[100.001], [-101.0], [np.nan], [np.inf]])
    def test_refuses_weights_that_it_would_have_to_cut(self, theta: list[float]) -> None:
        with pytest.raises(BadSecureSum, match="largest weight"):
            ENCODING.encode(np.array(theta), 1)

    @pytest.mark.parametrize("samples", [0, -1, 1_000_001])
    def test_refuses_samples_beyond_what_was_agreed_on(self, samples: int) -> None:
        with pytest.raises(BadSecureSum, match="samples"):
            ENCODING.encode(np.zeros(1), samples)

    def test_notices_sums_that_cannot_be(self) -> None:
        total = ENCODING.encode(np.array([1.0]), 10)
        with pytest.raises(BadSecureSum, match="10 samples of 11 devices"):
            ENCODING.decode(total, 11)
        total[0] = np.uint64(2**62)
        with pytest.raises(BadSecureSum, match="a mean is beyond 100"):
            ENCODING.decode(total, 1)

    def test_stands_for_no_more_samples_than_an_update_may(self) -> None:
        with pytest.raises(ValidationError, match="devices \\* max_samples"):
            Encoding(devices=1_000, max_samples=1_000_001, max_weight=1.0)


def test_places_do_not_depend_on_the_order_of_the_roster() -> None:
    assert places_of(["c", "a", "b"]) == places_of({"b": 0, "c": 0, "a": 0}) == {"a": 1, "b": 2, "c": 3}
