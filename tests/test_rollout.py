"""A new global model goes to a few devices first; their errors, or a person, promote it or take it back."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from config.aggregation import AggregationSettings, RulesPatch
from config.settings import ServerSettings, Settings
from flead import network
from flead.defence import Defence
from flead.errors import (
    BadConfiguration,
    BadModel,
    BadRules,
    BadUpdate,
    BudgetSpent,
    Conflict,
    CorruptRunFolder,
    ForgedModel,
    NotThere,
)  # fmt: skip
from flead.messages import GlobalModel, LocalUpdate, Stage, WeightsMessage
from flead.network import Architecture
from flead.rollout import Rollout, Verdict, is_canary, judge, share_for
from flead.signatures import check, public_text, read_public
from global_server.backups import Backups, read_backup
from global_server.memory import Accepted
from global_server.merging import gather
from global_server.rounds import RoundService
from global_server.signing import signing_key
from storage.rounds import RoundRepository
from tests.fixtures_storage import Mongo

NOW = datetime(2024, 6, 1, tzinfo=UTC)
SIZES = Architecture(2, (3,), 1)
DEVICES = [f"d{i}" for i in range(20)]
KEY = Ed25519PrivateKey.generate()


class TestTheArithmetic:
    @given(st.integers(2, 300), st.floats(0.01, 0.5), st.integers(1, 10_000))
    def test_the_share_picks_as_many_devices_as_it_says(self, count: int, share: float, version: int) -> None:
        names = [f"d{i}" for i in range(count)]
        exact = share_for(names, "c", version, share)
        picked = sum(is_canary(name, "c", version, exact) for name in names)
        assert picked == min(max(1, round(share * count)), count - 1)

    def test_other_devices_go_first_each_time(self) -> None:
        shares = [share_for(DEVICES, "c", version, 0.1) for version in range(1, 60)]
        picked = {
            name for version, share in enumerate(shares, 1) for name in DEVICES if is_canary(name, "c", version, share)
        }
        assert picked == set(DEVICES)

    @pytest.mark.parametrize(
        ("canaries", "controls", "verdict"),
        [
            ([(1.0, 1.0)] * 2, [(1.0, 1.0)] * 18, Verdict.PROMOTE),
            ([(1.0, 0.5)] * 2, [(1.0, 1.0)] * 18, Verdict.PROMOTE),
            ([(1.0, 2.0)] * 2, [(1.0, 1.0)] * 18, Verdict.ROLL_BACK),
            ([(1.0, 2.0)] * 2, [(1.0, 2.0)] * 18, Verdict.PROMOTE),  # a storm: everybody's errors rose
            ([(5.0, 5.0)] * 2, [(1.0, 1.0)] * 18, Verdict.PROMOTE),  # difficult places, as before
            ([(1.0, 1.0)], [(1.0, 1.0)] * 18, Verdict.WAIT),
            ([(1.0, 1.0)] * 2, [(1.0, 1.0)] * 2, Verdict.WAIT),
            ([(0.0, 0.0)] * 2, [(0.0, 0.0)] * 3, Verdict.PROMOTE),
        ],
    )  # fmt: skip
    def test_the_verdict(self, canaries: Any, controls: Any, verdict: Verdict) -> None:
        assert judge(canaries, controls, 2, Rollout(), overdue=False).verdict is verdict

    def test_one_liar_among_canaries_decides_nothing(self) -> None:
        said = [(1.0, 1.0)] * 4 + [(1.0, 1e9)]
        assert judge(said, [(1.0, 1.0)] * 45, 5, Rollout(), overdue=False).verdict is Verdict.PROMOTE

    def test_who_was_never_heard_of_is_no_reason_to_promote(self) -> None:
        silent = judge([], [(1.0, 1.0)] * 9, 2, Rollout(), overdue=True)
        assert (silent.verdict, silent.why) == (Verdict.ROLL_BACK, "no canary reported in time")


class Fleet:
    """Twenty devices, the server they send to, and what it published."""

    cohort = "default"

    def __init__(self, mongo: Mongo, **settings: Any) -> None:
        self.mongo = mongo
        self.published: list[GlobalModel] = []
        self.stable: list[GlobalModel] = []
        self.settings = AggregationSettings(min_devices=20, **settings)
        self.second = 0
        self.restart()

    def restart(self) -> None:
        repository = RoundRepository(self.mongo.database)
        self.service = RoundService(
            repository, self.settings, self.published.append, key=KEY, on_stable=self.stable.append
        )
        self.service.load()

    @property
    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.second)

    def send(self, value: float = 1.0, loss: Callable[[str], float] = lambda _: 1.0, **changes: Any) -> list[Any]:
        """An update of each device, with the version that it would have by now."""
        self.second += 60
        messages = []
        for name in changes.pop("devices", DEVICES):
            model = self.service.model(self.cohort, name)
            base_version = model.version if model else 0
            metadata = {"cohort": self.cohort, "base_version": base_version, "loss": loss(name)} | changes
            theta = np.full(SIZES.parameter_count, value) + 0.01 * len(name) + 0.001 * int(name[1:])
            messages.append(
                LocalUpdate.model_validate(
                    {
                        "device_id": name,
                        "weights": network.to_message(theta, SIZES),
                        "sample_count": 100,
                        "timestamp": self.now,
                        "metadata": metadata,
                    }
                )
            )
        return self.service.accept_many(messages, self.now)

    def round(self, **said: Any) -> list[GlobalModel]:
        self.send(**said)
        self.second += 1
        made = self.service.aggregate_ready(self.now)
        self.service.publish_pending()
        return made

    def canaries(self) -> set[str]:
        canary = self.service.books.memory.cohorts[self.cohort].canary
        assert canary is not None
        return {name for name in DEVICES if is_canary(name, self.cohort, canary.version, canary.share)}

    @property
    def version(self) -> int:
        model = self.service.model(self.cohort)
        assert model is not None
        return model.version


@pytest.fixture
def fleet(mongo: Mongo) -> Fleet:
    return Fleet(mongo)


class TestTheRollout:
    def test_the_first_model_goes_to_all_the_next_to_a_tenth(self, fleet: Fleet) -> None:
        (first,) = fleet.round()
        assert (first.stage, first.parent, first.share) == (Stage.STABLE, None, 1.0)
        (second,) = fleet.round()
        assert (second.stage, second.parent) == (Stage.CANARY, 1)
        assert len(fleet.canaries()) == 2
        got = {name: fleet.service.model("default", name) for name in DEVICES}
        assert {name for name, model in got.items() if model and model.version == 2} == fleet.canaries()
        assert fleet.version == 1
        assert [(m.version, m.key) for m in fleet.published] == [(1, "default"), (2, "default\0canary")]

    @pytest.mark.parametrize("restarted", [False, True])
    def test_errors_that_stay_promote_it(self, fleet: Fleet, restarted: bool) -> None:
        fleet.round()
        fleet.round()
        if restarted:
            fleet.restart()
        (third,) = fleet.round()  # who judges the second is what the third is made of
        assert fleet.version == 2
        assert (third.version, third.stage) == (3, Stage.CANARY)
        stored = fleet.mongo.database.global_model.find_one({"round": 2})
        assert stored is not None
        assert (stored["stage"], stored["decided_by"], stored["metrics"]["canaries"]) == ("stable", "rollout", 2.0)
        assert [m.version for m in fleet.stable if m.version > 1] == [2]

    @pytest.mark.parametrize("restarted", [False, True])
    def test_errors_that_rise_take_it_back_and_what_it_taught_with_it(self, fleet: Fleet, restarted: bool) -> None:
        fleet.round()
        fleet.round(value=2.0)
        first_to_get_it = fleet.canaries()
        if restarted:
            fleet.restart()

        def loss(name: str) -> float:
            return 2.0 if name in first_to_get_it else 1.0

        assert fleet.round(value=5.0, loss=loss) == []  # two canaries are looked at twice
        trial = fleet.service.versions.trial("default", fleet.now)
        assert trial is not None
        assert "looked at once more" in trial["why"]
        assert fleet.round(value=5.0, loss=loss) == []  # the two canaries' updates are not used: eighteen wait
        assert fleet.version == 1
        assert fleet.service.summary()["default"]["pending_updates"] == 18
        late = fleet.send(devices=sorted(first_to_get_it), base_version=2)
        assert late == [Accepted.OUTDATED] * 2
        said = [(m.version, m.stage) for m in fleet.published]
        assert said[-1] == (2, Stage.ROLLED_BACK)
        fleet.restart()
        assert fleet.service.summary()["default"]["pending_updates"] == 18
        assert fleet.version == 1

    def test_two_cohorts_are_judged_at_once(self, fleet: Fleet) -> None:
        """One is taken back, for which everything is read again: the other's promotion is not lost to what was."""
        other = Fleet(fleet.mongo)
        other.cohort, other.service, other.second = "other", fleet.service, 1
        for _ in range(2):
            fleet.round()
            other.round()
        for _ in range(2):
            fleet.send(loss=lambda name: 3.0 if name in fleet.canaries() else 1.0)
            other.send()
        decided = fleet.service.versions.judge_due(other.now)
        assert {model.cohort: model.stage for model, _ in decided} == {
            "default": Stage.ROLLED_BACK,
            "other": Stage.STABLE,
        }
        assert (fleet.version, other.version) == (1, 2)
        assert fleet.service.versions.trial("other", other.now) is None

    def test_a_fleet_that_says_nothing_of_its_errors_gets_every_model_at_once(self, mongo: Mongo) -> None:
        fleet = Fleet(mongo)
        for _ in range(3):
            (made,) = fleet.round(loss=lambda _: float("nan"))
            assert made.stage is Stage.STABLE

    def test_one_bad_look_at_a_few_canaries_is_no_verdict(self, fleet: Fleet) -> None:
        fleet.round()
        fleet.round()
        unlucky = fleet.canaries()
        fleet.round(loss=lambda name: 1.5 if name in unlucky else 1.0)
        fleet.round(loss=lambda name: 0.6 if name in unlucky else 1.0)
        assert fleet.version == 2

    def test_canaries_that_fall_silent_do_not_keep_the_others_waiting(self, fleet: Fleet) -> None:
        fleet.round()
        fleet.round()
        others = sorted(set(DEVICES) - fleet.canaries())
        for _ in range(4):
            fleet.send(devices=others)
            fleet.service.versions.judge_due(fleet.now)
        stored = fleet.mongo.database.global_model.find_one({"round": 2})
        assert stored is not None
        assert (stored["stage"], stored["verdict"]) == ("rolled_back", "no canary reported in time")

    def test_a_round_on_demand_takes_the_place_of_the_canary(self, fleet: Fleet) -> None:
        fleet.round()
        fleet.round()
        fleet.send()
        made = fleet.service.aggregate("default", fleet.now)
        assert made is not None
        assert (made.version, made.parent, made.stage) == (3, 1, Stage.CANARY)
        fleet.restart()
        assert fleet.service.model("default", sorted(fleet.canaries())[0]) == made
        stored = fleet.mongo.database.global_model.find_one({"round": 2})
        assert stored is not None
        assert stored["stage"] == "rolled_back"

    def test_by_hand_only_where_that_is_set(self, mongo: Mongo) -> None:
        fleet = Fleet(mongo, rollout=Rollout(automatic=False))
        fleet.round()
        fleet.round()
        assert fleet.round() == []
        fleet.service.versions.promote("default", 2, "ada", fleet.now)
        assert fleet.version == 2

    def test_an_operator_goes_back_and_forth(self, fleet: Fleet) -> None:
        for _ in range(4):
            fleet.round()
        assert fleet.version == 3
        versions = fleet.service.versions
        versions.roll_back("default", 4, "ada", fleet.now)
        versions.roll_back("default", 3, "ada", fleet.now)
        assert fleet.version == 2
        versions.promote("default", 1, "ada", fleet.now)
        fleet.service.publish_pending()
        assert fleet.version == 1
        assert [model.version for model in fleet.published if model.stage is Stage.STABLE][-1] == 1
        fleet.restart()
        assert fleet.version == 1
        (made,) = fleet.round()
        assert (made.version, made.parent) == (5, 1)  # numbers are not used twice
        with pytest.raises(Conflict, match="first stable one"):
            versions.roll_back("default", 1, "ada", fleet.now)
        with pytest.raises(Conflict, match="already"):
            fleet.service.versions.promote("default", 1, "ada", fleet.now)
        with pytest.raises(Conflict, match="neither"):
            fleet.service.versions.roll_back("default", 3, "ada", fleet.now)
        with pytest.raises(NotThere, match="no version 99"):
            fleet.service.versions.promote("default", 99, "ada", fleet.now)

    def test_a_version_that_was_taken_back_and_comes_again_is_what_the_next_round_begins_from(
        self, fleet: Fleet
    ) -> None:
        versions = fleet.service.versions
        fleet.round()
        for _ in range(2):
            (canary,) = fleet.round()
            versions.roll_back("default", canary.version, "ada", fleet.now)
        versions.promote("default", 2, "ada", fleet.now)
        fleet.send()
        state = fleet.service.books.memory.cohorts["default"]
        began_from = gather(state, list(state.pending.values())).previous
        assert began_from is not None
        assert began_from == pytest.approx(network.from_message(versions.get("default", 2).weights)[0])

    def test_any_two_are_compared(self, fleet: Fleet) -> None:
        fleet.round(value=1.0)
        fleet.round(value=2.0)
        found = fleet.service.versions.compare("default", 1, 2)
        assert found.distance == pytest.approx(np.sqrt(SIZES.parameter_count))
        assert found.cosine == pytest.approx(1.0, abs=1e-6)
        assert np.square(found.layers).sum() == pytest.approx(found.distance**2)


