"""What a global model's signature covers, and whether it holds (Ed25519, RFC 8032)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from flead import network
from flead.errors import BadConfiguration, ForgedModel
from flead.messages import GlobalModel


def signed_bytes(model: GlobalModel) -> bytes:
    """What is signed: everything that decides what a device does with the model; its weights by their hash.

    Raises
    ------
    BadModel
        where the weights do not hold
    """
    theta, architecture = network.from_message(model.weights)
    weights = hashlib.sha256(theta.astype("<f8").tobytes()).hexdigest()
    shape = [architecture.input_size, architecture.hidden_sizes, architecture.output_size, architecture.skip]
    stands = [model.cohort, model.version, model.parent, model.stage, model.share, model.timestamp]
    return b"flead global model 1\n" + orjson.dumps([*stands, shape, weights], option=orjson.OPT_UTC_Z)


def sign(model: GlobalModel, key: Ed25519PrivateKey) -> GlobalModel:
    """The model with its signature.

    >>> from datetime import UTC, datetime
    >>> weights = {"weights": [[[1.0]]], "biases": [[0.0]],
    ...            "architecture": {"input_size": 1, "hidden_sizes": [], "output_size": 1}}
    >>> model = GlobalModel(cohort="x", version=1, weights=weights, timestamp=datetime(2024, 1, 1, tzinfo=UTC),
    ...                     num_devices=1, total_samples=1, aggregation_strategy="fedavg")
    >>> key = Ed25519PrivateKey.generate()
    >>> signed = sign(model, key)
    >>> check(signed, [key.public_key()])
    >>> check(signed.model_copy(update={"version": 2}), [key.public_key()])
    Traceback (most recent call last):
    flead.errors.ForgedModel: forged: version 2 of x is not signed by a server that is trusted here
    """
    return model.model_copy(update={"signature": base64.b64encode(key.sign(signed_bytes(model))).decode()})


def check(model: GlobalModel, trusted: Sequence[Ed25519PublicKey]) -> None:
    """Return where one of the trusted keys signed the model.

    Raises
    ------
    ForgedModel
        where none did
    BadModel
        where the weights do not hold
    """
    said = signed_bytes(model)
    try:
        signature = base64.b64decode(model.signature or "", validate=True)
    except ValueError:
        signature = b""
    for key in trusted:
        try:
            return key.verify(signature, said)
        except InvalidSignature:
            continue
    raise ForgedModel(f"version {model.version} of {model.cohort} is not signed by a server that is trusted here")


def public_text(key: Ed25519PublicKey) -> str:
    """A public key as settings and REST carry it: its 32 bytes in base64."""
    return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def read_public(text: str) -> Ed25519PublicKey:
    """Read `public_text`.

    Raises
    ------
    BadConfiguration
        where it is no such key

    >>> public_text(read_public("0" * 43 + "=")) == "0" * 43 + "="
    True
    """
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except ValueError:
        raise BadConfiguration(f"{text[:60]!r} is no Ed25519 public key: 32 bytes in base64 are needed") from None
