"""How rounds are made: read it, change it while it runs."""

# No `annotations` from `__future__`: FastAPI must see the guard's own dependencies.

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field

from config.aggregation import Rules, RulesPatch
from flead.messages import Name
from global_server.access.audit import Audit
from global_server.access.guard import Guard
from global_server.access.roles import Principal
from global_server.rounds import RoundService
from global_server.routes.describing import problems

OfCohort = Annotated[Name | None, Query(description="of this cohort, which need not exist yet; without: of all")]


class RulesAnswer(BaseModel):
    """`GET` and `POST /api/config`."""

    cohort: str | None = Field(description="null: what holds where a cohort has nothing of its own")
    rules: Rules
    changed: RulesPatch | None = Field(description="what was changed through this interface; null: nothing")


def routes(service: RoundService, guard: Guard, audit: Audit, *, clock: Callable[[], datetime]) -> APIRouter:
    """Make the router; `clock` gives the present, aware."""
    router = APIRouter(tags=["configuration"])

    def answer(cohort: str | None) -> RulesAnswer:
        return RulesAnswer(cohort=cohort, rules=service.rules(cohort or ""), changed=service.patch(cohort))

    @router.get("/api/config", responses=problems(401, 403, 422, 429, 503), dependencies=[Depends(guard.viewer)])
    def read_config(cohort: OfCohort = None) -> RulesAnswer:
        """Say how rounds are made."""
        return answer(cohort)

    @router.post("/api/config", responses=problems(400, 401, 403, 413, 422, 429, 503))
    def change_config(
        patch: RulesPatch, who: Annotated[Principal, Depends(guard.operator)], cohort: OfCohort = None
    ) -> RulesAnswer:
        """Change how rounds are made, from the next one on; what is not named stays."""
        service.change_rules(cohort, patch, who.name, clock())
        changed = patch.model_dump(mode="json", exclude_unset=True)
        audit.note(who.name, "config.change", cohort or "all cohorts", **changed)
        return answer(cohort)

    @router.delete("/api/config", responses=problems(401, 403, 422, 429, 503))
    def reset_config(who: Annotated[Principal, Depends(guard.operator)], cohort: OfCohort = None) -> RulesAnswer:
        """Go back to the settings."""
        service.change_rules(cohort, None, who.name, clock())
        audit.note(who.name, "config.reset", cohort or "all cohorts")
        return answer(cohort)

    return router