class TestSignatures:
    def test_every_model_that_goes_out_is_signed(self, fleet: Fleet) -> None:
        for _ in range(3):
            fleet.round()
        assert len(fleet.published) >= 4
        for model in fleet.published:
            check(GlobalModel.from_json(model.model_dump_json().encode()), [KEY.public_key()])

    @pytest.mark.parametrize(
        "change",
        [{"version": 9}, {"cohort": "x"}, {"stage": Stage.CANARY}, {"share": 0.5}, {"parent": 7}, {"signature": None},
         {"signature": "?"}, {"signature": base64.b64encode(b"x" * 64).decode()}, {"timestamp": NOW}],
    )  # fmt: skip
    def test_what_was_changed_on_the_way_is_forged(self, fleet: Fleet, change: dict[str, Any]) -> None:
        (model,) = fleet.round()
        with pytest.raises(ForgedModel):
            check(model.model_copy(update=change), [KEY.public_key()])
        with pytest.raises(ForgedModel):
            check(model, [Ed25519PrivateKey.generate().public_key()])

    def test_the_key_is_made_once_and_only_its_owner_reads_it(self, tmp_path: Path) -> None:
        settings = Settings(run_dir=tmp_path)
        key = signing_key(settings)
        assert public_text(signing_key(settings).public_key()) == public_text(key.public_key())
        (path,) = (tmp_path / "server").iterdir()
        assert path.stat().st_mode & 0o777 == 0o600
        path.write_text("?")
        with pytest.raises(CorruptRunFolder, match="no Ed25519 key"):
            signing_key(settings)
        with pytest.raises(BadConfiguration, match=r"server\.signing_key"):
            signing_key(Settings(run_dir=tmp_path, server=ServerSettings(signing_key=path)))
        with pytest.raises(BadConfiguration, match="no Ed25519 public key"):
            read_public("AAAA")


