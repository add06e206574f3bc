"""An exported network is the network: what another runtime says is what NumPy says, and damage is noticed."""

from __future__ import annotations

import io
import itertools
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from flead.errors import BadModel
from flead.export import (
    LiteModel,
    Model,
    agreement,
    from_npz,
    metadata_of,
    to_npz,
    to_onnx,
    to_tflite,
    to_tflite_int8,
)
from flead.features import CLIP
from flead.network import Architecture, Vector, forward, initial, layers

architectures = st.builds(
    Architecture,
    st.integers(1, 60),
    st.lists(st.integers(1, 64), max_size=3).map(tuple),
    st.integers(1, 8),
    st.booleans(),
)
seeds = st.integers(0, 2**32)
strings = st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=40), max_size=4)
few = settings(deadline=None, max_examples=40)

TYPICAL = Architecture(60, (32, 16), 8)
DEFAULT = Architecture(61, (32,), 8, skip=True)
typical = pytest.mark.parametrize("architecture", [TYPICAL, DEFAULT], ids=str)
ABOUT = {"device": "mote-7", "cohort": "humidity,light,temperature", "version": "12", "sensors": "Größe, 温度"}


def parameters(architecture: Architecture, seed: int) -> Vector:
    """(parameter_count,), as large as those of a trained network."""
    rng, theta = np.random.default_rng(seed), np.empty(architecture.parameter_count)
    for layer in layers(theta, architecture):
        layer[:-1] = rng.normal(0.0, 1.0, layer[:-1].shape) / np.sqrt(len(layer) - 1)
        layer[-1] = rng.normal(0.0, 0.3, layer.shape[1])
    return theta


def normalised(architecture: Architecture, seed: int, count: int = 200) -> Vector:
    """(count, n_in), as a device's scaler makes them."""
    return np.random.default_rng(seed).normal(0.0, 1.0, (count, architecture.input_size)).clip(-CLIP, CLIP)


def anywhere(architecture: Architecture, seed: int) -> Vector:
    """(20, n_in), wherever a scaler may put them."""
    return np.random.default_rng(seed).uniform(-CLIP, CLIP, (20, architecture.input_size))


def numpy_model(theta: Vector, architecture: Architecture) -> Model:
    return lambda x: forward(theta, architecture, x)


def onnx_model(raw: bytes) -> Model:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])

    def predict(x: Vector) -> Vector:
        (out,) = session.run(["change"], {"x": x[None].astype(np.float32)})
        return np.asarray(out[0], dtype=np.float64)

    return predict


def int8(architecture: Architecture, seed: int, **about: str) -> bytes:
    return to_tflite_int8(parameters(architecture, seed), architecture, normalised(architecture, seed), about)


