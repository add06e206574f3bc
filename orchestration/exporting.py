"""A device's model as a file for another runtime: what `flead export` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from config.settings import Settings
from data.formats import Rejected
from data.frames import Frame, frames_of
from data.sources import open_dataset
from flead import export, network, state
from flead.errors import BadConfiguration, BadDataset, BadModel, FleadError, Unavailable
from flead.features import PER_SENSOR, SHARED
from flead.learner import DeviceLearner
from flead.learner_config import LearnerConfig
from flead.messages import Reading, cohort_of
from flead.network import Architecture, Vector
from orchestration.display import some_of

RANDOM_SAMPLES = 256
"""Inputs on which an export is compared where none of the device's own are at hand."""


class Form(StrEnum):
    """The forms of an exported model."""

    TFLITE = "tflite"
    INT8 = "tflite-int8"
    ONNX = "onnx"
    NPZ = "npz"


@dataclass(frozen=True)
class Model:
    """A device's network.

    Attributes
    ----------
    theta: (parameter_count,)
    about: strings by name, for whoever finds the file
    samples: (m, n_features) inputs of the device's own, None where there are none
    """

    theta: Vector
    architecture: Architecture
    about: Mapping[str, str]
    samples: Vector | None


@dataclass(frozen=True)
class Exported:
    """The bytes of an exported model, and how far its outputs lie from the network's."""

    raw: bytes
    agreement: export.Agreement
    own_samples: bool


def from_data(path: Path, device: str, config: LearnerConfig, on_progress: Callable[[int], None]) -> Model:
    """The model that a fresh learner has after the device's readings of a file.

    Raises
    ------
    BadDataset
        the file cannot be read, or the device is not in it
    """
    _only_networks(config)
    found: set[str] = set()

    def of_the_device(record: Reading | Rejected) -> bool:
        if isinstance(record, Rejected):
            return False
        found.add(record.device_id)
        return record.device_id == device

    frames: list[Frame] = frames_of(filter(of_the_device, open_dataset(path).readings()), on_progress)
    if not frames:
        raise BadDataset(f"{path} has no reading of {device}; it has {some_of(sorted(found)) or 'none'}")
    learner = DeviceLearner(frames[0].sensors, config)
    learner.process_frame(frames[0].times, frames[0].values)
    about = _about(device, learner.cohort, learner.base_version, learner.samples_seen, learner.sensors, config)
    return Model(learner.theta.copy(), learner.architecture, about, learner.recent_features)


def from_run(settings: Settings, device: str) -> Model:
    """The newest model that the device has sent to the run of a folder, whether the run is on or not.

    Raises
    ------
    Unavailable
        there is no database, or it does not answer
    FleadError
        the device has not sent a model
    """
    from storage.connection import connect, open_database
    from storage.rounds import RoundRepository
    from storage.running import database_of
    from storage.schema import apply_schema

    config = settings.learner
    _only_networks(config)
    try:
        with database_of(settings.mongodb, settings.run_dir) as mongodb, connect(mongodb) as client:
            database = open_database(client, mongodb)
            apply_schema(database, mongodb)  # an earlier version may have written it
            models = RoundRepository(database)
            newest = models.newest_of(device)
            known = [] if newest else models.devices()
    except Unavailable as error:
        raise Unavailable(f"{error}; or learn from a file of the device's readings: --data FILE") from None
    if newest is None:
        raise FleadError(
            f"the run has no model of {device}, only of {some_of(known) or 'none'}"
            if known
            else f"the run has no model of {device}: no device has sent one yet; wait, or name a file with --data"
        )
    sensors = newest.sensors or _sensors_of(newest.cohort)
    if sensors and newest.architecture != state.architecture_of(config, len(sensors)):
        sensors = ()  # a foreign model: nothing is known of its inputs
    about = _about(device, newest.cohort, newest.base_version, newest.samples_seen, sensors, config)
    return Model(newest.theta, newest.architecture, about, None)


def _sensors_of(cohort: str) -> tuple[str, ...]:
    """The sensors that a cohort's name spells out; () where it does not."""
    sensors = tuple(cohort.split("+"))
    return sensors if cohort_of(sensors) == cohort else ()


def with_samples(model: Model, calibration: Model) -> Model:
    """A run's model with the inputs that a file of readings gives."""
    if model.architecture != calibration.architecture:
        raise BadModel(
            f"the run's model is {model.architecture}, the file's readings make {calibration.architecture}: "
            "give readings of the same sensors, under the run's settings"
        )
    return Model(model.theta, model.architecture, model.about, calibration.samples)


def export_model(model: Model, form: Form) -> Exported:
    """Write the model in a form, read it again and compare.

    Raises
    ------
    BadConfiguration
        int8 without samples of the device
    """
    theta, architecture, about, samples = model.theta, model.architecture, model.about, model.samples
    raw: bytes
    other: export.Model
    if form is Form.INT8:
        if samples is None:
            raise BadConfiguration(
                "tflite-int8 is calibrated on the device's own readings, which a run does not keep with its models: "
                "name a file of them with --data"
            )
        raw = export.to_tflite_int8(theta, architecture, samples, about)
        other = export.LiteModel(raw).predict
    elif form is Form.TFLITE:
        raw = export.to_tflite(theta, architecture, about)
        other = export.LiteModel(raw).predict
    elif form is Form.ONNX:
        raw = export.to_onnx(theta, architecture, about)
        other = _onnx(raw)
    else:
        raw = export.to_npz(theta, architecture, about)
        again, shape = export.from_npz(raw)
        other = lambda x: network.forward(again, shape, x)  # noqa: E731
    own = samples is not None and len(samples) > 0
    if samples is None or not own:
        samples = np.random.default_rng(0).normal(0.0, 1.0, (RANDOM_SAMPLES, architecture.input_size))
    agreed = export.agreement(lambda x: network.forward(theta, architecture, x), other, samples)
    return Exported(raw, agreed, own)


def _onnx(raw: bytes) -> export.Model:
    """The model under ONNX's own reference implementation, which needs no further runtime."""
    from onnx import load_model_from_string
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(load_model_from_string(raw))

    def predict(x: Vector) -> Vector:
        (out,) = session.run(None, {export.INPUT: x[None].astype(np.float32)})
        return np.asarray(out[0], dtype=np.float64)

    return predict


def _only_networks(config: LearnerConfig) -> None:
    if config.forecaster != state.NETWORK:
        raise BadConfiguration(
            f"learner.forecaster is {config.forecaster}: only the model `{state.NETWORK}` can be exported"
        )


def _about(
    device: str, cohort: str, version: int | None, samples_seen: int | None, sensors: tuple[str, ...],
    config: LearnerConfig,
) -> dict[str, str]:  # fmt: skip
    """What is written into the file: without the feature names nobody could feed the model."""
    own = [name for name in config.features if name in PER_SENSOR]
    shared = [name for name in config.features if name in SHARED]
    inputs = [f"{sensor}.{name}" for sensor in sensors for name in own] + (shared if sensors else [])
    return {
        "device": device,
        "cohort": cohort,
        "version": str(version or 0),
        "samples_seen": str(samples_seen or 0),
        "sensors": ",".join(sensors),
        "features": ",".join(inputs),
        "horizon_s": f"{config.horizon_s:g}",
    }
