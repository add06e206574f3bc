"""What requests and answers look like, by operation, for the OpenAPI document. A test holds them to the schemas."""

from __future__ import annotations

from typing import Any

from config.aggregation import AggregationSettings

_WEIGHTS = {
    "weights": [[[0.1]]],
    "biases": [[0.0]],
    "architecture": {"input_size": 1, "hidden_sizes": [], "output_size": 1, "skip": False},
}
UPDATE = {
    "device_id": "pump-1",
    "weights": _WEIGHTS,
    "sample_count": 100,
    "timestamp": "2024-01-01T00:49:30Z",
    "metadata": {"cohort": "temperature", "sensors": ["temperature"], "samples_seen": 100, "base_version": 0},
}
_SIGNATURE = "kxJ0mEo7cJmWn0a1qk2vB5c2m7d8wQm1fVxk5m1u6jJx0b0zq9u0m5n8g0o4y2v6w8x0z2b4d6f8h0j2l4n6pA=="
_MODEL = {
    "cohort": "temperature",
    "version": 3,
    "weights": _WEIGHTS,
    "timestamp": "2024-01-01T00:50:00Z",
    "num_devices": 12,
    "total_samples": 1200,
    "aggregation_strategy": "fedavg",
    "parent": 2,
    "stage": "canary",
    "share": 0.1,
    "metrics": {"loss": 0.41},
    "signature": _SIGNATURE,
}
_VERSION = {name: value for name, value in _MODEL.items() if name != "weights"} | {
    "published_at": "2024-01-01T00:50:00.012000Z",
    "verdict": None,
    "decided_by": None,
    "decided_at": None,
}
_STABLE = _VERSION | {"version": 2, "parent": 1, "stage": "stable", "share": 1.0}
_PROMOTED = _VERSION | {
    "stage": "stable",
    "share": 1.0,
    "verdict": "promoted by hand",
    "decided_by": "ada",
    "decided_at": "2024-01-01T01:00:00Z",
}
_TRUST = {
    "device_id": "pump-7",
    "cohort": "temperature",
    "state": "quarantined",
    "reputation": 0.12,
    "reason": "norm",
    "changed_at": "2024-01-01T00:50:00Z",
    "decided_by": None,
}
_RULES = AggregationSettings().rules("").model_dump(mode="json")
_ROUND = {
    "round": 3,
    "cohort": "temperature",
    "timestamp": "2024-01-01T00:50:00Z",
    "num_devices": 2,
    "total_samples": 200,
    "aggregation_strategy": "fedavg",
}

_KEY = {
    "key_id": "3f9c1b2a7d40",
    "device_id": "pump-1",
    "aggregator": False,
    "public_key": None,
    "created_by": "ada",
    "created_at": "2024-01-01T00:00:00Z",
    "revoked_at": None,
}
_ENTRY = {
    "id": "2024-01-01T00:00:00.000000+00:00#5d41402abc4b",
    "at": "2024-01-01T00:00:00Z",
    "who": "ada",
    "action": "key.make",
    "target": "pump-1",
    "outcome": "done",
    "details": {"key_id": "3f9c1b2a7d40", "aggregator": False, "signs": False},
    "address": "127.0.0.1",
}
_SESSION = {
    "id": "5f0c3a9be1d24786",
    "cohort": "temperature",
    "phase": "masked",
    "devices": 52,
    "threshold": 35,
    "seconds_left": 21.5,
    "architecture": _WEIGHTS["architecture"],
    "base_version": 3,
    "encoding": {"devices": 100, "max_samples": 1_000_000, "max_weight": 100.0},
    "survivors": [],
    "samples": None,
    "reason": None,
}
_STEPS = (
    "open_secure_sum", "join_secure_sum", "close_secure_sum", "end_secure_sum", "secure_sum", "give_keys",
    "give_shares", "give_masked_values", "help_to_unmask",
)  # fmt: skip
_32_BYTES = "A" * 43 + "="
_SHOWN = {"device_id": "pump-1", "channel": _32_BYTES, "mask": _32_BYTES, "commitment": _32_BYTES, "signature": ""}
_ADA = {"username": "ada", "password": "correct horse battery"}

