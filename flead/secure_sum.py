"""Sums of which nobody sees a term: the arithmetic of secure aggregation, for devices and for the server.

Each device adds a mask of its own and, for each other device, a mask that the two of them agreed on and that the other
one subtracts. What the server gets looks random; in the sum the agreed masks cancel. Every secret behind the masks is
shared out among all devices, so that enough of them can help the server to take away the own masks of those who are
there, and the agreed masks of those who left.

Source: Bonawitz et al., 2017, "Practical secure aggregation for privacy-preserving machine learning", the version for
a server that follows the protocol; of the version for one that does not, keys signed by identity keys, and a threshold
above two thirds, checked by the devices, but not its consistency check, in which devices show each other who they were
told is in the sum. `docs/privacy.md` says what follows from that and what does not.

Sums are taken modulo 2^64; shares are Shamir's (`flead.secret_sharing`). Keys are X25519, streams ChaCha20, key
derivation HKDF-SHA256, all from `cryptography`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from math import floor, log2
from typing import Self

import numpy as np
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flead.errors import BadConfiguration, BadSecureSum
from flead.network import Vector
from flead.secret_sharing import SECRET_BYTES, SHARE_BYTES, Randomness, combine, factors_at_zero, split

Words = NDArray[np.uint64]
"""Numbers modulo 2^64."""
NONCE_BYTES = 12
SEALED_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + 16
MAX_DEVICES = 1_000
MAX_TOTAL = 1_000_000_000
"""Samples that one local update may stand for, see `flead.messages.LocalUpdate`."""
_SUM_BITS = 62
_MOST_PLACES = 40


class Encoding(BaseModel):
    """How weights become whole numbers, so that no sum of them can overflow.

    With at most `devices` D, samples N of each and weights within W, sums of fixed-point numbers of f binary places
    stay within D N (W 2^f + 1/2). f is the largest with D N W 2^f <= 2^62, and D N <= 10^9: every sum is below 2^63,
    which a signed number of 64 bits holds. A device that keeps to N and W cannot make a sum overflow.

    >>> encoding = Encoding(devices=100, max_samples=10_000, max_weight=16.0)
    >>> encoding.places, encoding.error
    (38, 1.8189894035458565e-12)
    >>> total = encoding.encode(np.array([0.5, -2.0]), 30) + encoding.encode(np.array([1.5, -1.0]), 10)
    >>> encoding.decode(total, devices=2)
    (array([ 0.75, -1.75]), 40)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    devices: int = Field(ge=2, le=MAX_DEVICES, description="that take part at most")
    max_samples: int = Field(ge=1, le=MAX_TOTAL, description="of one device at most")
    max_weight: float = Field(gt=0, le=1e6, description="largest absolute value of a weight")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.devices * self.max_samples > MAX_TOTAL:
            raise ValueError(f"devices * max_samples is above {MAX_TOTAL}: no update may stand for so many samples")
        return self

    @cached_property
    def places(self) -> int:
        """Binary places behind the point."""
        return min(_MOST_PLACES, floor(_SUM_BITS - 1e-9 - log2(self.devices * self.max_samples * self.max_weight)))

    @property
    def error(self) -> float:
        """How far a mean may be from the mean of the weights as they were before rounding."""
        return 0.5 / 2.0**self.places

    def encode(self, theta: Vector, samples: int) -> Words:
        """Weights times samples, and the samples: (parameters + 1,).

        Raises
        ------
        BadSecureSum
            where a weight or the samples are beyond what was agreed on: cut, they would say something else
        """
        if not 1 <= samples <= self.max_samples:
            raise BadSecureSum(f"{samples} samples, and this sum takes 1 to {self.max_samples} of a device")
        largest = float(np.abs(theta).max(initial=0.0))
        if not largest <= self.max_weight:  # NaN, too
            raise BadSecureSum(f"the largest weight is {largest:g}, and this sum takes up to {self.max_weight:g}")
        scaled = np.rint(theta * 2.0**self.places).astype(np.int64) * np.int64(samples)
        return np.append(scaled, np.int64(samples)).view(np.uint64)

    def decode(self, total: Words, devices: int) -> tuple[Vector, int]:
        """The weighted mean, (parameters,), and the samples, of a sum over so many devices.

        Raises
        ------
        BadSecureSum
            where the sum cannot be one of so many encoded updates: a device did not keep to the encoding
        """
        whole = total.view(np.int64)
        samples = int(whole[-1])
        if not devices <= samples <= devices * self.max_samples:
            raise BadSecureSum(f"the sum says {samples} samples of {devices} devices: one did not keep to the encoding")
        mean: Vector = whole[:-1] / float(samples) / 2.0**self.places
        if not float(np.abs(mean).max(initial=0.0)) <= self.max_weight + self.error:
            raise BadSecureSum(f"a mean is beyond {self.max_weight:g}: a device did not keep to the encoding")
        return mean, samples


