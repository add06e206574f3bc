"""A parameter vector as MongoDB keeps that of a local update: one binary value, not an array of a thousand numbers.

An array names each number, checks each by itself and takes 13 bytes for it; thousands of updates a second are stored
and seldom read again. Global models, of which there are few, stay arrays that people can read.
"""

from __future__ import annotations

import numpy as np

from flead.errors import BadModel
from flead.messages import ArchitectureMessage
from flead.network import Architecture, Vector
from storage.connection import Document


def packed(theta: Vector, architecture: Architecture) -> Document:
    """The document of a parameter vector, (parameter_count,).

    >>> packed(np.array([1.0, 2.0]), Architecture(1, (), 1))["parameters"].hex()
    '000000000000f03f0000000000000040'
    """
    return {"architecture": architecture.as_dict(), "parameters": packed_numbers(theta)}


def unpacked(document: Document) -> tuple[Vector, Architecture]:
    """Read the document again; raises `BadModel` where somebody has changed its size.

    >>> theta, architecture = unpacked(packed(np.array([1.0, 2.0]), Architecture(1, (), 1)))
    >>> theta.tolist(), str(architecture)
    ([1.0, 2.0], '1-1')
    """
    architecture = Architecture.from_message(ArchitectureMessage.model_validate(document["architecture"]))
    theta = unpacked_numbers(document["parameters"])
    if theta.size != architecture.parameter_count:
        raise BadModel(f"{theta.size} parameters are stored, {architecture} has {architecture.parameter_count}")
    return theta, architecture


def packed_numbers(numbers: Vector) -> bytes:
    """Numbers, (n,), as 8 n bytes: float64, little-endian."""
    return numbers.astype("<f8", copy=False).tobytes()


def unpacked_numbers(raw: bytes) -> Vector:
    """Read them again, (n,); read only."""
    return np.frombuffer(raw, dtype="<f8").astype(np.float64, copy=False)
