"""The built-in scores: what a sensor does that it never did is surprising, named by its kind and its sensor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flead import scoring, state
from flead.compilation import Floats
from flead.features import GAP
from flead.learner_config import LearnerConfig
from flead.learning import ERROR, JUDGE, SAID

STEP = 300.0
NAN = float("nan")


def scored(x: Floats, gaps: Floats | None = None, extra: Floats | None = None) -> Floats:
    """The verdict on each row of values, (rows, 4 + sensors): the learner's own compiled step, called row by row."""
    rows, n = x.shape
    gaps = np.ones(rows) if gaps is None else gaps
    plugins = 0 if extra is None else extra.shape[1]
    sizes, buffer = state.fresh(LearnerConfig(detectors=("any",) * plugins), n)
    view = state.views.py_func(sizes, buffer)  # type: ignore[attr-defined]
    given, said = np.zeros(1 + n), np.zeros(SAID + 4 * n)
    said[ERROR] = view.residual[:] = NAN  # nothing was forecast
    judge = JUDGE.bind(sizes, buffer, given, said)
    into, times = np.zeros((rows, 4 + n)), STEP * gaps.cumsum()
    for i in range(rows):
        given[0], view.past.clock[GAP], view.x[:] = times[i], gaps[i], x[i]
        if extra is not None:
            view.extra[:] = extra[i]
        judge()
        into[i] = view.verdict
    kept = view.scores
    assert np.isfinite(kept).all()
    assert np.isfinite(into).all()
    assert (into[:, 0] >= 0).all()
    assert (into[:, 0] <= scoring.HIGHEST).all()
    return into


def noise(n: int = 2, rows: int = 4_000, seed: int = 0) -> Floats:
    """Readings that move like a sensor's: a level with a slow wave and noise."""
    rng = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * np.arange(rows) * STEP / 86_400.0)[:, None]
    return np.asarray(20.0 + wave + 0.3 * rng.normal(size=(rows, n)))


def kinds(into: Floats) -> list[str]:
    return [scoring.KINDS[int(k)] for k in into[:, 2]]


def usual(into: Floats) -> float:
    """The surprise that one of a hundred ordinary readings reaches."""
    return float(np.quantile(into[500:3_000, 0], 0.99))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_spike_is_surprising_at_its_reading_and_named_with_its_sensor(n: int) -> None:
    x = noise(n)
    x[3_500, n - 1] += 15.0
    into = scored(x)
    assert into[3_500, 0] > usual(into)
    assert into[3_500, 0] > (2.0 if n > 1 else 1.0)
    assert into[3_500, 1] == n - 1
    assert kinds(into[3_500:3_501])[0] in ("residual", "level")


def test_a_sensor_that_repeats_its_value_is_stuck() -> None:
    x = noise()
    x[3_500:3_540, 1] = x[3_500, 1]
    into = scored(x)[3_520:3_540]
    assert (into[:, 0] > 2.6).all()
    assert set(kinds(into)) == {"stuck"}
    assert (into[:, 1] == 1).all()


def test_a_sensor_on_its_own_that_is_stuck_for_hours_is_an_anomaly() -> None:
    x = noise(1)
    x[3_000:, 0] = x[3_000, 0]
    into = scored(x)[3_500:]
    assert (into[:, 0] > 2.0).all()
    assert set(kinds(into)) == {"stuck"}


def test_a_sensor_that_often_repeats_its_value_is_not_stuck() -> None:
    into = scored(np.round(noise(), 0))
    assert "stuck" not in [k for k, u in zip(kinds(into), into[:, 0], strict=True) if u > 3.5]


@pytest.mark.parametrize("n", [1, 2])
def test_a_sensor_that_gives_no_value_any_more_is_missing(n: int) -> None:
    x = noise(n)
    x[::7, 0] = NAN
    x[3_500:, 0] = NAN
    into = scored(x)
    assert "missing" not in kinds(into[:3_500])
    assert into[3_500:3_520, 0].max() > 3.5  # reported when the record falls
    assert (into[3_520:, 0] > 1.9).all()
    assert set(kinds(into[3_520:3_530])) == {"missing"}
    assert (into[3_520:3_530, 1] == 0).all()


def test_a_device_that_was_silent_for_longer_than_ever_was_missing() -> None:
    gaps = np.ones(4_000)
    gaps[::50] = 4.0
    gaps[3_500] = 200.0
    into = scored(noise(), gaps)
    assert kinds(into)[3_500] == "missing"
    assert into[3_500, 1] == -1
    assert into[3_500, 0] > 2.0


def test_a_value_that_walks_away_drifts() -> None:
    x = noise()
    x[3_500:3_530, 1] += np.linspace(0, 12, 30)
    into = scored(x)[3_505:3_530]
    assert into[:, 0].max() > 2.6
    assert "drift" in kinds(into)


def test_noise_where_there_was_little_is_noise() -> None:
    x = noise()
    x[3_500:3_530, 0] += 6 * np.random.default_rng(1).normal(size=30)
    into = scored(x)[3_500:3_530]
    assert into[:, 0].max() > 3.0
    assert "noise" in kinds(into) or "residual" in kinds(into)
    assert (into[into[:, 0] > 3.0][:, 1] == 0).any()


