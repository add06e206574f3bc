"""How rounds are made, for all cohorts or for one: the settings that an operator may also change while it runs."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flead.defence import Defence
from flead.errors import BadRules
from flead.federation import FedAvg, Strategy
from flead.messages import Name
from flead.privacy import Privacy
from flead.rollout import Rollout


class Rules(BaseModel):
    """How a cohort's rounds are made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_devices: int = Field(
        10, ge=1, le=1_000_000, description="distinct devices with a pending update that start a round"
    )
    interval_s: float = Field(1_800.0, gt=0, description="a round at least this often if anything is pending, s")
    max_weight_norm: float = Field(1e4, gt=0, description="largest Euclidean norm of an update's parameters")
    strategy: Strategy = Field(FedAvg(), description="how updates are merged: its name and hyper-parameters")
    rollout: Rollout = Field(Rollout(), description="how a new global model reaches its devices")
    defence: Defence = Field(Defence(), description="what is looked for in updates before they are merged")
    privacy: Privacy = Field(Privacy(), description="how much a global model may tell about one device")

    def changed_by(self, *patches: RulesPatch) -> Self:
        """These rules, with what patches name put in their place; the later ones win.

        Raises
        ------
        BadRules
            where the outcome is no rules

        >>> Rules().changed_by(RulesPatch(min_devices=3), RulesPatch(rollout={"share": 0.2})).rollout.share
        0.2
        >>> Rules().changed_by(RulesPatch(rollout={"share": 2}))
        Traceback (most recent call last):
        flead.errors.BadRules: out_of_range: rollout.share: Input should be less than or equal to 0.5
        """
        found = self.model_dump()
        for patch in patches:
            found = _merged(found, patch.given())
        try:
            return type(self).model_validate(found)
        except ValidationError as error:
            wrong = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise BadRules("; ".join(wrong)) from None


class RulesPatch(BaseModel):
    """Some of the rules. What is not named stays as it is; in `rollout`, `defence` and `privacy`, too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_devices: int | None = Field(None, ge=1, le=1_000_000)
    interval_s: float | None = Field(None, gt=0)
    max_weight_norm: float | None = Field(None, gt=0)
    strategy: Strategy | None = None
    rollout: dict[str, Any] | None = None
    defence: dict[str, Any] | None = None
    privacy: dict[str, Any] | None = None

    def given(self) -> dict[str, Any]:
        """What it names."""
        return self.model_dump(exclude_unset=True, exclude_none=True)

    def with_changes(self, later: RulesPatch) -> RulesPatch:
        """This patch, with a later one's over it."""
        return RulesPatch.model_validate(_merged(self.given(), later.given()))


def _merged(earlier: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """The earlier settings with the later ones in their place; those of a strategy do not outlive it."""
    found = dict(earlier)
    for name, value in later.items():
        old = found.get(name)
        same = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name")
        )
        found[name] = {**old, **value} if same and old is not None else value
    return found


class AggregationSettings(Rules):
    """How rounds are made, and what cohorts do in another way."""

    cohorts: dict[Name, RulesPatch] = Field({}, description="what is another way for a cohort, by its name")
    partial_sums: int = Field(
        0,
        ge=0,
        le=4_096,
        description="shards in which Flink sums a cohort's updates before they are sent; 0: it does not",
    )
    partial_every_s: float = Field(10.0, gt=0, le=3_600, description="how often a shard sends what it has summed, s")
    backups: int = Field(20, ge=0, description="files of stable global models kept in the run folder, of each cohort")

    @model_validator(mode="after")
    def _sums_can_be_merged(self) -> Self:
        if not self.partial_sums:
            return self
        for name in ("", *self.cohorts):
            if why := _no_sums(self.rules(name)):
                raise ValueError(f"partial_sums and {f'cohorts.{name}.' if name else ''}{why}")
        return self

    def rules(self, cohort: str, *patches: RulesPatch) -> Rules:
        """The rules of a cohort.

        Raises
        ------
        BadRules
            where the patches make them what they cannot be
        """
        own = self.cohorts.get(cohort)
        base = Rules.model_validate({name: getattr(self, name) for name in Rules.model_fields})
        rules = base.changed_by(*([own] if own else []), *patches)
        if patches and self.partial_sums and (why := _no_sums(rules)):
            raise BadRules(f"aggregation.partial_sums and {why}")
        return rules


def _no_sums(rules: Rules) -> str | None:
    """What in the rules cannot do with sums over many devices; None where nothing."""
    if not rules.strategy.linear:
        return (
            f"strategy: {rules.strategy.name} looks at each device by itself, and of a sum it would see one: "
            "set partial_sums to 0, or choose a strategy that averages"
        )
    return "privacy: a sum cannot be clipped for each device: set partial_sums to 0" if rules.privacy.enabled else None