def test_what_waits_and_began_from_a_version_that_is_taken_back_is_not_used(mongo: Mongo) -> None:
    fleet = Fleet(mongo, rollout={"share": 0.0})
    fleet.round()
    fleet.round()
    fleet.send(devices=DEVICES[:5], base_version=1)
    fleet.send(devices=DEVICES[5:])
    fleet.service.versions.roll_back("default", 2, "ada", fleet.now)
    assert fleet.service.summary()["default"]["pending_updates"] == 5
    made = fleet.service.aggregate("default", fleet.now)
    assert made is not None
    assert (made.version, made.num_devices) == (3, 5)


class TestBackups:
    def test_a_lost_database_goes_on_from_the_newest_backup(self, mongo: Mongo, tmp_path: Path) -> None:
        fleet, backups = Fleet(mongo), Backups(tmp_path, keep=2)
        for _ in range(4):
            fleet.round()
        for model in fleet.stable:
            backups.write(model)
        newest = backups.newest("default")
        assert sorted(path.name for path in newest.parent.iterdir()) == ["000000002-2.json", "000000003-3.json"]
        assert backups.cohorts() == ["default"]
        for name in ("global_model", "local_models"):
            mongo.database[name].delete_many({})
        fleet.restart()
        model = fleet.service.versions.restore(read_backup(newest), "ada", fleet.now)
        assert (model.version, model.parent, fleet.version) == (4, 3, 4)
        fleet.service.publish_pending()
        check(fleet.published[-1], [KEY.public_key()])
        (made,) = fleet.round()
        assert made.version == 5

    def test_the_newest_backup_is_the_version_that_came_back(self, fleet: Fleet, tmp_path: Path) -> None:
        backups, versions = Backups(tmp_path, keep=20), fleet.service.versions
        for _ in range(4):
            fleet.round()
        versions.roll_back("default", 3, "ada", fleet.now)
        fleet.service.publish_pending()
        for model in [*fleet.stable, fleet.stable[-1]]:  # published again after a restart: no file of its own
            backups.write(model)
        newest = backups.newest("default")
        assert (read_backup(newest).version, newest.name) == (2, "000000004-2.json")
        assert len(list(newest.parent.iterdir())) == 4

    def test_backups_of_earlier_releases_go_before(self, fleet: Fleet, tmp_path: Path) -> None:
        """The database was lost, and rounds began anew: what is new is not removed for its low number."""
        (model,) = fleet.round()
        backups = Backups(tmp_path, keep=2)
        backups.write(model)
        (path,) = backups.newest("default").parent.iterdir()
        for version in (40, 41):
            (path.parent / f"{version:09d}.json").write_bytes(path.read_bytes())
        path.unlink()
        backups.write(model)
        assert backups.newest("default").name == "000000042-1.json"
        assert len(list(path.parent.iterdir())) == 2

    def test_what_waits_goes_on_waiting_while_a_backup_comes_back(self, fleet: Fleet) -> None:
        (model,) = fleet.round()
        fleet.send(5.0)
        assert fleet.service.versions.restore(model, "ada", fleet.now).version == 2
        fleet.restart()
        assert fleet.service.summary()["default"]["pending_updates"] == 20
        made = fleet.service.aggregate("default", fleet.now)
        assert made is not None
        assert (made.version, made.num_devices) == (3, 20)
        assert {found["round"] for found in fleet.mongo.database.local_models.find()} == {1, 3}

    def test_a_backup_that_somebody_else_made_is_refused(self, fleet: Fleet, tmp_path: Path) -> None:
        (model,) = fleet.round()
        with pytest.raises(ForgedModel):
            fleet.service.versions.restore(model.model_copy(update={"version": 7}), "ada", fleet.now)
        (tmp_path / "x.json").write_text("{}")
        with pytest.raises(BadModel, match="no backup"):
            read_backup(tmp_path / "x.json")


