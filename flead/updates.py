"""Reading a local update from its JSON, its numbers straight into one vector."""

from __future__ import annotations

import orjson
from pydantic import ValidationError

from flead import network
from flead.errors import BadModel
from flead.messages import ArchitectureMessage, LocalUpdate, UpdateHeader
from flead.network import Architecture, Vector


def parse_update(raw: bytes) -> tuple[UpdateHeader, Vector, Architecture]:
    """Read a record of `flead.local-updates`: what it says, its parameters, (parameter_count,), and their shape.

    The outcome is that of `LocalUpdate.from_json` and `network.from_message`, in two thirds of their time: that every
    number is one shows when they are put into the vector. Where anything is unusual they read it again, and say what
    is wrong. Only a whole number beyond 64 bits in the metadata, which nothing reads, comes out as a float.

    Raises
    ------
    BadUpdate
        naming the field that is wrong
    BadModel
        where shapes do not fit or a number is not finite

    >>> weights = b'{"weights": [[[0.5]]], "biases": [[1]], "architecture": {"input_size": 1, "hidden_sizes": [], '
    >>> weights += b'"output_size": 1}}'
    >>> said = b'{"device_id": "m", "sample_count": 9, "timestamp": "2024-01-01T00:00:00Z", "weights": '
    >>> header, theta, architecture = parse_update(said + weights + b'}')
    >>> header.device_id, theta.tolist(), str(architecture)
    ('m', [0.5, 1.0], '1-1')
    """
    try:
        fields = orjson.loads(raw)
        weights = fields.pop("weights")
        architecture = Architecture.from_message(ArchitectureMessage.model_validate(weights["architecture"]))
        theta = network.flattened(architecture, weights["weights"], weights["biases"])
        return UpdateHeader.model_validate(fields), theta, architecture
    except (orjson.JSONDecodeError, ValidationError, BadModel, AttributeError, KeyError, TypeError):
        update = LocalUpdate.from_json(raw)
        return update, *network.from_message(update.weights)
