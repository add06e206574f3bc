"""What the REST interface answers, as it is documented in OpenAPI."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from flead.messages import ArchitectureMessage, Stage, WeightsMessage
from global_server.access.roles import Role


class Service(BaseModel):
    """`GET /`."""

    service: str
    status: str
    version: str


class UpdateAnswer(BaseModel):
    """`POST /api/local-update`: a duplicate was counted before, and is not again."""

    status: Literal["accepted", "duplicate", "outdated", "quarantined"]
    device_id: str
    cohort: str
    pending_updates: int = Field(description="devices with an update that waits for a round")
    aggregation_rounds: int


class ModelSummary(BaseModel):
    """What a global model is made of."""

    architecture: ArchitectureMessage
    total_parameters: int
    num_devices: int
    total_samples: int
    aggregation_strategy: str


class ModelAnswer(BaseModel):
    """`GET /api/global-model`."""

    cohort: str
    weights: WeightsMessage
    summary: ModelSummary
    aggregation_rounds: int = Field(description="the round that made it: its version")
    timestamp: datetime
    parent: int | None = Field(description="the version before")
    stage: Stage
    share: float = Field(description="of the devices, where it is a canary; else 1")
    signature: str | None = Field(description="the server's, Ed25519 over what `flead.signatures` says; base64")
    control: list[float] | None = Field(description="SCAFFOLD: the fleet's control variate; null: no such strategy")


class RoundAnswer(BaseModel):
    """`POST /api/aggregate`, a round was made."""

    status: Literal["success"] = "success"
    cohort: str
    round: int
    num_devices: int
    total_samples: int
    aggregation_strategy: str
    timestamp: datetime


class NoUpdates(BaseModel):
    """`POST /api/aggregate`, nothing to do."""

    status: Literal["no_updates"] = "no_updates"
    message: str


class StatusAnswer(BaseModel):
    """`GET /api/status`; the figures are the cohort's."""

    status: str
    cohort: str
    pending_updates: int
    aggregation_rounds: int
    unique_devices: int
    device_contributions: dict[str, int] = Field(description="updates accepted of each device")
    aggregation_config: dict[str, Any]
    timestamp: datetime
    cohorts: dict[str, dict[str, int]]
    kafka: str
    mongodb: str


class HistoryEntry(BaseModel):
    """One round."""

    round: int
    cohort: str
    timestamp: datetime
    num_devices: int
    device_ids: list[str]
    total_samples: int
    aggregation_strategy: str
    published_at: datetime | None


class HistoryAnswer(BaseModel):
    """`GET /api/history`, oldest round first."""

    aggregation_history: list[HistoryEntry]
    total_rounds: int


class TokenAnswer(BaseModel):
    """`POST /api/token` (RFC 6749, section 5.1)."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105
    expires_in: int = Field(description="s")
    role: Role


class WhoAnswer(BaseModel):
    """`POST /api/session`, `GET /api/session`: who asks."""

    name: str
    role: Role


class KeyEntry(BaseModel):
    """A device's key, without the key."""

    key_id: str
    device_id: str
    aggregator: bool = Field(description="whether it may send updates of other devices, too")
    public_key: str | None = Field(description="Ed25519, base64: the device's updates must be signed")
    created_by: str
    created_at: datetime
    revoked_at: datetime | None


class NewKeyAnswer(KeyEntry):
    """`POST /api/keys`."""

    key: str = Field(description="shown here and never again")


class KeysAnswer(BaseModel):
    """`GET /api/keys`."""

    keys: list[KeyEntry]


class AuditEntryAnswer(BaseModel):
    """Who did what."""

    id: str
    at: datetime
    who: str = Field(description="a user, a device, `local`, or `?` where nobody knows")
    action: str
    target: str
    outcome: str = Field(description="`done`, or why not")
    details: dict[str, Any]
    address: str | None = Field(description="where the request came from")


class AuditAnswer(BaseModel):
    """`GET /api/audit`, newest first."""

    entries: list[AuditEntryAnswer]
    next: str | None = Field(description="`before` of the next page; null: there is none")