def sum_of(devices: int, at: datetime) -> LocalUpdate:
    weights = network.to_message(np.ones(SIZES.parameter_count), SIZES)
    said = {"sample_count": 100, "timestamp": at, "metadata": {"devices": devices}}
    return LocalUpdate.model_validate({"device_id": "edge", "weights": weights, **said})


class TestTheRules:
    def test_a_strategy_is_chosen_by_cohort_and_survives_a_restart(self, fleet: Fleet) -> None:
        patch = RulesPatch.model_validate({"strategy": {"name": "fedavgm", "momentum": 0.9}, "min_devices": 5})
        fleet.service.change_rules("default", patch, "ada", fleet.now)
        fleet.restart()
        assert fleet.service.rules("default").min_devices == 5
        assert fleet.service.rules("other").min_devices == 20
        for value in (1.0, 2.0, 3.0):
            (made,) = fleet.round(value=value)
        assert made.aggregation_strategy == "fedavgm"
        state = RoundRepository(fleet.mongo.database).strategy_state("default", "fedavgm")
        assert state["momentum"].shape == (SIZES.parameter_count,)
        fleet.service.change_rules("default", None, "ada", fleet.now)
        assert fleet.service.rules("default").strategy.name == "fedavg"

    def test_scaffold_takes_devices_controls_and_gives_the_fleets(self, fleet: Fleet) -> None:
        scaffold = RulesPatch.model_validate({"strategy": {"name": "scaffold"}})
        fleet.service.change_rules("default", scaffold, "ada", fleet.now)
        assert fleet.service.control("default") is None
        change = [0.5] * SIZES.parameter_count
        assert fleet.send(devices=DEVICES[:5], control=change) == [Accepted.NEW] * 5
        fleet.send(devices=DEVICES[:5], control=change)  # of two before a round, both count
        fleet.restart()
        fleet.service.aggregate("default", fleet.now)
        control = fleet.service.control("default")
        assert control is not None
        np.testing.assert_allclose(control, 1.0)
        (refused,) = fleet.send(devices=["d9"], control=[1.0])
        assert isinstance(refused, BadUpdate)
        assert "metadata.control" in refused.detail

    def test_what_is_named_twice_is_merged_and_what_cannot_be_is_refused(self, fleet: Fleet) -> None:
        for rollout in ({"share": 0.2}, {"tolerance": 0.5}):
            fleet.service.change_rules(None, RulesPatch(rollout=rollout), "ada", fleet.now)
        rules = fleet.service.rules("any")
        assert (rules.rollout.share, rules.rollout.tolerance) == (0.2, 0.5)
        with pytest.raises(BadRules, match=r"rollout\.share"):
            fleet.service.change_rules(None, RulesPatch(rollout={"share": 7}), "ada", fleet.now)
        assert fleet.service.rules("any") == rules

    def test_a_sum_over_many_devices_counts_as_many_and_only_where_it_can(self, fleet: Fleet) -> None:
        assert fleet.send(devices=["d1"], samples_seen=100) == [Accepted.NEW]
        (outcome,) = fleet.service.accept_many([sum_of(19, fleet.now)], fleet.now)
        assert outcome is Accepted.NEW
        (made,) = fleet.service.aggregate_ready(fleet.now)
        assert made.num_devices == 20
        fleet.service.change_rules(None, RulesPatch.model_validate({"strategy": {"name": "krum"}}), "ada", fleet.now)
        (refused,) = fleet.service.accept_many([sum_of(19, fleet.now + timedelta(seconds=1))], fleet.now)
        assert isinstance(refused, BadUpdate)
        assert "krum looks at each device by itself" in refused.detail

    def test_sums_of_one_sender_before_a_round_are_all_in_it(self, fleet: Fleet) -> None:
        for second, value in enumerate((1.0, 4.0)):
            message = sum_of(19, fleet.now + timedelta(seconds=second))
            message.weights = WeightsMessage.model_validate(
                network.to_message(np.full(SIZES.parameter_count, value), SIZES)
            )
            fleet.service.accept(message.model_copy(update={"sample_count": 100 * (second + 1)}), fleet.now)
        fleet.restart()
        made = fleet.service.aggregate("default", fleet.now)
        assert made is not None
        assert (made.total_samples, made.num_devices) == (300, 19)
        np.testing.assert_allclose(network.from_message(made.weights)[0], 3.0)

    def test_what_flink_sums_must_be_mergeable(self) -> None:
        with pytest.raises(ValueError, match=r"cohorts\.x\.strategy: krum looks at each device"):
            AggregationSettings(
                partial_sums=2, cohorts={"x": RulesPatch.model_validate({"strategy": {"name": "krum"}})}
            )
        with pytest.raises(ValueError, match="privacy: a sum cannot be clipped"):
            AggregationSettings(partial_sums=2, privacy={"enabled": True})

    @pytest.mark.parametrize("change", [{"strategy": {"name": "krum"}}, {"privacy": {"enabled": True}}])
    def test_nobody_changes_the_rules_of_sums_into_what_cannot_do_with_them(
        self, mongo: Mongo, change: dict[str, Any]
    ) -> None:
        service = Fleet(mongo, partial_sums=2).service
        with pytest.raises(BadRules, match="partial_sums"):
            service.change_rules("default", RulesPatch.model_validate(change), "ada", NOW)
        assert service.rules("default").strategy.linear