@dataclass(frozen=True, slots=True)
class Keys:
    """What a device shows to all others in one session.

    Attributes
    ----------
    channel: X25519, by which shares are sent to it
    mask: X25519, from which masks are agreed on
    commitment: to the seed of its own mask, so that wrong shares of it are noticed
    signature: over the rest by the device's identity key (Ed25519), or nothing
    """

    channel: bytes
    mask: bytes
    commitment: bytes
    signature: bytes = b""

    def signed_bytes(self, session: str, name: str) -> bytes:
        """What is signed."""
        return _label("keys", session, name) + self.channel + self.mask + self.commitment

    def check(self, session: str, name: str, identity: Ed25519PublicKey) -> None:
        """Return where the identity key signed these keys for this session; raises `BadSecureSum`."""
        try:
            identity.verify(self.signature, self.signed_bytes(session, name))
        except InvalidSignature:
            raise BadSecureSum(
                f"the keys of {name!r} are not signed by the device: somebody put others there"
            ) from None


class Kind(StrEnum):
    """Which of a device's two secrets a share is of."""

    SEED = "seed"
    """The seed of its own mask: the device is in the sum."""
    MASK_KEY = "mask_key"
    """Its key of agreed masks: the device left."""


@dataclass(frozen=True, slots=True)
class Share:
    """A share of a device's secret, as it is given to the server."""

    kind: Kind
    value: bytes


