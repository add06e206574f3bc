"""Where everything that a learner knows lies: one flat buffer of float64, and the views into it.

One buffer makes a state that is written in one piece, copied in one piece, and handed to machine code as one pointer.
`SIZES` is the header that says how it is cut; a view is a slice that costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flead import drift, features, network, scoring
from flead.compilation import Floats, Integers, kernel
from flead.features import BINS, CLOCK_SIZE, HALF_LIVES, Past
from flead.learner_config import Adoption, Drift, LearnerConfig, Optimiser
from flead.network import Architecture
from flead.routines import NEAR, SLOTS

SENSORS, FEATURES, PARAMETERS, MOMENTS, RING, OPTIMISER, DRIFT, EXTRA, SKIP = range(9)
SCORES, SCRATCH, LAYERS, OWN, COMMON, ANCHOR, RECENT, FIRST_LAYER = range(9, 17)
"""Places in the header: counts of sensors, features, parameters and so on; then the layers' widths, then the codes of
the features of each sensor (`OWN` many) and of the shared ones (`COMMON` many)."""

WAITING = 24
"""Forecasts that wait for their horizon; where readings come faster, some are not followed up."""

MOST_RECENT = 64
"""Examples that a device keeps to compare models on, where its rule of adoption asks for it."""

FIRST, COUNT, STEPS, DRIFTS = range(4)
"""Places in the queue: which forecast waits first, how many wait; and beside them the steps taken since the last drift,
and how many drifts there were."""

RATE, DECAY, LONGEST, MEMORY, HORIZON, ALARMS_PER_DAY, PROXIMAL = range(7)
"""Places in the settings."""
SETTINGS_SIZE = 8


class State(NamedTuple):
    """The views, for n sensors, F features and P parameters.

    Attributes
    ----------
    past: what the features are made of
    theta, moments: (P,) and what the optimiser remembers
    habits: (BINS, n) what the device's time of day adds to its forecasts of the horizon; its own, never shared
    routines: (2 SLOTS, 2 n) how far what came was from the forecast at this time of a working day, then of a free day,
        in the sensors' units; the device's own, like `habits`
    usual: (n,) what the routines add to the present forecast of the next reading
    features: (F,) after the last reading
    change: (2 n,) what is predicted of the next reading and of the horizon, in the scales of `features`
    waiting: (WAITING, 1 + F + 2 n) forecasts in a ring: when made (s), features, values then, next values
    queue: (4,) see `FIRST`
    scores: what the scores are made of, see `scoring.views`
    drift: ADWIN's or Page-Hinkley's
    anchor: (P,) the global model that was adopted last, where the network is held near it, else (0,)
    recent: (MOST_RECENT, F + 4 n) the newest examples in a ring: features, targets less what habits add, observed; only
        where models are compared on them, else (0, F + 4 n)
    n_recent: (1,) how many were ever put there, or (0,)
    settings: (SETTINGS_SIZE,) from the configuration, not state
    examples: (4, F + 6 n) what this reading teaches: features, targets, observed, and the targets as they came, in the
        sensors' units; `n_examples` of them
    made: (4,) when their forecasts were made, s
    near: (NEAR,) how near a time of day is to the half hours about it
    x, residual: (n,) this reading, and its distance from what was expected in typical changes; NaN where unknown
    extra: (m,) what plug-in detectors say
    verdict: (4 + n,) what the scorer says
    work, slopes: the network's
    scratch: the scorer's
    paces: (1 + len(HALF_LIVES),) of the running means, see `features.take`
    """

    past: Past
    theta: Floats
    moments: Floats
    habits: Floats
    routines: Floats
    usual: Floats
    features: Floats
    change: Floats
    waiting: Floats
    queue: Floats
    scores: Floats
    drift: Floats
    anchor: Floats
    recent: Floats
    n_recent: Floats
    settings: Floats
    examples: Floats
    n_examples: Floats
    made: Floats
    near: Floats
    x: Floats
    residual: Floats
    extra: Floats
    verdict: Floats
    work: Floats
    slopes: Floats
    scratch: Floats
    paces: Floats


def header(config: LearnerConfig, n: int) -> Integers:
    """How the state of a device with n sensors is cut."""
    own, shared = features.codes(config.features)
    architecture = architecture_of(config, n)
    optimiser = list(Optimiser).index(config.optimiser)
    parameters = architecture.parameter_count if config.forecaster == NETWORK else 0
    first = [
        n,
        architecture.input_size,
        parameters,
        network.moments_size(optimiser, parameters),
        features.ring_length(config.features),
        optimiser,
        list(Drift).index(config.drift),
        len(config.detectors),
        int(config.skip),
        _plain(scoring.size)(n),
        _plain(scoring.scratch_size)(n),
        len(architecture.sizes),
        len(own),
        len(shared),
        parameters if config.proximal else 0,
        MOST_RECENT if config.adoption is Adoption.BETTER and parameters else 0,
    ]
    return np.array([*first, *architecture.sizes, *own, *shared], dtype=np.int64)


def _plain(kernel: Any) -> Callable[[int], int]:
    """The Python function that a kernel was made of: Flink's threads must not call the kernel."""
    function: Callable[[int], int] = kernel.py_func
    return function


NETWORK = "network"
"""The forecaster that is part of the compiled loop; every other one is a plug-in called from Python."""


def architecture_of(config: LearnerConfig, n: int) -> Architecture:
    """The network of a cohort with n sensors: two outputs each, the next reading and the horizon."""
    own, shared = features.codes(config.features)
    return Architecture(n * len(own) + len(shared), config.hidden_sizes, 2 * n, config.skip)