class TestTheDefence:
    def test_a_device_that_lies_is_left_out_then_kept_out_until_somebody_decides(self, mongo: Mongo) -> None:
        fleet = Fleet(mongo, defence=Defence(enabled=True), rollout=Rollout(share=0.0))
        rng = np.random.default_rng(0)

        def lie(name: str) -> LocalUpdate:
            theta = (
                rng.normal(1.0, 0.01, SIZES.parameter_count) if name != "d7" else np.full(SIZES.parameter_count, 50.0)
            )
            weights = network.to_message(theta, SIZES)
            at = {"sample_count": 100, "timestamp": fleet.now}
            return LocalUpdate.model_validate({"device_id": name, "weights": weights, **at})

        for _ in range(6):
            fleet.second += 60
            outcomes = fleet.service.accept_many([lie(name) for name in DEVICES], fleet.now)
            fleet.service.aggregate("default", fleet.now)
        assert outcomes[7] is Accepted.QUARANTINED
        (out,) = fleet.service.quarantine.list()
        assert (out.device_id, out.state) == ("d7", "quarantined")
        assert out.reason is not None
        model = fleet.service.model("default")
        assert model is not None
        np.testing.assert_allclose(network.from_message(model.weights)[0], 1.0, atol=0.05)
        fleet.restart()
        assert fleet.service.accept(lie("d7"), fleet.now) is Accepted.QUARANTINED
        fleet.service.quarantine.reject("d7", "ada", fleet.now)
        with pytest.raises(Conflict, match="rejected before, by ada"):
            fleet.service.quarantine.reject("d7", "ada", fleet.now)
        fleet.service.quarantine.accept("d7", "ada", fleet.now)
        assert fleet.service.accept(lie("d7"), fleet.now) is Accepted.NEW
        with pytest.raises(NotThere):
            fleet.service.quarantine.accept("d7", "ada", fleet.now)


class TestPrivacy:
    def test_each_round_says_what_it_cost_and_the_budget_ends_it(self, mongo: Mongo) -> None:
        privacy = {"enabled": True, "noise_multiplier": 4.0, "max_epsilon": 1.8}
        fleet = Fleet(mongo, privacy=privacy, rollout=Rollout(share=0.0))
        totals = []
        for _ in range(3):
            (made,) = fleet.round()
            totals.append(made.metrics["epsilon_total"])
            fleet.restart()
        assert totals == sorted(totals)
        assert totals[-1] < 1.8
        assert fleet.round() == []  # what is due by itself waits, and nothing else suffers
        with pytest.raises(BudgetSpent):
            fleet.service.aggregate("default", fleet.now)
        assert fleet.version == 3

    def test_sums_over_many_devices_cannot_be_made_private_here(self, mongo: Mongo) -> None:
        fleet = Fleet(mongo, privacy={"enabled": True})
        (refused,) = fleet.service.accept_many([sum_of(5, fleet.now)], fleet.now)
        assert isinstance(refused, BadUpdate)
        assert "privacy" in refused.detail
