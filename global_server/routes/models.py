"""Versions of global models: list, look at, compare, promote, roll back, restore."""

# No `annotations` from `__future__`: FastAPI must see the guard's own dependencies.

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Query
from pydantic import BaseModel, Field

from flead.messages import GlobalModel, Stage
from global_server.access.audit import Audit
from global_server.access.guard import Guard
from global_server.access.roles import Principal
from global_server.rounds import RoundService
from global_server.routes.describing import problems
from global_server.routes.rounds import CohortQuery, existing

Version = Annotated[int, Path(ge=1, le=2**53 - 1, description="the round that made it", examples=[7])]


class VersionAnswer(BaseModel):
    """A version of a global model, without its weights."""

    cohort: str
    version: int
    parent: int | None = Field(description="the version before")
    stage: Stage
    share: float = Field(description="of the devices, where it is a canary; else 1")
    timestamp: datetime
    num_devices: int
    total_samples: int
    aggregation_strategy: str
    metrics: dict[str, float] = Field(
        description="`loss`: its devices' mean error when it was made; `rise`: of the canaries' errors against the "
        "others'; `epsilon_total`: what is known of a device since the first round"
    )
    signature: str | None
    published_at: datetime | None = None
    verdict: str | None = Field(None, description="why it was promoted or rolled back")
    decided_by: str | None = None
    decided_at: datetime | None = None


class VersionsAnswer(BaseModel):
    """`GET /api/models`, newest first."""

    cohort: str
    stable: int | None = Field(description="the version that every device is to have")
    canary: int | None = Field(description="the version on trial")
    models: list[VersionAnswer]


class WholeVersion(VersionAnswer):
    """`GET /api/models/{version}`."""

    model: GlobalModel = Field(description="as it is published, signed")


class DifferenceAnswer(BaseModel):
    """`GET /api/models/compare`: how b differs from a."""

    cohort: str
    a: VersionAnswer
    b: VersionAnswer
    distance: float = Field(description="Euclidean, over all parameters")
    relative: float = Field(description="the same as a share of a's norm")
    cosine: float = Field(description="of the angle between the two")
    layers: list[float] = Field(description="the distance by layer")


class KeyAnswer(BaseModel):
    """`GET /api/signing-key`."""

    algorithm: str
    public_key: str | None = Field(description="32 bytes in base64; null: models are not signed")


_PLAIN = {"stage": Stage.STABLE, "share": 1.0, "metrics": {}, "parent": None, "signature": None}
"""What rounds of earlier layouts do not say."""


def routes(
    service: RoundService, guard: Guard, audit: Audit, *, clock: Callable[[], datetime], public_key: str | None
) -> APIRouter:
    """Make the router.

    Parameters
    ----------
    clock:
        gives the present, aware
    public_key:
        the one that the server's signatures hold for, base64
    """
    router = APIRouter(tags=["models"])
    versions = service.versions

    def described(cohort: str, version: int) -> VersionAnswer:
        model = versions.get(cohort, version)
        return VersionAnswer.model_validate(
            {**model.model_dump(exclude={"weights"}), **versions.about(cohort, version)}
        )

    @router.get("/api/models", responses=problems(401, 403, 404, 422, 429, 503), dependencies=[Depends(guard.viewer)])
    def list_models(
        cohort: CohortQuery = None, limit: Annotated[int, Query(ge=1, le=10_000, description="newest versions")] = 100
    ) -> VersionsAnswer:
        """List a cohort's versions."""
        name = existing(service, cohort)
        found = service.history(name, limit, devices=False)[::-1]
        stable = service.model(name)
        trial = next((one for one in found if one.get("stage") == Stage.CANARY), None)
        models = [VersionAnswer.model_validate(_PLAIN | one | {"version": one["round"]}) for one in found]
        return VersionsAnswer(
            cohort=name,
            stable=stable.version if stable else None,
            canary=trial["round"] if trial else None,
            models=models,
        )

    @router.get("/api/models/compare", responses=problems(401, 403, 404, 422, 429, 503),
                dependencies=[Depends(guard.viewer)])  # fmt: skip
    def compare_models(
        a: Annotated[int, Query(ge=1, le=2**53 - 1, description="a version", examples=[6])],
        b: Annotated[int, Query(ge=1, le=2**53 - 1, description="another", examples=[7])],
        cohort: CohortQuery = None,
    ) -> DifferenceAnswer:
        """Compare any two versions: how far apart they are, and what each was judged by."""
        name = existing(service, cohort)
        found = versions.compare(name, a, b)
        return DifferenceAnswer(
            cohort=name,
            a=described(name, a),
            b=described(name, b),
            distance=found.distance,
            relative=found.relative,
            cosine=found.cosine,
            layers=found.layers,
        )

    @router.get("/api/models/{version}", responses=problems(401, 403, 404, 422, 429, 503),
                dependencies=[Depends(guard.viewer)])  # fmt: skip
    def one_model(version: Version, cohort: CohortQuery = None) -> WholeVersion:
        """Give a version with its weights and its signature."""
        name = existing(service, cohort)
        return WholeVersion(**described(name, version).model_dump(), model=versions.get(name, version))

    @router.post("/api/models/{version}/promote", responses=problems(401, 403, 404, 409, 422, 429, 503))
    def promote_model(
        version: Version, who: Annotated[Principal, Depends(guard.operator)], cohort: CohortQuery = None
    ) -> VersionAnswer:
        """Make a version the stable one: a canary, or an earlier version, which takes all later ones back."""
        name = existing(service, cohort)
        versions.promote(name, version, who.name, clock())
        audit.note(who.name, "model.promote", f"{name}#{version}")
        return described(name, version)

    @router.post("/api/models/{version}/rollback", responses=problems(401, 403, 404, 409, 422, 429, 503))
    def roll_back_model(
        version: Version, who: Annotated[Principal, Depends(guard.operator)], cohort: CohortQuery = None
    ) -> VersionAnswer:
        """Take a version back: a canary, or the stable one, before which the one before it comes back."""
        name = existing(service, cohort)
        versions.roll_back(name, version, who.name, clock())
        audit.note(who.name, "model.rollback", f"{name}#{version}")
        return described(name, version)

    @router.post("/api/restore", responses=problems(400, 401, 403, 409, 413, 422, 429, 503))
    def restore_model(
        who: Annotated[Principal, Depends(guard.operator)],
        model: Annotated[GlobalModel, Body(description="a backup, as it was written: signed by this server")],
    ) -> VersionAnswer:
        """Make a backup the stable model, as a version of its own."""
        made = versions.restore(model, who.name, clock())
        audit.note(who.name, "model.restore", f"{made.cohort}#{made.version}", version=model.version)
        return described(made.cohort, made.version)

    @router.get("/api/signing-key", responses=problems(401, 403, 404, 429), dependencies=[Depends(guard.anyone)])
    def signing_key() -> KeyAnswer:
        """Give the key that models' signatures are checked with."""
        return KeyAnswer(algorithm="Ed25519", public_key=public_key)

    return router
