"""The rounds: updates in, global models out. What REST and Kafka both feed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from config.aggregation import AggregationSettings, Rules, RulesPatch
from flead import network
from flead.errors import BadInput, BudgetSpent, FleadError, Unavailable
from flead.messages import GlobalModel, LocalUpdate, Stage
from flead.network import Architecture, Vector
from flead.privacy import Accountant, Spent
from flead.rollout import is_canary
from flead.signatures import check, sign
from flead.updates import ReadUpdate, parse_update, read_message
from global_server.books import EVERYBODY, Books
from global_server.cohort import Cohort
from global_server.memory import Accepted, Memory
from global_server.merging import Aids, Judge, make_round
from global_server.quarantine import Quarantine
from global_server.updates import check_update
from global_server.versions import Versions
from storage.rounds import RoundRepository, Update, as_kept

LOG = logging.getLogger(__name__)

DEFAULT_COHORT = "default"


class RoundService:
    """Accepts local updates and makes rounds of them. Safe to use from many threads.

    Parameters
    ----------
    publish:
        delivers a model and returns when that is confirmed, else raises `Unavailable`
    key:
        signs models; None: they are not signed, and no backup is taken back
    held_out:
        judges updates on readings that nobody learned from
    seed:
        of the devices' starting weights: private rounds begin from those
    on_stable:
        called with each stable model that was published, by the thread that publishes

    Attributes
    ----------
    versions, quarantine:
        what else can be done with models and devices

    Notes
    -----
    Every method may raise `Unavailable` where MongoDB does not answer; trying again later is harmless.
    """

    def __init__(
        self, repository: RoundRepository, settings: AggregationSettings, publish: Callable[[GlobalModel], None], *,
        key: Ed25519PrivateKey | None = None, held_out: Judge | None = None, seed: int = 0,
        on_stable: Callable[[GlobalModel], None] = lambda _model: None,
    ) -> None:  # fmt: skip
        self.books = Books(repository, settings)
        self._sign = partial(sign, key=key) if key else lambda model: model
        self.versions = Versions(self.books, self._sign, partial(check, trusted=[key.public_key()] if key else []))
        self.quarantine = Quarantine(self.books)
        self._repository = repository
        self._publish = publish
        self._on_stable = on_stable
        self._held_out = held_out
        self._seed = seed
        self._stuck: set[str] = set()

    @property
    def settings(self) -> AggregationSettings:
        """How rounds are made, as configured."""
        return self.books.settings

    @property
    def work(self) -> Any:
        """Set when there is a model to publish."""
        return self.books.work

    def load(self) -> None:
        """Read everything from MongoDB: rounds, pending updates, counters."""
        self.books.load()

    def rules(self, cohort: str) -> Rules:
        """How a cohort's rounds are made now."""
        return self.books.rules(cohort)

    def patch(self, cohort: str | None) -> RulesPatch | None:
        """What operators changed in the rules of a cohort, or of all."""
        with self.books.lock:
            return self.books.memory.patches.get(cohort or EVERYBODY)

    def change_rules(self, cohort: str | None, patch: RulesPatch | None, who: str, now: datetime) -> None:
        """Change the rules of a cohort, or of all, from the next round on; None goes back to the settings.

        Raises
        ------
        BadRules
            where the outcome could not be
        """
        key = cohort or EVERYBODY
        with self.books.current() as memory:
            if patch is None:
                self._repository.forget_patch(key)
                memory.patches.pop(key, None)
            else:
                whole = patch if key not in memory.patches else memory.patches[key].with_changes(patch)
                self.settings.rules(cohort or "", *[whole])
                self._repository.keep_patch(key, whole, who, now)
                memory.patches[key] = whole
            self.books.forget_rules()

    def accept(self, message: LocalUpdate, now: datetime) -> Accepted:
        """Take one update; raises `BadUpdate` or `BadModel` where it must not enter a round."""
        outcome = self.accept_many([message], now)[0]
        if isinstance(outcome, BadInput):
            raise outcome
        return outcome

    def accept_many(self, messages: Sequence[LocalUpdate], now: datetime) -> list[Accepted | BadInput]:
        """Take updates in order; the outcome of each, the error where it was refused.

        On return every accepted update is stored.
        """
        return self.accept_read([self.read(message, now) for message in messages])

    def read(self, message: LocalUpdate, now: datetime) -> Update | BadInput:
        """Validate an update by itself: what takes time and needs no lock."""
        return self._read(lambda: read_message(message), now)

    def read_json(self, raw: bytes, now: datetime) -> Update | BadInput:
        """The same from the update's JSON."""
        return self._read(lambda: parse_update(raw), now)

    def _read(self, parse: Callable[[], ReadUpdate], now: datetime) -> Update | BadInput:
        try:
            return check_update(parse(), now, lambda cohort: self.rules(cohort).max_weight_norm)
        except BadInput as error:
            return error

    def accept_read(self, read: Sequence[Update | BadInput]) -> list[Accepted | BadInput]:
        """Take updates that were read, in order; on return every accepted one is stored."""
        with self.books.current() as memory:
            known = self._repository.known(update.key for update in read if isinstance(update, Update))
            new: list[Update] = []
            outcomes = [
                part if isinstance(part, BadInput) else memory.decide(part, self.rules(part.cohort), known, new)
                for part in read
            ]
            self._repository.add_updates(new, {u.cohort: memory.cohorts[u.cohort].version + 1 for u in new})
        return outcomes

    def aggregate(self, cohort: str, now: datetime) -> GlobalModel | None:
        """Make a round of what is pending; None if nothing is. On return the round is stored, not yet published.

        A canary on trial is taken back: the round takes its place.

        Raises
        ------
        BudgetSpent
            where privacy allows no further round
        """
        with self.books.current() as memory:
            state = memory.cohorts.get(cohort)
            if state is None or not state.pending:
                return None
            rules = self.rules(cohort)
            made = make_round(state, rules, self._aids(state, rules, memory), as_kept(now))
            model = self._sign(state.staged(made.model, rules.rollout))
            self._repository.store_round(model, made.used, made.memo)
            memory.trust |= {trust.device_id: trust for trust in made.memo.trust}
            state.begin(model)
        LOG.info(
            "round %d of %s: %d devices, %d samples, %s",
            model.version, cohort, model.num_devices, model.total_samples, model.stage.value,
        )  # fmt: skip
        self.work.set()
        return model

    def _aids(self, cohort: Cohort, rules: Rules, memory: Memory) -> Aids:
        strategy = rules.strategy
        return Aids(
            state=self._repository.strategy_state(cohort.name, strategy.name) if strategy.remembers else {},
            trust=memory.trust,
            held_out=self._held_out,
            spend=lambda rules: self._spend(cohort.name, rules),
            start=lambda architecture: self._start(cohort.name, architecture),
        )

    def _spend(self, cohort: str, rules: Rules) -> Spent:
        return Accountant(rules.privacy, self._repository.noise_of(cohort)).spend()

    def _start(self, cohort: str, architecture: Architecture) -> Vector:
        return network.initial_of_cohort(architecture, cohort, self._seed)

    def aggregate_ready(self, now: datetime) -> list[GlobalModel]:
        """Decide on the canaries whose trial is over, and make a round of each cohort in which enough devices wait."""
        self.versions.judge_due(now)
        return self._aggregate_where(lambda state, rules: state.waiting >= rules.min_devices, now)

    def aggregate_due(self, now: datetime) -> list[GlobalModel]:
        """Make a round of each cohort whose pending updates waited for the interval."""

        def due(state: Cohort, rules: Rules) -> bool:
            since = state.due_at()
            return since is not None and now - since >= timedelta(seconds=rules.interval_s)

        return self._aggregate_where(due, now)

    def _aggregate_where(self, condition: Callable[[Cohort, Rules], bool], now: datetime) -> list[GlobalModel]:
        """Make the rounds that are due; a cohort whose canary is on trial waits for the verdict."""
        with self.books.current() as memory:
            chosen = [
                state.name
                for state in memory.cohorts.values()
                if state.trial is None and condition(state, self.rules(state.name))
            ]
            models = [self._aggregate_by_itself(name, now) for name in chosen]
        return [model for model in models if model]

    def _aggregate_by_itself(self, cohort: str, now: datetime) -> GlobalModel | None:
        """Make a round; where it must not be made, the cohort keeps its model, and the log says so once."""
        try:
            model = self.aggregate(cohort, now)
        except (BadInput, BudgetSpent) as error:
            if cohort not in self._stuck:
                LOG.warning("no round of %s is made: %s", cohort, error)
            self._stuck.add(cohort)
            return None
        self._stuck.discard(cohort)
        return model

    def publish_pending(self) -> int:
        """Publish what is new about each cohort's models since this process started; returns how many.

        Raises
        ------
        Unavailable
            where one could not be delivered; it stays pending
        """
        with self.books.current() as memory:
            waiting = [model for state in memory.cohorts.values() for model in state.announcements()]
        failures = [error for error in map(self._publish_one, waiting) if error]
        if failures:
            raise failures[0]
        return len(waiting)

    def _publish_one(self, model: GlobalModel) -> Unavailable | None:
        """Publish a model, without the lock: a broker may take seconds. Returns why it could not be."""
        try:
            self._publish(model)
            self._repository.mark_published(model.cohort, model.version, datetime.now(UTC))
        except Unavailable as error:
            return error
        if model.stage is Stage.STABLE:
            try:
                self._on_stable(model)
            except FleadError as error:
                LOG.warning("version %d of %s has no backup: %s", model.version, model.cohort, error)
        with self.books.lock:
            state = self.books.memory.cohorts.get(model.cohort)
            if state:
                state.delivered(model)
        return None

    def resolve(self, cohort: str | None) -> str:
        """Give the cohort that is meant where none is named: the only one there is, or `default`."""
        with self.books.lock:
            cohorts = self.books.memory.cohorts
            return cohort or (next(iter(cohorts)) if len(cohorts) == 1 else DEFAULT_COHORT)

    def knows(self, cohort: str) -> bool:
        """Say whether an update of the cohort was ever accepted."""
        with self.books.lock:
            return cohort in self.books.memory.cohorts

    def model(self, cohort: str, device_id: str | None = None) -> GlobalModel | None:
        """Give the global model that a device is to have: the stable one, or the canary where it is one of those.

        None before the first round.
        """
        with self.books.lock:
            state = self.books.memory.cohorts.get(cohort)
            if state is None:
                return None
            canary = state.canary
            if device_id is None or canary is None or canary.stage is not Stage.CANARY:
                return state.model
            return canary if is_canary(device_id, cohort, canary.version, canary.share) else state.model

    def control(self, cohort: str) -> Vector | None:
        """Read the fleet's control variate, where the cohort's strategy is SCAFFOLD and a round left one."""
        if self.rules(cohort).strategy.name != "scaffold":
            return None
        return self._repository.strategy_state(cohort, "scaffold").get("control")

    def history(self, cohort: str, limit: int = 1_000, *, devices: bool = True) -> list[dict[str, Any]]:
        """Read the newest rounds from MongoDB, oldest first; their devices where asked for."""
        return self._repository.history(cohort, limit, devices=devices)

    def contributions(self, cohort: str) -> dict[str, int]:
        """Count the updates accepted of each device."""
        with self.books.lock:
            state = self.books.memory.cohorts.get(cohort)
            return dict(state.accepted) if state else {}

    def summary(self) -> dict[str, dict[str, int]]:
        """Sum up each cohort: rounds, devices pending, devices ever."""
        with self.books.lock:
            return {
                name: {"rounds": s.version, "pending_updates": s.waiting, "unique_devices": len(s.accepted)}
                for name, s in self.books.memory.cohorts.items()
            }

    def is_stored(self) -> bool:
        """Say whether MongoDB answers, and memory is what it holds."""
        try:
            with self.books.current():
                self._repository.ping()
        except Unavailable:
            return False
        return True