def settings_of(config: LearnerConfig, into: Floats) -> None:
    """Write the configuration's numbers where the kernels read them."""
    into[RATE], into[DECAY], into[LONGEST] = config.learning_rate, config.learning_rate_decay, config.gradient_clip
    into[MEMORY], into[HORIZON], into[ALARMS_PER_DAY] = config.memory, config.horizon_s, config.false_alarms_per_day
    into[PROXIMAL] = config.proximal


def sizes_of(sizes: Integers) -> tuple[int, int]:
    """How many numbers are kept, and how many there are with scratch.

    In plain Python, as is all that makes a learner: Flink's threads must not call a kernel (`flead.compilation`).
    """
    n, f, widths = sizes[SENSORS], sizes[FEATURES], sizes[FIRST_LAYER : FIRST_LAYER + sizes[LAYERS]].sum()
    past = CLOCK_SIZE + (7 + len(HALF_LIVES) + sizes[RING] + 2 * BINS) * n
    learning = sizes[PARAMETERS] + sizes[MOMENTS] + f + 2 * n + WAITING * (1 + f + 2 * n) + 4
    learning += (BINS + 4 * SLOTS + 1) * n
    kept = past + learning + sizes[SCORES] + drift.ADWIN_SIZE
    kept += sizes[ANCHOR] + sizes[RECENT] * (f + 4 * n) + min(sizes[RECENT], 1)
    scratch = SETTINGS_SIZE + 4 * (f + 6 * n) + 1 + 4 + NEAR + 2 * n + sizes[EXTRA] + 4 + n + 2 * widths
    scratch += sizes[SCRATCH] + 1 + len(HALF_LIVES)
    return int(kept), int(kept + scratch)


def fresh(config: LearnerConfig, n: int) -> tuple[Integers, Floats]:
    """The header and the buffer of a device with n sensors that has seen nothing."""
    sizes = header(config, n)
    kept, everything = sizes_of(sizes)
    buffer = np.zeros(everything)
    settings_of(config, buffer[kept:])
    return sizes, buffer


@kernel
def views(sizes: Integers, buffer: Floats) -> State:
    """Cut the buffer."""
    n, f = sizes[SENSORS], sizes[FEATURES]
    widths = 0
    for i in range(sizes[LAYERS]):
        widths += sizes[FIRST_LAYER + i]
    at = 0
    clock = buffer[at : at + CLOCK_SIZE]
    at += CLOCK_SIZE
    rows = buffer[at : at + 7 * n].reshape(7, n)
    at += 7 * n
    means = buffer[at : at + len(HALF_LIVES) * n].reshape(len(HALF_LIVES), n)
    at += len(HALF_LIVES) * n
    ring = buffer[at : at + sizes[RING] * n].reshape(sizes[RING], n)
    at += sizes[RING] * n
    profile = buffer[at : at + BINS * n].reshape(BINS, n)
    at += BINS * n
    profile_count = buffer[at : at + BINS * n].reshape(BINS, n)
    at += BINS * n
    past = Past(
        clock, rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], means, ring, profile, profile_count
    )
    theta = buffer[at : at + sizes[PARAMETERS]]
    at += sizes[PARAMETERS]
    moments = buffer[at : at + sizes[MOMENTS]]
    at += sizes[MOMENTS]
    habits = buffer[at : at + BINS * n].reshape(BINS, n)
    at += BINS * n
    routines = buffer[at : at + 4 * SLOTS * n].reshape(2 * SLOTS, 2 * n)
    at += 4 * SLOTS * n
    usual = buffer[at : at + n]
    at += n
    given = buffer[at : at + f]
    at += f
    change = buffer[at : at + 2 * n]
    at += 2 * n
    width = 1 + f + 2 * n
    waiting = buffer[at : at + WAITING * width].reshape(WAITING, width)
    at += WAITING * width
    queue = buffer[at : at + 4]
    at += 4
    scores = buffer[at : at + sizes[SCORES]]
    at += sizes[SCORES]
    watched = buffer[at : at + drift.ADWIN_SIZE]
    at += drift.ADWIN_SIZE
    anchor = buffer[at : at + sizes[ANCHOR]]
    at += sizes[ANCHOR]
    recent = buffer[at : at + sizes[RECENT] * (f + 4 * n)].reshape(sizes[RECENT], f + 4 * n)
    at += sizes[RECENT] * (f + 4 * n)
    n_recent = buffer[at : at + min(sizes[RECENT], 1)]
    at += min(sizes[RECENT], 1)
    settings = buffer[at : at + SETTINGS_SIZE]  # from here on nothing is kept
    at += SETTINGS_SIZE
    examples = buffer[at : at + 4 * (f + 6 * n)].reshape(4, f + 6 * n)
    at += 4 * (f + 6 * n)
    n_examples = buffer[at : at + 1]
    at += 1
    made = buffer[at : at + 4]
    at += 4
    near = buffer[at : at + NEAR]
    at += NEAR
    x = buffer[at : at + n]
    at += n
    residual = buffer[at : at + n]
    at += n
    extra = buffer[at : at + sizes[EXTRA]]
    at += sizes[EXTRA]
    verdict = buffer[at : at + 4 + n]
    at += 4 + n
    work = buffer[at : at + widths]
    at += widths
    slopes = buffer[at : at + widths]
    at += widths
    scratch = buffer[at : at + sizes[SCRATCH]]
    at += sizes[SCRATCH]
    paces = buffer[at : at + 1 + len(HALF_LIVES)]
    return State(
        past, theta, moments, habits, routines, usual, given, change, waiting, queue, scores, watched, anchor,
        recent, n_recent, settings, examples, n_examples, made, near, x, residual, extra, verdict, work, slopes,
        scratch, paces,
    )  # fmt: skip