def test_an_event_that_both_sensors_feel_stays_surprising_while_it_lasts() -> None:
    x = noise()
    x[3_500:3_600] += 8.0 + 3.0 * np.random.default_rng(1).normal(size=(100, 2))
    into = scored(x)
    assert np.mean(into[3_505:3_600, 0] > usual(into)) > 0.95
    assert "unrest" in kinds(into[3_505:3_600])


def test_an_event_on_a_single_sensor_is_reported_at_its_onset() -> None:
    x = noise(1)
    x[3_500:3_560] += 15.0
    out = scored(x)[:, 0]
    assert out[3_500] == out.max()
    assert out[3_510:3_560].max() < 0.5 * out[3_500]


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "normal": lambda rng: rng.normal(size=(20_000, 2)),
    "heavy-tailed": lambda rng: rng.standard_t(3, size=(20_000, 2)),
    "seasonal": lambda rng: noise(2, 20_000, 5),
    "random walk": lambda rng: np.cumsum(rng.normal(size=(20_000, 2)), axis=0),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("n", [1, 2])
def test_surprise_is_about_minus_log10_of_how_often(name: str, n: int) -> None:
    x = DISTRIBUTIONS[name](np.random.default_rng(3))[:, :n]
    surprise = scored(np.ascontiguousarray(x))[1_000:, 3]
    assert np.mean(surprise > 2.0) < 0.05
    assert np.mean(surprise > 3.0) < 0.01


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("n", [1, 2])
def test_scores_do_not_know_the_unit_or_the_level(scale: float, n: int) -> None:
    x = noise(n)
    x[3_500] += 5.0
    there = scored(scale * x)
    here = scored(x)
    assert np.mean(np.abs(there[:, 0] - here[:, 0]) < 1e-3) > 0.99
    moved = scored(x + 1_000.0)
    assert np.mean(np.abs(moved[:, 0] - here[:, 0]) < 1e-3) > 0.99


def test_nothing_surprises_before_ten_readings() -> None:
    x = noise(2, 50)
    x[8] += 100.0
    into = scored(x)
    assert (into[:10, 0] == 0).all()
    assert (into[:10, 1] == -1).all()


def test_what_does_not_come_does_not_surprise_before_fifty_readings() -> None:
    x = noise(2, 50)
    x[20:45, 0] = NAN
    assert "missing" not in kinds(scored(x))


def test_a_long_run_that_is_nothing_new_does_not_stay_surprising() -> None:
    x = noise()
    for start in range(500, 3_500, 500):
        x[start : start + 100, 1] = x[start, 1]
    into = scored(x)[3_000:3_100, 5]
    assert into[19:25].max() > 2.0
    assert (into[60:100] < 1.0).all()


def light(*dark: int) -> Floats:
    """Light beside a temperature: so many dark readings, each time after 700 bright ones but the first."""
    rng = np.random.default_rng(0)
    parts = []
    for night in dark:
        parts += [np.zeros(night), 300.0 + 50.0 * rng.normal(size=700)]
    bright = np.concatenate(parts)
    return np.column_stack((bright, 20.0 + 0.1 * rng.normal(size=bright.size)))


def test_dark_is_no_stuck_sensor_where_it_was_dark_for_long_before() -> None:
    into = scored(light(600, 1_200, 1_200))
    assert "stuck" not in [k for k, u in zip(kinds(into), into[:, 0], strict=True) if u > 2.0]


def test_a_rest_far_longer_than_any_is_a_stuck_sensor() -> None:
    into = scored(light(600, 5_000))[1_300:]
    assert "stuck" in [k for k, u in zip(kinds(into), into[:, 0], strict=True) if u > 3.0]


def test_a_plug_in_detector_is_heard_whatever_its_unit() -> None:
    rng = np.random.default_rng(2)
    strange = np.abs(rng.normal(size=(4_000, 1)))
    strange[3_500] = 50.0
    quiet = noise() * 0.0 + 20.0
    for unit in (1.0, 1e-6, 1e6):
        into = scored(quiet, extra=unit * strange)
        assert kinds(into)[3_500] == "detector"
        assert into[3_500, 0] > 2.0


def test_state_is_linear_in_the_sensors_and_small() -> None:
    per_sensor = scoring.size(2) - scoring.size(1)
    assert scoring.size(7) == scoring.size(1) + 6 * per_sensor
    assert per_sensor <= 450
    assert 8 * scoring.size(4) < 16 * 1024


ANY = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 1e15, -1e15, 1e-300, -1e-300, 1.7e308, -1.7e308, 5e-324, NAN, float("inf")]),
    st.floats(allow_nan=True, allow_infinity=True),
)


@settings(max_examples=60, deadline=None)
@given(pattern=st.lists(st.tuples(ANY, ANY), min_size=1, max_size=30), ordinary=st.integers(0, 200))
def test_nothing_makes_a_score_that_is_no_number(pattern: list[tuple[float, float]], ordinary: int) -> None:
    x = np.concatenate([noise(2, ordinary), np.tile(np.array(pattern), (12, 1)), noise(2, 60)])
    scored(x)
    scored(np.ascontiguousarray(x[:, :1]))


def test_scores_stay_finite_where_histograms_are_scaled_back() -> None:
    scored(np.tile(noise(1, 10_000), (35, 1)))  # weights reach their limit after 299,000 readings
