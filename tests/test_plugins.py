"""One contract for every forecaster and every detector, then what each is for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import ensemble

from flead.detectors import isolation_forest
from flead.detectors.half_space_trees import HalfSpaceTrees
from flead.detectors.isolation_forest import IsolationForest
from flead.errors import BadConfiguration, BadModel
from flead.features import CLIP
from flead.forecasters import linear
from flead.forecasters.linear import Linear
from flead.forecasters.persistence import Persistence
from flead.network import Vector
from flead.plugins import DETECTORS, FORECASTERS, Detector, Forecaster, Spec, find_detector, find_forecaster, known

SPEC = Spec(("humidity", "light", "temperature"), per_sensor=4, shared=2, hidden_sizes=(8,), seed=7)
RNG = np.random.default_rng

Step = tuple[Vector, Vector, Vector]

forecasters = pytest.mark.parametrize("kind", [find_forecaster(name) for name in known(FORECASTERS)])
detectors = pytest.mark.parametrize("kind", [find_detector(name) for name in known(DETECTORS)])


def rows(n: int, seed: int = 0) -> Vector:
    """(n, n_features), within the limit."""
    return RNG(seed).normal(size=(n, SPEC.n_features)).clip(-CLIP, CLIP)


def steps(n: int, seed: int = 0) -> Iterator[Step]:
    """Features, targets that follow from them linearly, and a tenth of them not observed."""
    rng = RNG(seed)
    truth = RNG(99).normal(0.0, 0.1, (SPEC.n_features, SPEC.n_outputs))
    for x in rows(n, seed):
        yield x, x @ truth + rng.normal(0.0, 0.01, SPEC.n_outputs), (rng.random(SPEC.n_outputs) < 0.9).astype(float)


def taught(kind: type[Forecaster], n: int) -> Forecaster:
    model = kind(SPEC)
    for step in steps(n):
        model.learn(*step)
    return model


def used(kind: type[Detector], n: int) -> Detector:
    detector = kind(SPEC)
    for x in rows(n):
        detector.learn(x)
    return detector


def constant(value: float) -> Callable[[int], Vector]:
    return lambda _: np.full(SPEC.n_features, value)


EXTREMES = {
    "zeros": constant(0.0),
    "constant": constant(1.3),
    "clipped": constant(CLIP),
    "alternating": lambda i: np.full(SPEC.n_features, CLIP * (-1.0) ** i),
    "corners": lambda i: CLIP * RNG(i).choice([-1.0, 1.0], SPEC.n_features),
    "a jump": lambda i: np.full(SPEC.n_features, CLIP if i > 200 else 1e-9),
}
extremes = pytest.mark.parametrize("features", EXTREMES.values(), ids=EXTREMES)


@forecasters
class TestEveryForecaster:
    def test_is_found_by_its_name(self, kind: type[Forecaster]) -> None:
        assert find_forecaster(kind.name) is kind

    def test_does_the_same_for_the_same_seed_and_calls(self, kind: type[Forecaster]) -> None:
        one, other = taught(kind, 60), taught(kind, 60)
        assert one.to_bytes() == other.to_bytes()
        assert_array_equal(one.predict(rows(1)[0]), other.predict(rows(1)[0]))

    def test_predicts_one_finite_number_for_each_output(self, kind: type[Forecaster]) -> None:
        for model in (kind(SPEC), taught(kind, 10)):
            change = model.predict(rows(1)[0])
            assert change.shape == (SPEC.n_outputs,)
            assert np.isfinite(change).all()

    @pytest.mark.parametrize("n", [0, 1, 75])
    def test_continues_exactly_from_its_bytes(self, kind: type[Forecaster], n: int) -> None:
        model = taught(kind, n)
        copy = kind.from_bytes(model.to_bytes(), SPEC)
        for x, target, observed in steps(75, seed=1):
            assert_array_equal(copy.predict(x), model.predict(x))
            copy.learn(x, target, observed)
            model.learn(x, target, observed)
        assert copy.to_bytes() == model.to_bytes()

    def test_refuses_bytes_that_do_not_fit(self, kind: type[Forecaster]) -> None:
        with pytest.raises(BadModel):
            kind.from_bytes(taught(kind, 3).to_bytes() + b"more", SPEC)

    def test_predicting_changes_nothing(self, kind: type[Forecaster]) -> None:
        model, x = taught(kind, 20), rows(1, seed=2)[0]
        before, first = model.to_bytes(), model.predict(x).copy()
        model.predict(-x)
        assert_array_equal(model.predict(x), first)
        assert model.to_bytes() == before

    def test_leaves_what_it_is_given_as_it_is(self, kind: type[Forecaster]) -> None:
        model = taught(kind, 20)
        given = next(steps(1))
        kept = [array.copy() for array in given]
        model.predict(given[0])
        model.learn(*given)
        for array, copy in zip(given, kept, strict=True):
            assert_array_equal(array, copy)

    def test_nothing_observed_teaches_nothing(self, kind: type[Forecaster]) -> None:
        model, x = taught(kind, 20), rows(1, seed=2)[0]
        before = model.predict(x).copy()
        for features, target, _ in steps(50, seed=3):
            model.learn(features, target, np.zeros(SPEC.n_outputs))
        assert_array_equal(model.predict(x), before)

    def test_the_target_of_what_is_not_observed_does_not_matter(self, kind: type[Forecaster]) -> None:
        one, other = taught(kind, 20), taught(kind, 20)
        for x, target, observed in steps(50, seed=3):
            one.learn(x, target, observed)
            other.learn(x, np.where(observed > 0, target, 5.0), observed)
        assert one.to_bytes() == other.to_bytes()

    @extremes
    def test_stays_finite(self, kind: type[Forecaster], features: Callable[[int], Vector]) -> None:
        model, all_seen = kind(SPEC), np.ones(SPEC.n_outputs)
        for i in range(400):
            assert np.isfinite(model.predict(features(i))).all()
            model.learn(features(i), np.full(SPEC.n_outputs, 2 * CLIP * (-1.0) ** (i // 3)), all_seen)
        assert np.isfinite(model.parameters).all()

    def test_state_does_not_grow(self, kind: type[Forecaster]) -> None:
        model = taught(kind, 400)  # past the warm-up of all
        size = len(model.to_bytes())
        for step in steps(2_000, seed=4):
            model.learn(*step)
        assert len(model.to_bytes()) <= size

    def test_parameters_can_be_averaged_over_devices(self, kind: type[Forecaster]) -> None:
        one, other, x = taught(kind, 50), kind(SPEC), rows(1)[0]
        assert one.parameters.ndim == 1
        assert one.parameters.dtype == np.float64
        assert one.parameters.shape == other.parameters.shape
        if one.parameters.size == 0:
            return
        before = other.predict(x).copy()
        other.parameters[:] = 0.5 * (one.parameters + other.parameters)
        assert not np.array_equal(other.predict(x), before)

    def test_takes_over_the_predictions_with_the_parameters(self, kind: type[Forecaster]) -> None:
        one, x = taught(kind, 100), rows(1)[0]  # where a forecaster predicts with a copy, it has just made one
        for other in (kind(SPEC), kind.from_bytes(kind(SPEC).to_bytes(), SPEC)):
            other.parameters[:] = one.parameters
            assert_array_equal(other.predict(x), one.predict(x))


@detectors
class TestEveryDetector:
    N = 400  # past the warm-up of all

    def test_is_found_by_its_name(self, kind: type[Detector]) -> None:
        assert find_detector(kind.name) is kind

    def test_does_the_same_for_the_same_seed_and_calls(self, kind: type[Detector]) -> None:
        one, other = used(kind, self.N), used(kind, self.N)
        assert one.to_bytes() == other.to_bytes()
        assert [one.score(x) for x in rows(9, 1)] == [other.score(x) for x in rows(9, 1)]

    def test_scores_zero_at_first(self, kind: type[Detector]) -> None:
        assert kind(SPEC).score(rows(1)[0]) == 0.0
        assert used(kind, 1).score(rows(1)[0]) == 0.0

    @pytest.mark.parametrize("n", [0, 100, 300, 700])
    def test_continues_exactly_from_its_bytes(self, kind: type[Detector], n: int) -> None:
        detector = used(kind, n)
        copy = kind.from_bytes(detector.to_bytes(), SPEC)
        for x in rows(300, seed=1):
            assert copy.score(x) == detector.score(x)
            copy.learn(x)
            detector.learn(x)
        assert copy.to_bytes() == detector.to_bytes()

    def test_refuses_bytes_that_do_not_fit(self, kind: type[Detector]) -> None:
        with pytest.raises(BadModel):
            kind.from_bytes(used(kind, 3).to_bytes() + b"more", SPEC)

    def test_scoring_changes_nothing(self, kind: type[Detector]) -> None:
        detector, x = used(kind, self.N), rows(1, seed=2)[0]
        before, first = detector.to_bytes(), detector.score(x)
        detector.score(-x)
        assert detector.score(x) == first
        assert detector.to_bytes() == before

    def test_leaves_what_it_is_given_as_it_is(self, kind: type[Detector]) -> None:
        detector, x = used(kind, self.N), rows(1)[0]
        detector.score(x)
        detector.learn(x)
        assert_array_equal(x, rows(1)[0])

    @extremes
    def test_stays_finite(self, kind: type[Detector], features: Callable[[int], Vector]) -> None:
        detector = kind(SPEC)
        for i in range(self.N):
            assert np.isfinite(detector.score(features(i)))
            detector.learn(features(i))

    def test_looks_at_the_shared_features_where_no_sensor_has_its_own(self, kind: type[Detector]) -> None:
        spec = replace(SPEC, per_sensor=0)
        detector = kind(spec)
        for x in RNG(0).normal(size=(self.N, spec.shared)):
            detector.learn(x)
        assert detector.score(np.full(spec.shared, CLIP)) > detector.score(np.zeros(spec.shared))

    def test_state_does_not_grow(self, kind: type[Detector]) -> None:
        detector = used(kind, self.N)
        size = len(detector.to_bytes())
        for x in rows(1_000, seed=4):
            detector.learn(x)
        assert len(detector.to_bytes()) <= size

    def test_ranks_outliers_above_what_is_usual(self, kind: type[Detector]) -> None:
        detector = used(kind, self.N)
        usual = [detector.score(x) for x in rows(100, seed=5)]
        strange = [detector.score(np.clip(x + 6.0, -CLIP, CLIP)) for x in rows(20, seed=6)]
        assert min(strange) > np.quantile(usual, 0.95)


class TestFinding:
    FINDERS = ((FORECASTERS, find_forecaster), (DETECTORS, find_detector))

    @pytest.fixture
    def install(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
        """Put a package with one module and its entry points where Python looks for packages."""

        def installed(points: str, source: str) -> None:
            info = tmp_path / "acme_flead-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-flead\nVersion: 1.0\n")
            (info / "entry_points.txt").write_text(points)
            (tmp_path / "acme_flead.py").write_text(source)
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, "acme_flead", raising=False)

        return installed

    @pytest.mark.parametrize(("group", "find"), FINDERS)
    def test_a_name_nobody_has_is_refused_with_those_there_are(
        self, group: str, find: Callable[[str], type[Forecaster | Detector]]
    ) -> None:
        with pytest.raises(BadConfiguration) as refused:
            find("psychic")
        assert "'psychic'" in str(refused.value)
        assert all(name in str(refused.value) for name in known(group))

    def test_a_forecaster_is_no_detector(self) -> None:
        with pytest.raises(BadConfiguration):
            find_detector("persistence")

    def test_an_installed_package_adds_its_own(self, install: Callable[[str, str], None]) -> None:
        install(
            "[flead.forecasters]\nacme = acme_flead:Acme\n",
            "from flead.forecasters.persistence import Persistence\nclass Acme(Persistence):\n    name = 'acme'\n",
        )
        assert "acme" in known(FORECASTERS)
        assert "acme" not in known(DETECTORS)
        assert find_forecaster("acme").name == "acme"

    def test_one_that_does_not_load_is_named_with_the_cause(self, install: Callable[[str, str], None]) -> None:
        install("[flead.detectors]\nacme = acme_flead:Acme\n", "raise OSError('no libacme.so')\n")
        with pytest.raises(BadConfiguration, match=r"'acme' of package acme-flead .*: no libacme\.so") as refused:
            find_detector("acme")
        assert isinstance(refused.value.__cause__, OSError)

    def test_one_that_lacks_a_method_is_refused(self, install: Callable[[str, str], None]) -> None:
        install("[flead.detectors]\nacme = acme_flead:Acme\n", "class Acme:\n    def learn(self, x): ...\n")
        with pytest.raises(BadConfiguration, match="lacks score, to_bytes, from_bytes"):
            find_detector("acme")

    def test_a_name_of_ours_stays_ours(self, install: Callable[[str, str], None]) -> None:
        install("[flead.forecasters]\npersistence = acme_flead:Acme\n", "class Acme: ...\n")
        assert find_forecaster("persistence") is Persistence
        assert known(FORECASTERS).count("persistence") == 1


class TestLinear:
    def test_learns_a_linear_system_at_every_horizon(self) -> None:
        """The second horizon is learned 20 steps late, as on the stream."""
        model, n = Linear(SPEC), len(SPEC.sensors)
        own = np.repeat(np.eye(n), SPEC.per_sensor, axis=0)  # a sensor follows its own features only
        truth = np.vstack([own, np.ones((SPEC.shared, n))]) * RNG(1).normal(0.0, 0.1, (SPEC.n_features, n))
        first, second = np.repeat(np.eye(2), n, axis=1)
        errors = []
        stream = [(x, np.concatenate([x @ truth, x @ -truth])) for x in rows(400)]
        for i, (x, target) in enumerate(stream):
            errors.append(np.abs(model.predict(x) - target))
            model.learn(x, target, first)
            if i >= 20:
                model.learn(*stream[i - 20], second)
        persistence = np.mean([np.abs(target) for _, target in stream[-100:]], axis=0)
        assert (np.mean(errors[-100:], axis=0) < 0.1 * persistence).all()

    def test_is_weighted_least_squares_with_a_ridge(self) -> None:
        """One sensor and one feature have a sum that can be written down."""
        spec, n = Spec(("temperature",), per_sensor=1, horizons=1), 200
        model, rng = Linear(spec), RNG(2)
        xs, ys = rng.normal(size=(n, 1)), rng.normal(0.0, 0.1, n)
        for x, y in zip(xs, ys, strict=True):
            model.learn(x, np.array([y]), np.ones(1))
        inputs = np.hstack([xs, np.ones((n, 1))])
        weights = linear.FORGETTING ** np.arange(n - 1, -1, -1)
        expected = np.linalg.solve((inputs.T * weights) @ inputs + linear.RIDGE * np.eye(2), (inputs.T * weights) @ ys)
        assert_allclose(model.parameters, expected, rtol=1e-3)

    def test_a_sensor_without_values_keeps_its_filter(self) -> None:
        model, x = Linear(SPEC), rows(1)[0]
        for features, target, _ in steps(50):
            model.learn(features, target, np.ones(SPEC.n_outputs))
        before = model.predict(x)
        for features, target, _ in steps(50, seed=1):
            model.learn(features, target, np.array([1.0, 0.0, 1.0, 1.0, 1.0, 0.0]))
        changed = model.predict(x) != before
        assert changed.tolist() == [True, False, True, True, True, False]

    @extremes
    def test_the_inverse_correlation_stays_symmetric_and_bounded(self, features: Callable[[int], Vector]) -> None:
        model = Linear(SPEC)
        for i in range(5_000 if features is EXTREMES["constant"] else 1_000):
            model.learn(features(i), np.ones(SPEC.n_outputs), np.ones(SPEC.n_outputs))
        p = model._inverse
        assert_array_equal(p, p.transpose(0, 2, 1))
        assert np.linalg.eigvalsh(p).min() > 0.0
        assert np.linalg.eigvalsh(p).max() < 1.1 / linear.RIDGE

    def test_an_outlier_does_not_own_a_step(self) -> None:
        x = rows(1)[0]
        far, near = Linear(SPEC), Linear(SPEC)
        far.learn(x, np.full(SPEC.n_outputs, 16.0), np.ones(SPEC.n_outputs))
        near.learn(x, np.full(SPEC.n_outputs, linear.ERROR_LIMIT), np.ones(SPEC.n_outputs))
        assert_array_equal(far.parameters, near.parameters)


class TestHalfSpaceTrees:
    def test_another_seed_makes_other_trees(self) -> None:
        spec = Spec(SPEC.sensors, SPEC.per_sensor, SPEC.shared, seed=8)
        one, other = used(HalfSpaceTrees, 500), HalfSpaceTrees(spec)
        for x in rows(500):
            other.learn(x)
        assert [one.score(x) for x in rows(9, 1)] != [other.score(x) for x in rows(9, 1)]

    def test_forgets_what_was_usual_two_windows_ago(self) -> None:
        detector = HalfSpaceTrees(SPEC)
        for x in rows(250) * 0.2 - 4.0:
            detector.learn(x)
        old, new = np.full(SPEC.n_features, -4.0), np.full(SPEC.n_features, 4.0)
        assert detector.score(new) > detector.score(old)
        for x in rows(250) * 0.2 + 4.0:
            detector.learn(x)
        assert detector.score(new) < detector.score(old)


class TestIsolationForest:
    @pytest.mark.parametrize("n", [128, 384, 900])
    def test_scores_are_those_of_scikit_learn(self, n: int) -> None:
        detector = used(IsolationForest, n)
        assert isinstance(detector, IsolationForest)
        end = n - n % isolation_forest.REFIT_EVERY
        window = rows(n)[max(0, end - isolation_forest.WINDOW) : end, detector._watched].astype(np.float32)
        theirs = ensemble.IsolationForest(
            n_estimators=isolation_forest.TREES, max_samples=isolation_forest.SAMPLE, random_state=SPEC.seed
        ).fit(window)
        edges = rows(isolation_forest.TREES, seed=2)  # on a split, where single precision decides
        for x, tree in zip(edges, theirs.estimators_, strict=True):
            x[detector._watched[tree.tree_.feature[0]]] = tree.tree_.threshold[0]
        asked = np.vstack([rows(50, seed=1), rows(n)[-50:], edges])
        expected = -theirs.score_samples(asked[:, detector._watched])
        assert_allclose([detector.score(x) for x in asked], expected, rtol=0.0, atol=1e-9)
        assert_allclose(detector.score_batch(asked), expected, rtol=0.0, atol=1e-9)

    def test_a_batch_scores_zero_before_the_first_forest(self) -> None:
        assert_array_equal(IsolationForest(SPEC).score_batch(rows(3)), np.zeros(3))

    def test_changes_its_mind_only_at_a_fit(self) -> None:
        detector, x = used(IsolationForest, 250), rows(1, seed=1)[0]
        scores = []
        for row in rows(140, seed=2):
            detector.learn(row)
            scores.append(detector.score(x))
        changes = [250 + i for i, (a, b) in enumerate(pairwise(scores), start=2) if a != b]
        assert changes == [256, 384]
