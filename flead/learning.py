"""What a learner does with a reading, in machine code: observe, judge, learn, predict, commit - in that order.

Every number that a reading is judged by was fixed before it came. A forecast of the next reading and one of the
horizon are made at once, and taught at once, when the horizon has come: until then the forecast waits in a ring.
"""

from __future__ import annotations

from math import log10, sqrt

import numpy as np

from flead import scoring
from flead.compilation import EntryPoint, Floats, Integers, cached_kernel, carray, kernel
from flead.drift import adwin, page_hinkley
from flead.features import (
    DAY,
    GAP,
    INTERVAL,
    LAST_TIME,
    READINGS,
    WARM,
    bin_of_day,
    extract,
    step_scale,
    swing_scale,
    take,
    take_swing_of_day,
    tick,
)
from flead.network import activate, descend
from flead.routines import (
    HORIZON_PACE,
    NEXT_PACE,
    SMALLEST_ROUTINE,
    add_habits,
    practise,
    routine,
    routine_of,
    step_habits,
)
from flead.state import (
    ALARMS_PER_DAY,
    ANCHOR,
    COMMON,
    COUNT,
    DECAY,
    DRIFT,
    DRIFTS,
    FEATURES,
    FIRST,
    FIRST_LAYER,
    HORIZON,
    LAYERS,
    LONGEST,
    MEMORY,
    OPTIMISER,
    OWN,
    PROXIMAL,
    RATE,
    RECENT,
    SENSORS,
    SKIP,
    STEPS,
    WAITING,
    State,
    views,
)

ERROR, SURPRISE, SENSOR, KIND, JOINT, DRIFTED, ALARM = range(7)
"""Places in a row of what is said of a reading; behind `SAID` come the expected values, the next forecast, the
forecast of the horizon and the sensors' surprises, (n,) each."""
SAID = 8

LARGEST_STEP, LARGEST_SWING = 20.0, 8.0
"""Targets and forecasts beyond are cut: in typical changes, and in typical swings for the horizon."""
HUBER = 5.0
"""Errors beyond it pull no harder (Huber, 1964)."""
LARGEST_ERROR = 8.0
LONGEST_GAP = 10.0
"""Typical intervals after which the next reading is no longer the next."""
SET_BACK = 1_800.0
"""A reading that is older than the newest by more, s, is from a clock that had run ahead and was set back: time goes on
from there. One that is older by less came late, and is none that time is measured from."""
LARGEST_VALUE = 1e100
"""What is beyond, infinity too, counts as no value: its square must still be a number."""


@kernel
def observe(state: State, sizes: Integers, time: float, x: Floats, said: Floats) -> None:
    """Compare a reading with what was expected, collect what it teaches, and take it into the past."""
    past, n = state.past, sizes[SENSORS]
    before = past.clock[LAST_TIME]
    if time < before - SET_BACK:
        before = past.clock[LAST_TIME] = time
        state.queue[COUNT] = 0.0  # what was forecast for then will not come
    tick(past.clock, time)
    gap = past.clock[GAP]
    total, known = 0.0, 0
    for s in range(n):
        state.x[s] = x[s] if abs(x[s]) < LARGEST_VALUE else np.nan
        state.residual[s] = said[SAID + s] = np.nan
        if past.seen[s] > 0.0:
            scale = step_scale(past, s)
            expected = past.last[s] + state.change[s] * scale
            said[SAID + s] = expected + state.usual[s]
            off = state.x[s] - expected
            if off == off:  # not NaN
                state.residual[s] = off / scale
                if past.seen[s] > WARM:
                    total += min(abs(off) / max(sqrt(past.variance[s]), swing_scale(past, s)), LARGEST_ERROR)
                    known += 1
    said[ERROR] = total / known if known else np.nan
    _collect(state, sizes, before, time, gap)
    ago = state.slopes[:n]
    _horizon_ago(state, time, ago)
    for s in range(n):
        take(past, s, state.x[s], state.settings[MEMORY], state.paces)
    codes = FIRST_LAYER + sizes[LAYERS]
    own = sizes[codes : codes + sizes[OWN]]
    shared = sizes[codes + sizes[OWN] : codes + sizes[OWN] + sizes[COMMON]]
    extract(past, time, ago, own, shared, state.features)