ANSWERS: dict[str, Any] = {
    "service": {"service": "flead-global-server", "status": "running", "version": "0.1.0"},
    "healthz": {"status": "ok"},
    "readyz": {"status": "ok"},
    "log_in": {"access_token": "eyJhbGciOi...", "token_type": "bearer", "expires_in": 900, "role": "operator"},
    "begin_session": {"name": "ada", "role": "operator"},
    "who_am_i": {"name": "ada", "role": "operator"},
    "make_key": _KEY | {"key": "flead_dk_3f9c1b2a7d40_..."},
    "list_keys": {"keys": [_KEY]},
    "revoke_key": _KEY | {"revoked_at": "2024-01-02T00:00:00Z"},
    "audit_log": {"entries": [_ENTRY], "next": None},
    "local_update": {
        "status": "accepted",
        "device_id": "pump-1",
        "cohort": "temperature",
        "pending_updates": 1,
        "aggregation_rounds": 3,
    },
    "global_model": {
        "cohort": "temperature",
        "weights": _WEIGHTS,
        "summary": {
            "architecture": _WEIGHTS["architecture"],
            "total_parameters": 2,
            "num_devices": 2,
            "total_samples": 200,
            "aggregation_strategy": "fedavg",
        },
        "aggregation_rounds": 3,
        "timestamp": "2024-01-01T00:50:00Z",
        "parent": 2,
        "stage": "stable",
        "share": 1.0,
        "signature": None,
        "control": None,
    },
    "aggregate": {"status": "success", **_ROUND},
    "status": {
        "status": "running",
        "cohort": "temperature",
        "pending_updates": 1,
        "aggregation_rounds": 3,
        "unique_devices": 2,
        "device_contributions": {"pump-1": 4, "pump-2": 3},
        "aggregation_config": _RULES,
        "timestamp": "2024-01-01T00:50:01Z",
        "cohorts": {"temperature": {"rounds": 3, "pending_updates": 1, "unique_devices": 2}},
        "kafka": "connected",
        "mongodb": "connected",
    },
    "history": {
        "aggregation_history": [
            {**_ROUND, "device_ids": ["pump-1", "pump-2"], "published_at": "2024-01-01T00:50:00.012000Z"}
        ],
        "total_rounds": 3,
    },
    "list_models": {"cohort": "temperature", "stable": 2, "canary": 3, "models": [_VERSION, _STABLE]},
    "compare_models": {
        "cohort": "temperature",
        "a": _STABLE,
        "b": _VERSION,
        "distance": 0.02,
        "relative": 0.2,
        "cosine": 0.98,
        "layers": [0.02],
    },
    "one_model": {**_VERSION, "model": _MODEL},
    "promote_model": _PROMOTED,
    "roll_back_model": _PROMOTED | {"stage": "rolled_back", "verdict": "rolled back by hand"},
    "restore_model": _STABLE | {"version": 4, "parent": 3},
    "signing_key": {"algorithm": "Ed25519", "public_key": "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="},
    "list_quarantine": {"devices": [_TRUST]},
    "put_into_quarantine": _TRUST | {"reason": "its sensor was moved", "decided_by": "ada"},
    "accept_device": _TRUST | {"state": "trusted", "decided_by": "ada"},
    "reject_device": _TRUST | {"state": "rejected", "decided_by": "ada"},
    "secure_sums": {"sessions": [_SESSION]},
    **dict.fromkeys(_STEPS, _SESSION),
    "secure_roster": {"threshold": 35, "devices": [_SHOWN]},
    "sealed_shares": {"shares": {}},
    "read_config": {"cohort": None, "rules": _RULES, "changed": None},
    "change_config": {"cohort": None, "rules": _RULES | {"min_devices": 5}, "changed": {"min_devices": 5}},
    "reset_config": {"cohort": None, "rules": _RULES, "changed": None},
}
"""By operation id: what is answered where all is well."""

BODIES: dict[str, Any] = {
    "log_in": _ADA,
    "begin_session": _ADA,
    "make_key": {"device_id": "pump-1"},
    "local_update": UPDATE,
    "restore_model": _MODEL,
    "put_into_quarantine": {"reason": "its sensor was moved"},
    "change_config": {"min_devices": 5},
}
"""By operation id: what is sent."""


def show(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Put examples into an operation of an OpenAPI document: those above, or those of the models themselves."""
    name = operation["operationId"]
    _complete(operation.get("requestBody", {}).get("content", {}), BODIES.get(name), schemas)
    for status in ("200", "201"):
        _complete(operation["responses"].get(status, {}).get("content", {}), ANSWERS.get(name), schemas)


def _complete(contents: dict[str, Any], example: Any, schemas: dict[str, Any]) -> None:
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        if kind in contents and not {"example", "examples"} & contents[kind].keys():
            model = schemas.get(contents[kind]["schema"].get("$ref", "").rpartition("/")[2], {})
            shown = model.get("examples", [None])[0] if example is None else example
            if shown is not None:
                contents[kind] = {**contents[kind], "example": shown}
