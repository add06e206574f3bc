"""The network as a plug-in is the learner's own network, and TFLite says what it says."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from flead import plugins
from flead.errors import BadModel
from flead.export import LiteModel
from flead.features import CLIP
from flead.forecasters.network import Network
from flead.forecasters.tflite import EXPORT_EVERY, WINDOW, TfLite, TfLiteInt8
from flead.learner import DeviceLearner
from flead.learner_config import LearnerConfig, Optimiser
from flead.network import Vector, forward, layers
from flead.plugins import FORECASTERS, Spec

SPEC = Spec(("humidity", "light", "temperature"), per_sensor=4, shared=2, learning_rate=0.02, seed=7)
RNG = np.random.default_rng

lite = pytest.mark.parametrize("kind", [TfLite, TfLiteInt8])


def rows(n: int, seed: int = 0) -> Vector:
    """(n, n_features), within the limit."""
    return RNG(seed).normal(size=(n, SPEC.n_features)).clip(-CLIP, CLIP)


def teach(model: Network, n: int, seed: int = 0) -> None:
    """Examples whose targets follow from the features linearly."""
    truth = RNG(99).normal(0.0, 0.3, (SPEC.n_features, SPEC.n_outputs))
    for x in rows(n, seed):
        model.learn(x, x @ truth, np.ones(SPEC.n_outputs))


def days(n: int) -> tuple[Vector, Vector]:
    """Times, (n,) s, and values, (n, 2), of a device that reads every 30 s and now and then does not."""
    rng = RNG(3)
    times = 1e9 + 30.0 * np.cumsum(1 + (rng.random(n) < 0.02))
    wave = np.sin(2 * np.pi * times / 7_200.0)
    values = np.column_stack((40.0 - 5.0 * wave, 20.0 + 2.0 * wave)) + rng.normal(0.0, 0.1, (n, 2))
    values[n // 2 :] += 3.0 * rng.normal(size=(n - n // 2, 2))  # errors rise: a drift
    values[rng.random((n, 2)) < 0.03] = np.nan
    return times, values


class TestNetwork:
    @pytest.mark.parametrize(
        "choices",
        [
            {},
            {"skip": False, "hidden_sizes": (16, 8)},
            {"optimiser": Optimiser.MOMENTUM, "learning_rate_decay": 500.0},
            {"optimiser": Optimiser.ADAM, "gradient_clip": 0.1, "seed": 5},
        ],
        ids=["default", "deep", "momentum", "adam"],
    )
    def test_in_a_learner_it_predicts_as_the_compiled_loop_does(
        self, choices: dict[str, object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Under another name, since the learner takes `network` for its own loop.

        Habits and routines, which the compiled loop adds, belong to no plug-in. The horizon, to which habits are added,
        never comes here; what routines add to the next reading is taken away again.
        """
        again = EntryPoint("again", "flead.forecasters.network:Network", FORECASTERS)
        monkeypatch.setattr(plugins, "BUILT_IN", (*plugins.BUILT_IN, again))
        own, plugin = (
            DeviceLearner(
                ("humidity", "temperature"),
                LearnerConfig.model_validate({"forecaster": name, "horizon_s": 86_400.0, **choices}),
            )
            for name in ("network", "again")
        )
        times, values = days(1_500)
        assert type(plugin._forecaster) is Network
        assert plugin.architecture == own.architecture
        theirs = plugin.process_frame(times, values)
        ours, usual = [], []
        for time, row in zip(times, values, strict=True):
            ours.append(own.process(float(time), dict(zip(own.sensors, row.tolist(), strict=True))))
            usual.append(own._state.usual.copy())
        forecast, horizon = (
            np.array([list(getattr(o, name).values()) for o in ours]) for name in ("forecast", "horizon")
        )
        assert_allclose(theirs.forecast, forecast - usual, rtol=0.0, atol=1e-9)
        assert_allclose(theirs.horizon, horizon, rtol=0.0, atol=1e-9)
        assert_allclose(plugin.theta, own.theta, rtol=0.0, atol=1e-9)
        assert any(outcome.drift for outcome in ours)
        assert layers(own.theta, own.architecture)[-1].any()  # or there was nothing to compare

    def test_predicts_what_its_parameters_say(self) -> None:
        model = Network(SPEC)
        teach(model, 300)
        for x in rows(9, seed=1):
            assert_allclose(model.predict(x), forward(model.parameters, model.architecture, x), atol=1e-12)

    def test_devices_of_a_cohort_start_alike_and_those_of_another_do_not(self) -> None:
        other = Spec(("humidity", "light", "pressure"), per_sensor=4, shared=2, seed=7)
        assert_array_equal(Network(SPEC).parameters, Network(SPEC).parameters)
        assert not np.array_equal(Network(SPEC).parameters, Network(other).parameters)

    def test_learns_as_quickly_as_at_the_start_after_a_drift(self) -> None:
        slow = Spec(("humidity", "light", "temperature"), 4, 2, learning_rate=0.02, learning_rate_decay=1.0)
        one, other = Network(slow), Network(slow)
        teach(one, 500)
        other.parameters[:] = one.parameters
        one.drifted()
        teach(one, 5, seed=1)
        teach(other, 5, seed=1)
        assert_array_equal(one.parameters, other.parameters)


