"""Every setting has one default, the environment wins, and a wrong one is named in one line with its mend."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from config.aggregation import AggregationSettings
from config.settings import (
    FlinkSettings,
    KafkaSettings,
    MongoSettings,
    ServerSettings,
    Settings,
    load_settings,
    strangers,
)
from flead.errors import BadConfiguration
from flead.learner_config import LearnerConfig
from flead.messages import ReadingLimits
from orchestration.services import declare


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("FLEAD_"):
            monkeypatch.delenv(name)


def refused() -> str:
    with pytest.raises(BadConfiguration) as error:
        load_settings()
    message = str(error.value)
    assert "\n" not in message
    return message


def yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    path = tmp_path / "my settings.yaml"
    path.write_text(text)
    monkeypatch.setenv("FLEAD_CONFIG", str(path))
    return path


@pytest.mark.parametrize(
    ("section", "default"),
    [
        ("kafka", KafkaSettings()),
        ("mongodb", MongoSettings()),
        ("flink", FlinkSettings()),
        ("server", ServerSettings()),
        ("aggregation", AggregationSettings()),
        ("reading", ReadingLimits()),
        ("learner", LearnerConfig()),
    ],
)
def test_the_file_says_what_the_code_says(section: str, default: object) -> None:
    assert getattr(load_settings(), section) == default


def test_an_empty_address_means_the_embedded_server() -> None:
    settings = load_settings()
    assert settings.kafka.servers == "127.0.0.1:9092"
    assert settings.flink.url == "http://127.0.0.1:8081"
    assert settings.mongodb.address.get_secret_value().startswith("mongodb://127.0.0.1:27017/")


class TestTheEnvironment:
    def test_wins_over_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        yaml(tmp_path, monkeypatch, "kafka:\n  port: 9192\n  controller_port: 9193\n")
        monkeypatch.setenv("FLEAD_KAFKA__PORT", "9292")
        kafka = load_settings().kafka
        assert (kafka.port, kafka.controller_port, kafka.partitions) == (9292, 9193, 4)

    @pytest.mark.parametrize(
        ("name", "text", "section", "field", "value"),
        [
            ("FLEAD_KAFKA__BOOTSTRAP_SERVERS", "b1:9092,b2:9092", "kafka", "servers", "b1:9092,b2:9092"),
            ("FLEAD_LEARNER__HIDDEN_SIZES", "[4, 2]", "learner", "hidden_sizes", (4, 2)),
            ("FLEAD_LEARNER__ADOPTION", "replace", "learner", "adoption", "replace"),
            ("FLEAD_AGGREGATION__INTERVAL_S", "0.5", "aggregation", "interval_s", 0.5),
            ("FLEAD_SERVER__HOST", "::1", "server", "host", "::1"),
            ("FLEAD_SERVER__HOST", "localhost", "server", "host", "localhost"),
            ("FLEAD_SERVER__HOST", "127.1.2.3", "server", "host", "127.1.2.3"),
        ],
    )
    def test_reaches_every_section(
        self, name: str, text: str, section: str, field: str, value: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, text)
        assert getattr(getattr(load_settings(), section), field) == value

    def test_may_hold_what_is_no_setting_but_may_have_been_meant_as_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("FLEAD_KAFKA_PORT", "FLEAD_TOKEN", "FLEAD_X", "FLEAD_SERVER__PORT"):
            monkeypatch.setenv(name, "9192")
        load_settings()
        assert list(strangers()) == [("FLEAD_KAFKA_PORT", " (FLEAD_KAFKA__PORT?)"), ("FLEAD_X", "")]

    def test_means_a_place_from_where_the_command_was_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("FLEAD_SERVER__SIGNING_KEY", "key.pem")
        monkeypatch.setenv("FLEAD_RUN_DIR", "run")
        settings = load_settings()
        places = {"FLEAD_RUN_DIR": str(tmp_path / "run"), "FLEAD_SERVER__SIGNING_KEY": str(tmp_path / "key.pem")}
        assert settings.local_paths() == places
        parts = declare(settings, None, frozenset({"dashboards"}))
        server = next(part.service for part in parts if part.service.name == "server")
        assert places.items() <= server.environment.items()

    def test_names_the_run_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLEAD_RUN_DIR", str(tmp_path))
        assert load_settings().run_dir == tmp_path


class TestAWrongSetting:
    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("FLEAD_KAFKA__PORT", "70000", "kafka.port: Input should be less than or equal to 65535"),
            ("FLEAD_KAFKA__PORT", "0", "kafka.port: Input should be greater than or equal to 1"),
            ("FLEAD_KAFKA__PORT", "many", "kafka.port: Input should be a valid integer"),
            ("FLEAD_KAFKA__PROT", "9092", "kafka.prot: Extra inputs are not permitted"),
            ("FLEAD_FLINK__EXECUTION_MODE", "threads", "flink.execution_mode: Input should be 'thread' or 'process'"),
            ("FLEAD_FLINK__CHECKPOINT_INTERVAL_MS", "199", "flink.checkpoint_interval_ms: Input should be greater"),
            ("FLEAD_AGGREGATION__MIN_DEVICES", "0", "aggregation.min_devices: Input should be greater"),
            ("FLEAD_AGGREGATION__INTERVAL_S", "nan", "aggregation.interval_s: Input should be a finite number"),
            ("FLEAD_LEARNER__MIX", "1.5", "learner.mix: Input should be less"),
            ("FLEAD_LEARNER__FALSE_ALARMS_PER_DAY", "0", "learner.false_alarms_per_day: Input should be greater"),
            ("FLEAD_LEARNER__THRESHOLD", "1", "learner.threshold: Extra inputs are not permitted"),
            ("FLEAD_LEARNER__OPTIMISER", "newton", "learner.optimiser: Input should be 'sgd', 'momentum' or 'adam'"),
            ("FLEAD_LEARNER__HORIZON_S", "86401", "learner.horizon_s: Input should be less"),
            ("FLEAD_LEARNER__ADOPTION", "ignore", "learner.adoption: Input should be 'replace', 'mix',"),
            ("FLEAD_READING__EARLIEST", "2000-01-01T00:00:00", "reading.earliest: Input should have timezone info"),
            ("FLEAD_READING__MAX_SENSORS", "257", "reading.max_sensors: Input should be less"),
            ("FLEAD_MONGODB__DATABASE", "a/b", "mongodb.database: String should match"),
            ("FLEAD_RUN_DIR", "", "run_dir: names no folder"),
        ],
    )
    def test_is_named_with_what_is_allowed_and_where_it_is_set(
        self, name: str, text: str, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, text)
        message = refused()
        assert said in message
        assert "config/project_config.yaml" in message
        assert "FLEAD_SECTION__NAME" in message

    def test_whose_variable_is_misspelt_is_named_with_what_may_be_meant(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLEAD_KAKFA__PORT", "9192")
        assert refused() == "FLEAD_KAKFA__PORT is no setting (FLEAD_KAFKA__PORT?): correct or unset it"

    @pytest.mark.parametrize("name", ["FLEAD_LEARNER__DETECTORS", "FLEAD_LEARNER__HIDDEN_SIZES"])
    def test_that_is_a_list_is_written_as_json(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for text in ("half_space_trees", "32"):
            monkeypatch.setenv(name, text)
            message = refused()
            assert "learner" in message
            assert "JSON" in message

    def test_in_a_file_that_is_named_is_looked_for_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = yaml(tmp_path, monkeypatch, "kafka: {port: 0}\n")
        assert f"set in {path}" in refused()

    def test_in_the_file_is_named_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        yaml(tmp_path, monkeypatch, "kafak: {}\nserver:\n  prot: 1\n")
        message = refused()
        assert "kafak: Extra inputs" in message
        assert "server.prot: Extra inputs" in message

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])  # noqa: S104
    def test_a_host_that_others_can_reach_is_refused(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLEAD_SERVER__HOST", host)
        message = refused()
        assert "server.host" in message
        assert f"{host!r} is reachable from outside" in message
        assert "use 127.0.0.1" in message

    @pytest.mark.parametrize("name", ["nowhere.yaml", "."])
    def test_a_file_that_is_none_is_named(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLEAD_CONFIG", str(tmp_path / name))
        message = refused()
        assert str(tmp_path / name) in message
        assert "correct the path or unset it" in message


def test_an_empty_file_is_all_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    yaml(tmp_path, monkeypatch, "# nothing yet\n")
    assert load_settings().kafka == KafkaSettings()


def test_settings_cannot_change_while_they_are_used() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.run_dir = Path("/elsewhere")  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.kafka.port = 1  # type: ignore[misc]


class TestAPassword:
    URI = "mongodb://flead:hunter2@mongo.example/?replicaSet=rs0"

    @pytest.fixture(autouse=True)
    def password_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLEAD_MONGODB__URI", self.URI)

    def test_is_not_shown(self) -> None:
        settings = load_settings()
        for shown in (repr(settings), str(settings), f"{settings.mongodb}", str(settings.model_dump())):
            assert "hunter2" not in shown
        assert "hunter2" not in settings.model_dump_json()
        assert "hunter2" not in f"{settings.mongodb.address!r} {settings.mongodb.address}"

    def test_is_not_shown_where_another_setting_is_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FLEAD_MONGODB__PORT", "0")
        assert "hunter2" not in refused()

    def test_is_there_for_those_who_ask(self) -> None:
        assert load_settings().mongodb.address.get_secret_value() == self.URI


def test_every_setting_says_what_it_is() -> None:
    told = {"adoption", "database", "host", "port"}  # their names say it
    for section in Settings.model_fields.values():
        fields = getattr(section.annotation, "model_fields", {})
        assert [name for name, field in fields.items() if not field.description and name not in told] == []


def test_a_foreign_flink_needs_a_place_for_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEAD_FLINK__REST_URL", "http://jobmanager:8081/")
    with pytest.raises(BadConfiguration, match=r"flink\.checkpoints must name a folder"):
        load_settings()
    monkeypatch.setenv("FLEAD_FLINK__CHECKPOINTS", "file:///shared/checkpoints")
    assert load_settings().flink.url == "http://jobmanager:8081"


def test_two_services_on_one_port_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEAD_KAFKA__PORT", "9093")
    with pytest.raises(BadConfiguration, match=r"kafka\.port and kafka\.controller_port are both 9093"):
        load_settings()


@pytest.mark.parametrize("text", ["kafka: [", "- 1", "hello", "kafka: \xff"])
def test_a_file_that_is_no_settings_is_one_clear_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(text.encode("latin-1"))
    monkeypatch.setenv("FLEAD_CONFIG", str(path))
    with pytest.raises(BadConfiguration) as caught:
        load_settings()
    assert "\n" not in str(caught.value)
