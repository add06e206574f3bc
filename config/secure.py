"""How secure sums are held: sums of updates of which the server sees no term (`docs/privacy.md`)."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from flead.secure_sum import MAX_DEVICES, Encoding


class SecureSettings(BaseModel):
    """What a session asks of devices, and how long it waits for them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    automatic: bool = Field(
        default=False, description="a device that asks for a sum opens one where none gathers; else an operator does"
    )
    devices: int = Field(100, ge=3, le=MAX_DEVICES, description="that one sum takes at most")
    min_devices: int = Field(10, ge=3, le=MAX_DEVICES, description="fewer are no sum: it is abandoned")
    threshold: float = Field(
        0.67,
        ge=2 / 3,
        le=1,
        description="share of the devices that must stay to the end, above two thirds in number: devices refuse less",
    )
    gather_s: float = Field(120.0, gt=0, le=86_400, description="longest wait for devices to come, s")
    phase_s: float = Field(30.0, gt=0, le=86_400, description="longest wait in each of the steps behind that, s")
    max_samples: int = Field(1_000_000, ge=1, description="of one device; beyond it, it cannot take part")
    max_weight: float = Field(100.0, gt=0, le=1e6, description="of one device; beyond it, it cannot take part")

    @model_validator(mode="after")
    def _hold_together(self) -> Self:
        if self.min_devices > self.devices:
            raise ValueError("secure.min_devices is above secure.devices: no sum would ever have enough")
        Encoding(devices=self.devices, max_samples=self.max_samples, max_weight=self.max_weight)
        return self

    @property
    def encoding(self) -> Encoding:
        """How weights become whole numbers."""
        return Encoding(devices=self.devices, max_samples=self.max_samples, max_weight=self.max_weight)