class Party:
    """A device's side of one session: keys, shares, masked input, and the help to unmask the sum, in this order.

    Asked again, a step gives what it gave before; asked otherwise, it refuses: two different answers could tell more
    than the sum.

    Parameters
    ----------
    fewest:
        devices that must be in a sum with us; fewer would tell too much about each
    identity:
        signs our keys; None: they are not signed
    trusted:
        identity keys of the fleet: keys that are not signed by them are refused; None: keys are taken as they come
    """

    def __init__(
        self, session: str, name: str, randomness: Randomness, *, fewest: int = 3,
        identity: Ed25519PrivateKey | None = None, trusted: Mapping[str, Ed25519PublicKey] | None = None,
    ) -> None:  # fmt: skip
        if fewest < 2:
            raise BadConfiguration(f"fewest is {fewest}: a sum over one device is its values; 2 at least")
        self.session = session
        self.name = name
        self._randomness = randomness
        self._fewest = fewest
        self._trusted = trusted
        self._channel = X25519PrivateKey.from_private_bytes(randomness(SECRET_BYTES))
        self._mask_key = X25519PrivateKey.from_private_bytes(randomness(SECRET_BYTES))
        self._seed = randomness(SECRET_BYTES)
        keys = Keys(_public(self._channel), _public(self._mask_key), commitment(session, name, self._seed))
        self.keys = (
            keys if identity is None else replace(keys, signature=identity.sign(keys.signed_bytes(session, name)))
        )
        self._roster: dict[str, Keys] = {}
        self._threshold = 0
        self._sealed: dict[str, bytes] = {}
        self._channels: dict[str, bytes] = {}
        """The secret that each peer and we have in common, once it is known."""
        self._held: dict[str, tuple[bytes, bytes]] = {}
        """The shares of others: of the key of agreed masks, of the seed."""
        self._masked: tuple[bytes, Words] | None = None
        self._opened: tuple[frozenset[str], dict[str, Share]] | None = None

    def share(self, roster: Mapping[str, Keys], threshold: int) -> dict[str, bytes]:
        """Share our secrets out: to each device of the roster, what only it can read.

        Parameters
        ----------
        threshold:
            devices that together can tell a secret

        Raises
        ------
        BadSecureSum
            where the roster or the threshold would let the server, or few devices, see more than a sum
        """
        if self._sealed:
            if (dict(roster), threshold) != (self._roster, self._threshold):
                raise BadSecureSum("the server changed the roster or the threshold: this session is not to be trusted")
            return dict(self._sealed)
        self._check(roster, threshold)
        self._roster, self._threshold = dict(roster), threshold
        places = places_of(roster)
        mask_key = split(self._mask_key.private_bytes_raw(), len(roster), threshold, self._randomness)
        seed = split(self._seed, len(roster), threshold, self._randomness)
        for peer in self._roster:
            place = places[peer] - 1
            if peer == self.name:
                self._held[peer] = mask_key[place], seed[place]
            else:
                self._sealed[peer] = self._seal(peer, mask_key[place] + seed[place])
        return dict(self._sealed)

    def _check(self, roster: Mapping[str, Keys], threshold: int) -> None:
        if roster.get(self.name) != self.keys:
            raise BadSecureSum("the roster does not have our own keys: somebody put others there")
        if threshold < self._fewest:
            raise BadSecureSum(
                f"the threshold is {threshold}: we help to no sum over fewer than {self._fewest} devices"
            )
        if not 2 * len(roster) < 3 * threshold <= 3 * len(roster):
            raise BadSecureSum(
                f"the threshold is {threshold} of {len(roster)} devices: with two thirds or less a server that tells "
                "each device of other survivors could see the values of one"
            )
        public = [key for keys in roster.values() for key in (keys.channel, keys.mask)]
        if len(set(public)) != len(public):
            raise BadSecureSum("two devices of the roster have the same key: one of them is not a device")
        if self._trusted is not None:
            for name, keys in roster.items():
                if name not in self._trusted:
                    raise BadSecureSum(f"{name!r} has no identity key here: we share nothing with strangers")
                keys.check(self.session, name, self._trusted[name])

    def mask(self, values: Words, sealed: Mapping[str, bytes]) -> Words:
        """Our values, hidden.

        Parameters
        ----------
        values:
            (n,), see `Encoding.encode`
        sealed:
            what each other device that goes on sent us

        Raises
        ------
        BadSecureSum
            where shares cannot be read, or too few devices go on
        """
        asked = hashlib.sha256(values.tobytes() + repr(sorted(sealed.items())).encode()).digest()
        if self._masked is not None:
            if self._masked[0] != asked:
                raise BadSecureSum("asked to mask twice, and not the same: this session is not to be trusted")
            return self._masked[1]
        if not self._sealed:
            raise BadSecureSum("asked to mask before shares were given out")
        if len(sealed) + 1 < self._threshold:
            raise BadSecureSum(f"{len(sealed) + 1} devices go on, and {self._threshold} are needed")
        held = {peer: self._unseal(peer, text) for peer, text in sealed.items()}
        masked = values + expand(self._seed, values.size)
        for peer in held:
            masked += signed_mask(self._agreed(peer), self.name, peer, values.size)
        self._held |= held
        self._masked = asked, masked
        return masked

    def open(self, survivors: Collection[str]) -> dict[str, Share]:
        """Help to unmask: one share for each device that gave us its shares.

        Parameters
        ----------
        survivors:
            the devices whose masked values are in the sum

        Raises
        ------
        BadSecureSum
            where the sum is over too few, or other devices than before
        """
        asked = frozenset(survivors)
        if self._opened is not None:
            if self._opened[0] != asked:
                raise BadSecureSum("asked for the other share of a device, too: together they would show its values")
            return dict(self._opened[1])
        if self._masked is None or self.name not in asked or not asked <= self._held.keys():
            raise BadSecureSum("the sum is over devices that are not in it with us: we help to no other")
        if len(asked) < self._threshold:
            raise BadSecureSum(f"the sum is over {len(asked)} devices, and {self._threshold} are needed")
        shares = {
            peer: Share(Kind.SEED, seed) if peer in asked else Share(Kind.MASK_KEY, mask_key)
            for peer, (mask_key, seed) in self._held.items()
        }
        self._opened = asked, shares
        return dict(shares)

    def _agreed(self, peer: str) -> bytes:
        return agreed_mask(self._mask_key, self._roster[peer].mask, self.session, self.name, peer)

    def _channel_key(self, peer: str, label: bytes) -> bytes:
        if peer not in self._channels:
            self._channels[peer] = _exchange(self._channel, self._roster[peer].channel)
        return _derive(self._channels[peer], label)

    def _seal(self, peer: str, text: bytes) -> bytes:
        label, nonce = _label("share", self.session, self.name, peer), self._randomness(NONCE_BYTES)
        return nonce + ChaCha20Poly1305(self._channel_key(peer, label)).encrypt(nonce, text, label)

    def _unseal(self, peer: str, sealed: bytes) -> tuple[bytes, bytes]:
        if peer not in self._sealed:
            raise BadSecureSum(f"{peer!r} is not in the roster, and sends shares")
        label = _label("share", self.session, peer, self.name)
        key = self._channel_key(peer, label)
        try:
            text = ChaCha20Poly1305(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], label)
        except (InvalidTag, ValueError):
            raise BadSecureSum(f"the shares of {peer!r} were changed on their way") from None
        if len(text) != 2 * SHARE_BYTES:
            raise BadSecureSum(f"{peer!r} sent something else than shares")
        return text[:SHARE_BYTES], text[SHARE_BYTES:]