@kernel
def _collect(state: State, sizes: Integers, before: float, time: float, gap: float) -> None:
    """Write down what this reading teaches: of the last forecast, and of those whose horizon has come."""
    past, n, f = state.past, sizes[SENSORS], sizes[FEATURES]
    x, horizon, interval = state.x, state.settings[HORIZON], past.clock[INTERVAL]
    state.n_examples[0] = 0.0
    if past.clock[READINGS] == 1.0:
        return
    count = int(state.queue[COUNT])
    newest = (int(state.queue[FIRST]) + count - 1) % WAITING
    if count > 0 and state.waiting[newest, 0] == before:
        for s in range(n):
            state.waiting[newest, 1 + f + n + s] = x[s] if gap <= LONGEST_GAP else np.nan
    elif gap <= LONGEST_GAP:
        example = _new_example(state, before, state.features)
        for s in range(n):
            _aim(example, f, n, s, x[s] - past.last[s], step_scale(past, s), LARGEST_STEP)
    while state.queue[COUNT] > 0.0:
        row = state.waiting[int(state.queue[FIRST])]
        passed = time - row[0]
        if passed < horizon - 0.5 * interval:
            break
        in_time = passed <= 1.1 * horizon + 0.5 * interval
        state.queue[FIRST] = (state.queue[FIRST] + 1.0) % WAITING
        state.queue[COUNT] -= 1.0
        teaches = state.n_examples[0] < state.examples.shape[0]
        if teaches:
            example = _new_example(state, row[0], row[1 : 1 + f])
        for s in range(n):
            then = row[1 + f + s]
            swing = x[s] - then
            if teaches and past.seen[s] > 1.0:
                _aim(example, f, n, s, row[1 + f + n + s] - then, step_scale(past, s), LARGEST_STEP)
                if in_time:
                    _aim(example, f, n, n + s, swing, swing_scale(past, s), LARGEST_SWING)
            if in_time and swing == swing:  # not NaN
                take_swing_of_day(past, s, bin_of_day(row[0]), swing)


@kernel
def _new_example(state: State, time: float, given: Floats) -> Floats:
    """An example with these features of this time, and no target yet."""
    example: Floats = state.examples[int(state.n_examples[0])]
    state.made[int(state.n_examples[0])] = time
    state.n_examples[0] += 1.0
    for i in range(given.size):
        example[i] = given[i]
    for i in range(given.size, example.size):
        example[i] = 0.0
    return example


@kernel
def _aim(example: Floats, f: int, n: int, output: int, change: float, scale: float, largest: float) -> None:
    """Set one output's target, a change in units of its scale; NaN is none."""
    if change == change:  # not NaN
        target = change / scale
        example[f + 4 * n + output] = change
        example[f + output] = min(max(target, -largest), largest)
        example[f + 2 * n + output] = 1.0


@kernel
def _horizon_ago(state: State, time: float, ago: Floats) -> None:
    """The values about one horizon ago, (n,); NaN where nothing is remembered from then.

    The ring's slot before the first waiting still holds the forecast that was taken off last.
    """
    f, horizon = state.features.size, state.settings[HORIZON]
    first = int(state.queue[FIRST])
    row = state.waiting[first - 1]
    if not (row[0] != 0.0 and abs(time - row[0] - horizon) <= 0.2 * horizon):
        row = state.waiting[first]
        if state.queue[COUNT] == 0.0 or abs(time - row[0] - horizon) > 0.2 * horizon:
            ago[:] = np.nan
            return
    for s in range(ago.size):
        ago[s] = row[1 + f + s]


@kernel
def judge(state: State, scores: scoring.Scores, sizes: Integers, time: float, said: Floats) -> None:
    """Score the reading, watch the errors for drift, and decide whether it is an alarm."""
    past = state.past
    scoring.score(scores, time, past.clock[GAP], state.x, state.residual, state.extra, state.verdict)
    verdict = state.verdict
    surprise = min(max(verdict[scoring.SURPRISE], 0.0), scoring.HIGHEST)
    said[SURPRISE] = surprise
    said[SENSOR], said[KIND], said[JOINT] = verdict[scoring.SENSOR], verdict[scoring.KIND], verdict[scoring.JOINT]
    n = sizes[SENSORS]
    for s in range(n):
        said[SAID + 3 * n + s] = verdict[scoring.BY_SENSOR + s]
    said[DRIFTED] = 0.0
    if said[ERROR] == said[ERROR] and sizes[DRIFT] < 2:  # not NaN
        change = adwin(state.drift, said[ERROR]) if sizes[DRIFT] == 0 else page_hinkley(state.drift, said[ERROR])
        if change > 0.0:  # errors have risen: learn as quickly as at the start
            said[DRIFTED] = 1.0
            state.queue[STEPS] = 0.0
            state.queue[DRIFTS] += 1.0
    # The chance of an alarm on an ordinary reading: as many a day as are accepted, over the readings of a day.
    accepted = min(state.settings[ALARMS_PER_DAY] * max(past.clock[INTERVAL], 1e-9) / DAY, 0.1)
    said[ALARM] = 1.0 if surprise >= 1.0 and surprise >= -log10(accepted) else 0.0


