"""What the job is told when it is submitted: one JSON argument."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from flead.learner_config import LearnerConfig
from flead.messages import ReadingLimits

JOB_NAME = "flead-learner"


class Topics(BaseModel):
    """The names of the topics that the job reads and writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    readings: str
    predictions: str
    local_updates: str
    global_model: str
    alerts: str
    dead_letters: str


class JobConfig(BaseModel):
    """Everything that the job needs to know.

    Attributes
    ----------
    readings_id:
        the id that Kafka gave to the topic of readings when it was made: a restore point's offsets and transactions are
        of this Kafka, and are left behind where it is another; empty: it is never another
    checkpoints:
        URI of the folder that checkpoints go to; every TaskManager can write there
    trusted_keys:
        public keys (base64) of servers whose global models are adopted; none: any that is a model is
    partial_sums:
        shards of a cohort that each send one update for all their devices; 0: every device sends its own
    partial_every_s:
        how long a shard collects, s
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_servers: str
    readings_id: str = ""
    topics: Topics
    group: str = JOB_NAME
    checkpoints: str
    parallelism: int = Field(1, ge=1)
    execution_mode: Literal["thread", "process"] = "thread"
    state_backend: Literal["hashmap", "rocksdb"] = "hashmap"
    checkpoint_interval_ms: int = Field(5_000, ge=200)
    buffer_timeout_ms: int = Field(5, ge=0)
    max_restarts: int = Field(10, ge=0)
    trusted_keys: tuple[str, ...] = ()
    partial_sums: int = Field(0, ge=0, le=4_096)
    partial_every_s: float = Field(10.0, gt=0, le=3_600)
    learner: LearnerConfig = LearnerConfig()
    reading: ReadingLimits = ReadingLimits()