def details(raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The one input and the one output, as TFLite itself sees them."""
    interpreter = Interpreter(model_content=raw)
    (x,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    return x, out


class TestTheNumbers:
    @few
    @given(architectures, seeds)
    def test_float_tflite_says_what_numpy_says(self, architecture: Architecture, seed: int) -> None:
        theta, samples = parameters(architecture, seed), anywhere(architecture, seed)
        lite = LiteModel(to_tflite(theta, architecture))
        assert agreement(numpy_model(theta, architecture), lite.predict, samples).max_abs < 1e-5

    @few
    @given(architectures, seeds)
    def test_onnx_says_what_numpy_says(self, architecture: Architecture, seed: int) -> None:
        theta, samples = parameters(architecture, seed), anywhere(architecture, seed)
        predict = onnx_model(to_onnx(theta, architecture))
        assert agreement(numpy_model(theta, architecture), predict, samples).max_abs < 1e-5

    @few
    @given(architectures, seeds)
    def test_npz_keeps_every_bit(self, architecture: Architecture, seed: int) -> None:
        theta = parameters(architecture, seed)
        theta[0] = 5e-324
        again, sizes = from_npz(to_npz(theta, architecture))
        assert sizes == architecture
        assert_array_equal(again, theta)

    @few
    @given(architectures, seeds)
    def test_int8_is_off_by_a_small_part_of_the_output_range(self, architecture: Architecture, seed: int) -> None:
        theta, samples = parameters(architecture, seed), normalised(architecture, seed)
        network, lite = numpy_model(theta, architecture), LiteModel(to_tflite_int8(theta, architecture, samples))
        outputs = np.array([network(x) for x in samples])
        span = max(0.0, outputs.max()) - min(0.0, outputs.min())  # 0 is always among the 256 values
        loss = agreement(network, lite.predict, samples)
        assert loss.rmse < 0.05 * span
        assert loss.max_abs < 0.15 * span

    @typical
    def test_int8_holds_on_inputs_that_it_was_not_calibrated_on(self, architecture: Architecture) -> None:
        theta, samples = parameters(architecture, 1), normalised(architecture, 3)
        lite = LiteModel(to_tflite_int8(theta, architecture, normalised(architecture, 2, count=500)))
        assert agreement(numpy_model(theta, architecture), lite.predict, samples).relative_rmse < 0.03

    def test_int8_keeps_both_parts_of_an_output_whichever_is_the_larger(self) -> None:
        theta, samples = parameters(DEFAULT, 1), normalised(DEFAULT, 1)
        for rows, factor in itertools.product((slice(0, 32), slice(32, -1)), (0.0, 1e-9, 1e-3, 1e3)):
            scaled = theta.copy()
            layers(scaled, DEFAULT)[-1][rows] *= factor
            lite = LiteModel(to_tflite_int8(scaled, DEFAULT, samples))
            assert agreement(numpy_model(scaled, DEFAULT), lite.predict, samples).relative_rmse < 0.03

    def test_int8_rounds_to_the_nearest_step_and_cuts_off_what_lies_beyond_its_samples(self) -> None:
        lite = LiteModel(to_tflite_int8(np.array([1.0, 0.0]), Architecture(1, (), 1), np.array([[-1.0], [1.0]])))
        step = 2.0 / 255.0
        for x in np.linspace(-1.0, 1.0, 101):
            assert lite.predict(np.array([x])) == pytest.approx(x, abs=1.01 * step)
        errors = [float(lite.predict(np.array([x]))[0] - x) for x in np.linspace(0.1, 0.9, 1001)]
        assert abs(np.mean(errors)) < 0.05 * step
        assert lite.predict(np.array([50.0])) == pytest.approx(1.0, abs=step)
        assert lite.predict(np.array([-50.0])) == pytest.approx(-1.0, abs=step)

    def test_int8_wastes_no_step_on_what_tanh_flattens(self) -> None:
        theta = np.array([100.0, 0.0, 1.0, 0.0])
        raw = to_tflite_int8(theta, Architecture(1, (1,), 1), np.array([[-1.0], [1.0]]))
        (before,) = (t for t in Interpreter(model_content=raw).get_tensor_details() if t["name"] == "h0")
        assert before["quantization"][0] * 127.0 == pytest.approx(math.atanh(1.0 - 1 / 256), rel=0.01)

    @typical
    @pytest.mark.parametrize("factor", [0.0, 1e-60, 1e-25, 1e-3, 1e9])
    def test_int8_takes_parameters_of_any_size(self, factor: float, architecture: Architecture) -> None:
        theta, samples = parameters(architecture, 1), normalised(architecture, 1)
        layers(theta, architecture)[-1][:] *= factor
        network, lite = numpy_model(theta, architecture), LiteModel(to_tflite_int8(theta, architecture, samples))
        assert agreement(network, lite.predict, samples).rmse <= 0.03 * np.std([network(x) for x in samples]) + 1e-45

    def test_int8_takes_biases_far_beyond_the_weights(self) -> None:
        theta, samples = parameters(TYPICAL, 1), normalised(TYPICAL, 1)
        layers(theta, TYPICAL)[-1][-1] = 1e9
        lite = LiteModel(to_tflite_int8(theta, TYPICAL, samples))
        assert agreement(numpy_model(theta, TYPICAL), lite.predict, samples).relative_rmse < 0.03

    def test_int8_of_a_pruned_output_costs_the_others_nothing(self) -> None:
        theta, samples = parameters(TYPICAL, 1), normalised(TYPICAL, 1)
        layers(theta, TYPICAL)[-1][:] *= 1e-6
        layers(theta, TYPICAL)[-1][:, 0] = 0.0
        lite = LiteModel(to_tflite_int8(theta, TYPICAL, samples))
        assert agreement(numpy_model(theta, TYPICAL), lite.predict, samples).relative_rmse < 0.03

    def test_int8_survives_samples_that_are_all_the_same(self) -> None:
        theta, samples = parameters(TYPICAL, 1), np.zeros((3, 60))
        lite = LiteModel(to_tflite_int8(theta, TYPICAL, samples))
        assert agreement(numpy_model(theta, TYPICAL), lite.predict, samples).relative_rmse < 0.03

    def test_an_untrained_network_predicts_next_to_nothing_in_every_form(self) -> None:
        theta, samples = initial(TYPICAL, np.random.default_rng(0)), normalised(TYPICAL, 0)
        for raw in (to_tflite(theta, TYPICAL), to_tflite_int8(theta, TYPICAL, samples)):
            assert agreement(numpy_model(theta, TYPICAL), LiteModel(raw).predict, samples).max_abs < 0.02


class TestTheFile:
    @typical
    def test_is_small(self, architecture: Architecture) -> None:
        assert len(int8(architecture, 1)) < 6_000
        assert len(to_tflite(parameters(architecture, 1), architecture)) < 13_000

    @typical
    def test_is_the_same_every_time(self, architecture: Architecture) -> None:
        theta = parameters(architecture, 1)
        for export in (to_tflite, to_onnx, to_npz):
            assert export(theta, architecture, ABOUT) == export(theta, architecture, ABOUT)
        assert int8(architecture, 1, **ABOUT) == int8(architecture, 1, **ABOUT)

    def test_names_its_input_and_its_output(self) -> None:
        for raw, kind in ((to_tflite(parameters(TYPICAL, 1), TYPICAL), np.float32), (int8(TYPICAL, 1), np.int8)):
            x, out = details(raw)
            assert (x["name"], x["shape"].tolist(), x["dtype"]) == ("x", [1, 60], kind)
            assert (out["name"], out["shape"].tolist(), out["dtype"]) == ("change", [1, 8], kind)

    @few
    @given(architectures, seeds, st.sampled_from([0.0, 1e-60, 1e-40, 1e-6, 1.0, 1e9]), st.integers(1, 3))
    def test_loads_where_xnnpack_is_on_too(self, architecture: Architecture, seed: int, size: float, n: int) -> None:
        theta = parameters(architecture, seed)
        layers(theta, architecture)[-1][:] *= size
        Interpreter(model_content=to_tflite(theta, architecture)).allocate_tensors()
        Interpreter(
            model_content=to_tflite_int8(theta, architecture, normalised(architecture, seed, n))
        ).allocate_tensors()

    def test_of_a_sensor_that_stands_still_loads_there_too(self) -> None:
        still = to_tflite_int8(np.array([1.0, -1.0]), Architecture(1, (), 1), np.full((9, 1), 1.0 + 1e-9))
        Interpreter(model_content=still).allocate_tensors()

    @typical
    def test_of_int8_holds_no_float(self, architecture: Architecture) -> None:
        interpreter = Interpreter(model_content=int8(architecture, 1))
        assert {tensor["dtype"] for tensor in interpreter.get_tensor_details()} == {np.int8, np.int32}

    def test_of_int8_gives_tanh_the_grid_that_tflite_demands(self) -> None:
        tensors = Interpreter(model_content=int8(TYPICAL, 1)).get_tensor_details()
        assert [t["quantization"] for t in tensors if t["name"] in {"h0.out", "h1.out"}] == [(1 / 128, 0)] * 2

    def test_lays_every_buffer_where_microcontrollers_can_read_it(self) -> None:
        model = schema.Model.GetRootAs(int8(TYPICAL, 1), 0)
        buffers = [model.Buffers(number)._tab for number in range(1, model.BuffersLength())]
        assert {table.Vector(table.Offset(4)) % 16 for table in buffers} == {0}

    @typical
    def test_of_onnx_is_valid_and_takes_any_number_of_inputs_at_once(self, architecture: Architecture) -> None:
        raw = to_onnx(parameters(architecture, 1), architecture)
        onnx.checker.check_model(onnx.load_model_from_string(raw), full_check=True)
        session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
        x = np.zeros((5, architecture.input_size), dtype=np.float32)
        assert session.run(None, {"x": x})[0].shape == (5, 8)


class TestTheMetadata:
    @settings(deadline=None, max_examples=10)
    @given(strings)
    def test_comes_back_from_every_form(self, about: dict[str, str]) -> None:
        architecture = Architecture(2, (3,), 1)
        theta = parameters(architecture, 1)
        assert metadata_of(to_tflite(theta, architecture, about)) == about
        assert metadata_of(to_tflite_int8(theta, architecture, np.eye(2), about)) == about
        assert metadata_of(to_onnx(theta, architecture, about)) == about
        assert metadata_of(to_npz(theta, architecture, about)) == about

    def test_of_an_export_without_any_is_empty(self) -> None:
        theta = parameters(TYPICAL, 1)
        assert [metadata_of(export(theta, TYPICAL)) for export in (to_tflite, to_onnx, to_npz)] == [{}] * 3

    def test_changes_no_number(self) -> None:
        assert_array_equal(
            LiteModel(int8(TYPICAL, 1)).predict(np.ones(60)), LiteModel(int8(TYPICAL, 1, **ABOUT)).predict(np.ones(60))
        )


def npz(**arrays: Any) -> bytes:
    good: dict[str, Any] = {
        "theta": np.zeros(13), "sizes": np.array([2, 3, 1]), "skip": False, "activation": "tanh", "metadata": "{}"
    }  # fmt: skip
    out = io.BytesIO()
    np.savez(out, **{name: value for name, value in (good | arrays).items() if value is not None})
    return out.getvalue()


class TestBytesThatAreNoModel:
    READERS = (LiteModel, from_npz, metadata_of)

    @settings(deadline=None, max_examples=50)
    @given(
        st.binary(max_size=500),
        st.sampled_from([b"", b"\x20\0\0\0TFL3", b"PK\x03\x04", b"\x93NUMPY\x01\0", b"\x08\x08"]),
    )
    def test_are_refused_whatever_they_begin_with(self, noise: bytes, beginning: bytes) -> None:
        for read in self.READERS:
            with pytest.raises(BadModel):
                read(beginning + noise)

    @settings(deadline=None, max_examples=30)
    @given(st.data())
    def test_are_refused_where_a_tflite_model_was_cut_off(self, data: st.DataObject) -> None:
        raw = int8(TYPICAL, 1)
        with pytest.raises(BadModel):
            LiteModel(raw[: data.draw(st.integers(0, len(raw) - 1))])

    @settings(deadline=None, max_examples=30)
    @given(st.data())
    def test_are_refused_where_a_tflite_model_has_one_other_bit(self, data: st.DataObject) -> None:
        raw = bytearray(int8(TYPICAL, 1))
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        with pytest.raises(BadModel):
            LiteModel(bytes(raw))

    @settings(deadline=None, max_examples=30)
    @given(st.data())
    def test_are_refused_where_an_npz_was_cut_off(self, data: st.DataObject) -> None:
        raw = npz()
        with pytest.raises(BadModel):
            from_npz(raw[: data.draw(st.integers(0, len(raw) - 1))])

    def test_say_what_they_are_not(self) -> None:
        with pytest.raises(BadModel, match="these 5 bytes are no TFLite model"):
            LiteModel(b"hello")
        with pytest.raises(BadModel, match="damaged, or FLEAD did not make it"):
            LiteModel(int8(TYPICAL, 1)[:-1])
        with pytest.raises(BadModel, match="these 5 bytes are no npz model"):
            from_npz(b"hello")
        with pytest.raises(BadModel, match="no TFLite, ONNX or npz model"):
            metadata_of(b"hello")

    def test_are_never_unpickled(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return Path.touch, (tmp_path / "unpickled",)

        raw = npz(theta=np.array([Trap()], dtype=object))
        for read in (from_npz, metadata_of):
            with pytest.raises(BadModel, match="allow_pickle"):
                read(raw)
        assert not (tmp_path / "unpickled").exists()

    def test_cannot_fill_the_memory(self) -> None:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("theta.npy", bytes(65 * 2**20))
        with pytest.raises(BadModel, match="would unpack to"):
            from_npz(out.getvalue())

    @pytest.mark.parametrize(
        ("arrays", "why"),
        [
            ({"theta": np.zeros(12)}, "2-3-1 has 13 parameters"),
            ({"theta": np.zeros((13, 1))}, "2-3-1 has 13 parameters"),
            ({"theta": np.zeros(13, dtype=np.float32)}, "float64"),
            ({"theta": np.full(13, np.nan)}, "not a finite number"),
            ({"sizes": np.array([13])}, "two or more positive integers"),
            ({"sizes": np.array([2, -3, 1])}, "two or more positive integers"),
            ({"sizes": np.array([2.0, 3.0, 1.0])}, "two or more positive integers"),
            ({"skip": True}, r"2-3-1\+skip has 15 parameters"),
            ({"skip": 1}, "skip must be true or false"),
            ({"activation": "swish"}, "hidden layers are tanh here, this network's are 'swish'"),
            ({"theta": None}, "no npz model"),
        ],
    )
    def test_are_refused_where_the_arrays_are_no_network(self, arrays: dict[str, Any], why: str) -> None:
        from_npz(npz())
        with pytest.raises(BadModel, match=why):
            from_npz(npz(**arrays))

    @pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "{"])
    def test_are_refused_where_the_metadata_are_no_strings(self, text: str) -> None:
        with pytest.raises(BadModel, match="metadata"):
            metadata_of(npz(metadata=text))


class TestWhatCannotBeExported:
    @pytest.mark.parametrize("export", [to_tflite, to_onnx, to_npz])
    def test_parameters_that_do_not_fit_the_architecture(self, export: Callable[..., bytes]) -> None:
        for theta in (np.zeros(12), np.zeros((13, 1)), np.full(13, math.nan), np.full(13, math.inf)):
            with pytest.raises(BadModel):
                export(theta, Architecture(2, (3,), 1))

    def test_parameters_too_large_for_float32(self) -> None:
        theta = np.full(13, 1e39)
        for export in (to_tflite, to_onnx):
            with pytest.raises(BadModel, match="32 bits"):
                export(theta, Architecture(2, (3,), 1))
        from_npz(to_npz(theta, Architecture(2, (3,), 1)))

    @pytest.mark.parametrize(
        "samples", [np.zeros((0, 2)), np.zeros((5, 3)), np.zeros(2), np.full((5, 2), math.nan), np.full((5, 2), 1e300)]
    )
    def test_int8_without_samples_that_fit(self, samples: Vector) -> None:
        with pytest.raises(BadModel):
            to_tflite_int8(np.ones(13), Architecture(2, (3,), 1), samples)


class TestPredicting:
    def test_gives_a_new_array_each_time_and_leaves_the_input_alone(self) -> None:
        x = np.ones(60)
        for raw in (to_tflite(parameters(TYPICAL, 1), TYPICAL), int8(TYPICAL, 1)):
            lite = LiteModel(raw)
            first = lite.predict(x)
            kept = first.copy()
            lite.predict(-x)
            assert first.dtype == np.float64
            assert_array_equal(first, kept)
            assert_array_equal(x, np.ones(60))

    def test_takes_as_many_inputs_as_the_model_has(self) -> None:
        lite = LiteModel(int8(TYPICAL, 1))
        assert (lite.input_size, lite.output_size) == (60, 8)
        for x in (np.ones(1), np.ones(59), np.ones((1, 60))):
            with pytest.raises(BadModel, match=r"takes inputs \(60,\)"):
                lite.predict(x)


def test_agreement_is_the_arithmetic_of_the_errors() -> None:
    samples = np.array([[3.0], [-4.0]])
    loss = agreement(lambda x: x, lambda x: x + 1.0, samples)
    assert (loss.max_abs, loss.rmse) == (1.0, 1.0)
    assert loss.relative_rmse == pytest.approx(1.0 / math.sqrt(12.5))
    assert agreement(lambda x: x, lambda x: x, samples).relative_rmse == 0.0
    assert agreement(np.zeros_like, lambda x: x, samples).relative_rmse == math.inf