@kernel
def learn(state: State, sizes: Integers) -> None:
    """Teach the network this reading's examples, a step each."""
    f, n, first = sizes[FEATURES], sizes[SENSORS], FIRST_LAYER
    widths = sizes[first : first + sizes[LAYERS]]
    for e in range(int(state.n_examples[0])):
        example = state.examples[e]
        for i in range(f):
            state.work[i] = example[i]
        out = activate(state.theta, widths, sizes[SKIP] == 1, state.work)
        bin_ = add_habits(state.habits, state.near, state.made[e], state.work[out + n : out + 2 * n])
        taught = 0.0
        for j in range(2 * n):
            wrong, observed = state.work[out + j] - example[f + j], example[f + 2 * n + j]
            state.slopes[out + j] = min(max(wrong, -HUBER), HUBER) * observed
            taught += observed
        if taught and sizes[RECENT]:
            _remember(state, example, f, n, state.made[e])
        _learn_routines(state, example, f, n, state.made[e], state.work[out : out + 2 * n])
        rate = state.settings[RATE] / (1.0 + state.queue[STEPS] / state.settings[DECAY])
        step_habits(state.habits, state.near, bin_, state.slopes[out + n : out + 2 * n], rate)
        descend(
            state.theta, widths, sizes[SKIP] == 1, state.work, state.slopes, state.moments, sizes[OPTIMISER], rate,
            state.settings[LONGEST],
        )  # fmt: skip
        if taught and sizes[ANCHOR]:
            pull = min(rate * state.settings[PROXIMAL], 1.0)
            for i in range(state.theta.size):
                state.theta[i] += pull * (state.anchor[i] - state.theta[i])
        state.queue[STEPS] += 1.0


@kernel
def _remember(state: State, example: Floats, f: int, n: int, time: float) -> None:
    """Keep an example of that time (s) among the recent ones; what habits add is nothing a network has to say."""
    row = state.recent[int(state.n_recent[0]) % state.recent.shape[0]]
    state.n_recent[0] += 1.0
    for i in range(row.size):
        row[i] = example[i]
    aims = row[f + n : f + 2 * n]
    for s in range(n):
        aims[s] = -aims[s]
    add_habits(state.habits, state.near, time, aims)
    for s in range(n):
        aims[s] = -aims[s]


@kernel
def predict(state: State, sizes: Integers) -> None:
    """Let the network predict what comes, from the present features."""
    widths = sizes[FIRST_LAYER : FIRST_LAYER + sizes[LAYERS]]
    for i in range(sizes[FEATURES]):
        state.work[i] = state.features[i]
    out = activate(state.theta, widths, sizes[SKIP] == 1, state.work)
    n = sizes[SENSORS]
    for j in range(2 * n):
        state.change[j] = state.work[out + j]
    add_habits(state.habits, state.near, state.past.clock[LAST_TIME], state.change[n:])


@kernel
def _learn_routines(state: State, example: Floats, f: int, n: int, time: float, forecast: Floats) -> None:
    """Let the routines take what a forecast, (2 n,) in its scales, has left of an example."""
    row = routine_of(time)
    for s in range(n):
        if example[f + 2 * n + s] > 0.0:
            scale = step_scale(state.past, s)
            left = example[f + 4 * n + s] - _bounded(forecast[s], LARGEST_STEP) * scale
            practise(state.routines, row, s, left, scale, NEXT_PACE)
        if example[f + 3 * n + s] > 0.0:
            scale = swing_scale(state.past, s)
            left = example[f + 5 * n + s] - _bounded(forecast[n + s], LARGEST_SWING) * scale
            practise(state.routines, row, n + s, left, scale, HORIZON_PACE)


@kernel
def commit(state: State, sizes: Integers, time: float, said: Floats) -> None:
    """Say the forecasts in the sensors' units, and let them wait for their horizon."""
    past, n, f = state.past, sizes[SENSORS], sizes[FEATURES]
    at = routine_of(past.clock[LAST_TIME])
    for s in range(n):
        state.change[s] = _bounded(state.change[s], LARGEST_STEP)
        state.change[n + s] = _bounded(state.change[n + s], LARGEST_SWING)
        known = past.seen[s] > 0.0
        step, swing = step_scale(past, s), swing_scale(past, s)
        state.usual[s] = routine(state.routines, at, s, step, SMALLEST_ROUTINE)
        later = routine(state.routines, at, n + s, swing, 0.0)
        said[SAID + n + s] = past.last[s] + state.change[s] * step + state.usual[s] if known else np.nan
        said[SAID + 2 * n + s] = past.last[s] + state.change[n + s] * swing + later if known else np.nan
    first, count = int(state.queue[FIRST]), int(state.queue[COUNT])
    newest = (first + count - 1) % WAITING
    spacing = state.settings[HORIZON] / (WAITING - 2)
    if count == WAITING or (count > 0 and time - state.waiting[newest, 0] < spacing):
        return
    row = state.waiting[(first + count) % WAITING]
    state.queue[COUNT] += 1.0
    row[0] = time
    for i in range(f):
        row[1 + i] = state.features[i]
    for s in range(n):
        row[1 + f + s] = past.last[s] if state.x[s] == state.x[s] else np.nan  # not NaN
        row[1 + f + n + s] = np.nan