def unmask(
    total: Words, session: str, roster: Mapping[str, Keys], sharing: Collection[str], survivors: Collection[str],
    threshold: int, opened: Mapping[str, Mapping[str, Share]],
) -> Words:  # fmt: skip
    """The server's side: take the masks from a sum.

    Parameters
    ----------
    total:
        (n,), the sum of the survivors' masked values
    sharing:
        the devices that gave shares out: masks were agreed on with each of them
    opened:
        by helper, its share of a secret of each device

    Raises
    ------
    BadSecureSum
        where too few help, or a secret that comes out is not what a device committed itself to
    """
    left = [name for name in roster if name in sharing and name not in survivors]
    wanted = {name: Kind.SEED for name in roster if name in survivors} | dict.fromkeys(left, Kind.MASK_KEY)
    secrets = recovered(session, roster, wanted, threshold, opened)
    out = total.copy()
    for name, kind in wanted.items():
        if kind is Kind.SEED:
            out -= expand(secrets[name], out.size)
        else:
            private = X25519PrivateKey.from_private_bytes(secrets[name])
            for peer in survivors:  # who has its half of the mask in the sum, and nobody the other
                agreed = agreed_mask(private, roster[peer].mask, session, name, peer)
                out += signed_mask(agreed, name, peer, out.size)
    return out


def recovered(
    session: str, roster: Mapping[str, Keys], wanted: Mapping[str, Kind], threshold: int,
    opened: Mapping[str, Mapping[str, Share]],
) -> dict[str, bytes]:  # fmt: skip
    """Each device's wanted secret, put together from shares and held against what the device committed itself to.

    Where one does not hold, other helpers' shares are tried, as long as there are some: one wrong helper among more
    than `threshold` spoils nothing.
    """
    helpers = [name for name in sorted(opened) if all(_has(opened[name], peer, kind) for peer, kind in wanted.items())]
    if len(helpers) < threshold:
        raise BadSecureSum(f"{len(helpers)} devices help to unmask, and {threshold} are needed")
    places, found = places_of(roster), dict[str, bytes]()
    for window in _windows(helpers, threshold):
        factors = factors_at_zero([places[name] for name in window])
        for peer, kind in wanted.items():
            if peer not in found:
                secret = combine(factors, [opened[name][peer].value for name in window])
                if secret is not None and _holds(session, peer, roster[peer], kind, secret):
                    found[peer] = secret
        if len(found) == len(wanted):
            return found
    missing = sorted(wanted.keys() - found.keys())
    raise BadSecureSum(f"the shares of {missing[0]!r} do not make the secret that it committed itself to")


def _has(shares: Mapping[str, Share], peer: str, kind: Kind) -> bool:
    return peer in shares and shares[peer].kind is kind


def _windows(helpers: Sequence[str], size: int) -> Iterator[list[str]]:
    """Runs of so many helpers, around the end, so that each helper is left out of one where there are more."""
    for start in range(0, len(helpers), max(1, len(helpers) - size)) if len(helpers) > size else (0,):
        yield [helpers[(start + i) % len(helpers)] for i in range(size)]


def _holds(session: str, name: str, keys: Keys, kind: Kind, secret: bytes) -> bool:
    if kind is Kind.SEED:
        return commitment(session, name, secret) == keys.commitment
    return _public(X25519PrivateKey.from_private_bytes(secret)) == keys.mask


def places_of(roster: Collection[str]) -> dict[str, int]:
    """Where each device's shares are taken, 1 and up: its place among the names.

    >>> places_of({"b", "a"})
    {'a': 1, 'b': 2}
    """
    return {name: place for place, name in enumerate(sorted(roster), start=1)}


def expand(seed: bytes, size: int) -> Words:
    """A mask of so many numbers from a seed of 32 bytes, used for nothing else."""
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), None).encryptor().update(bytes(8 * size))
    return np.frombuffer(stream, "<u8").astype(np.uint64)


def signed_mask(agreed: bytes, name: str, peer: str, size: int) -> Words:
    """What a device adds for a peer: their mask; the one later in the alphabet subtracts it."""
    mask = expand(agreed, size)
    return mask if name < peer else np.negative(mask)


def agreed_mask(private: X25519PrivateKey, public: bytes, session: str, name: str, peer: str) -> bytes:
    """The seed that two devices agree on, the same from either side."""
    label = _label("mask", session, *sorted((name, peer)))
    return _derive(_exchange(private, public), label)


def commitment(session: str, name: str, seed: bytes) -> bytes:
    """What a device binds itself to; it hides the seed, which is 32 random bytes."""
    return hashlib.sha256(_label("seed", session, name) + seed).digest()


def _public(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:  # a point of small order: the secret would be known to everybody
        raise BadSecureSum("a public key of the roster is none") from None


def _derive(secret: bytes, label: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, None, label).derive(secret)


def _label(*parts: str) -> bytes:
    """What a key, a signature or a hash is for; no two lists of parts give the same."""
    return json.dumps(["flead secure sum 1", *parts]).encode() + b"\n"