class TestTfLite:
    @lite
    def test_says_what_the_network_says_right_after_an_export(self, kind: type[TfLite]) -> None:
        model = kind(SPEC)
        teach(model, EXPORT_EVERY)
        for x in rows(50, seed=1):
            assert_allclose(model.predict(x), forward(model.parameters, model.architecture, x), atol=1e-5)

    @lite
    def test_says_the_same_until_the_next_export(self, kind: type[TfLite]) -> None:
        model, x, said = kind(SPEC), rows(1, seed=1)[0], []
        for row in range(3 * EXPORT_EVERY):
            teach(model, 1, seed=row)
            said.append(model.predict(x))
        changes = [i for i, (a, b) in enumerate(pairwise(said), start=2) if not np.array_equal(a, b)]
        assert changes == [EXPORT_EVERY, 2 * EXPORT_EVERY, 3 * EXPORT_EVERY]

    @lite
    def test_what_was_not_observed_does_not_bring_an_export_nearer(self, kind: type[TfLite]) -> None:
        model = kind(SPEC)
        teach(model, EXPORT_EVERY - 1)
        before = model.predict(rows(1)[0])
        for x in rows(10, seed=1):
            model.learn(x, np.zeros(SPEC.n_outputs), np.zeros(SPEC.n_outputs))
        assert_array_equal(model.predict(rows(1)[0]), before)

    @lite
    def test_adopts_at_once_what_is_written_into_its_parameters(self, kind: type[TfLite]) -> None:
        model, x = kind(SPEC), rows(1)[0]
        for n in (130, 180):  # before and after int8
            teach(model, n)
            model.parameters[:] *= 0.5
            kept = kind.from_bytes(model.to_bytes(), SPEC)
            expected = forward(model.parameters, model.architecture, x)
            assert_allclose(model.predict(x), expected, atol=1e-5 if kind is TfLite else 0.1)
            assert_array_equal(kept.predict(x), model.predict(x))

    @lite
    def test_continues_exactly_between_two_exports(self, kind: type[TfLite]) -> None:
        model = kind(SPEC)
        teach(model, 250)
        copy = kind.from_bytes(model.to_bytes(), SPEC)
        for row in range(120):
            assert_array_equal(copy.predict(rows(1, row)[0]), model.predict(rows(1, row)[0]))
            teach(copy, 1, seed=row)
            teach(model, 1, seed=row)
        assert copy.to_bytes() == model.to_bytes()

    @lite
    def test_refuses_state_of_another_spec_or_with_a_damaged_model(self, kind: type[TfLite]) -> None:
        model = kind(SPEC)
        teach(model, 10)
        raw = model.to_bytes()
        wider = Spec(SPEC.sensors, per_sensor=5, shared=2)
        for bad, spec in ((raw, wider), (raw[:40], SPEC), (raw[:-1], SPEC), (raw[:-1] + b"?", SPEC)):
            with pytest.raises(BadModel):
                kind.from_bytes(bad, spec)

    @lite
    def test_speaks_for_itself_where_the_parameters_are_beyond_float32(self, kind: type[TfLite]) -> None:
        model = kind(SPEC)
        model.parameters[:] = 1e200
        x = np.zeros(SPEC.n_features)
        for one in (model, kind.from_bytes(model.to_bytes(), SPEC)):
            assert_allclose(one.predict(x), forward(model.parameters, model.architecture, x), rtol=1e-12)


class TestTfLiteInt8:
    def test_speaks_in_8_bits_from_the_first_export_with_a_full_window(self) -> None:
        model, kinds = TfLiteInt8(SPEC), []
        for n in range(4 * EXPORT_EVERY):
            teach(model, 1, seed=n)
            model.predict(rows(1)[0])
            assert isinstance(model._lite, LiteModel)
            kinds.append(model._lite.int8)
        first = -(-WINDOW // EXPORT_EVERY) * EXPORT_EVERY
        assert kinds.index(True) + 1 == first

    def test_is_off_by_a_small_part_of_what_it_says(self) -> None:
        model = TfLiteInt8(SPEC)
        teach(model, 500)
        expected = np.array([forward(model.parameters, model.architecture, x) for x in rows(200, seed=1)])
        wrong = np.array([model.predict(x) for x in rows(200, seed=1)]) - expected
        assert np.sqrt(np.mean(wrong**2)) < 0.03 * np.sqrt(np.mean(expected**2))