@kernel
def _bounded(value: float, largest: float) -> float:
    """Within +-largest; what is no number is no change."""
    return min(max(value, -largest), largest) if value == value else 0.0


def _run(sizes_at, n_sizes, buffer_at, n_buffer, given_at, n_given, said_at, n_said):  # type: ignore[no-untyped-def]
    """Everything, for rows of (time, values), with the network: rows of what is said of them."""
    sizes, state = carray(sizes_at, (n_sizes,)), views(carray(sizes_at, (n_sizes,)), carray(buffer_at, (n_buffer,)))
    n = sizes[SENSORS]
    rows = min(n_given // (1 + n), n_said // (SAID + 4 * n))
    given = carray(given_at, (rows, 1 + n))
    said = carray(said_at, (rows, SAID + 4 * n))
    scores = scoring.views(n, state.scores, state.scratch)
    for i in range(rows):
        time = given[i, 0]
        observe(state, sizes, time, given[i, 1:], said[i])
        judge(state, scores, sizes, time, said[i])
        learn(state, sizes)
        predict(state, sizes)
        commit(state, sizes, time, said[i])


def _observe(sizes_at, n_sizes, buffer_at, n_buffer, given_at, n_given, said_at, n_said):  # type: ignore[no-untyped-def]
    """For one row: what comes before a plug-in detector speaks."""
    sizes, given = carray(sizes_at, (n_sizes,)), carray(given_at, (n_given,))
    state = views(sizes, carray(buffer_at, (n_buffer,)))
    observe(state, sizes, given[0], given[1:], carray(said_at, (n_said,)))


def _judge(sizes_at, n_sizes, buffer_at, n_buffer, given_at, n_given, said_at, n_said):  # type: ignore[no-untyped-def]
    """For one row: the verdict, plug-in detectors' word included."""
    sizes, given = carray(sizes_at, (n_sizes,)), carray(given_at, (n_given,))
    state = views(sizes, carray(buffer_at, (n_buffer,)))
    scores = scoring.views(sizes[SENSORS], state.scores, state.scratch)
    judge(state, scores, sizes, given[0], carray(said_at, (n_said,)))


def _teach(sizes_at, n_sizes, buffer_at, n_buffer, given_at, n_given, said_at, n_said):  # type: ignore[no-untyped-def]
    """For one row: what the network does, learning and predicting."""
    sizes = carray(sizes_at, (n_sizes,))
    state = views(sizes, carray(buffer_at, (n_buffer,)))
    learn(state, sizes)
    predict(state, sizes)


def _commit(sizes_at, n_sizes, buffer_at, n_buffer, given_at, n_given, said_at, n_said):  # type: ignore[no-untyped-def]
    """For one row: what comes after a plug-in forecaster has predicted."""
    sizes, given = carray(sizes_at, (n_sizes,)), carray(given_at, (n_given,))
    state = views(sizes, carray(buffer_at, (n_buffer,)))
    commit(state, sizes, given[0], carray(said_at, (n_said,)))


RUN, OBSERVE, JUDGE, TEACH, COMMIT = (EntryPoint(f) for f in (_run, _observe, _judge, _teach, _commit))


@cached_kernel
def follow(sizes: Integers, buffer: Floats, given: Floats, features: Floats, scales: Floats) -> None:
    """Only observe: the features after each reading, for offline work. Changes the state as `RUN` would.

    Parameters
    ----------
    given:
        (m, 1 + n) times (s) and values
    features, scales:
        (m, n_features) and (m, 2 n), written: what a model is given, and the units of its outputs
    """
    state = views(sizes, buffer)
    said = np.zeros(SAID + 4 * sizes[SENSORS])
    for i in range(given.shape[0]):
        observe(state, sizes, given[i, 0], given[i, 1:], said)
        commit(state, sizes, given[i, 0], said)
        features[i] = state.features
        for s in range(sizes[SENSORS]):
            scales[i, s] = step_scale(state.past, s)
            scales[i, sizes[SENSORS] + s] = swing_scale(state.past, s)
