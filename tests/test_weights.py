"""Loading by name: what fits is loaded, the rest is accounted for."""

import h5py
import numpy as np
import pytest
import toy

from tfdet.compat import keras
from tfdet.models import weights


def filled(model, value=0.5):
    for variable in model.weights:
        variable.assign(np.full(variable.shape, value, np.float32))
    return model


def test_every_layer_comes_back(tmp_path):
    source = toy.Toy("plain").build_model()
    source.save_weights(tmp_path / "w.h5")
    target = filled(toy.Toy("plain").build_model())
    audit = weights.load_by_name(target, tmp_path / "w.h5")
    assert audit.loaded == ("conv1", "norm1", "conv2", "norm2", "box_head", "class_head")
    assert (audit.mismatched, audit.missing, audit.unused) == ((), (), ())
    for value, expected in zip(target.get_weights(), source.get_weights()):
        np.testing.assert_array_equal(value, expected)


def test_a_whole_saved_model_will_do(tmp_path):
    layers = [keras.layers.Dense(2, name="dense", input_shape=(3,))]
    with pytest.warns(UserWarning, match="legacy"):
        filled(keras.Sequential(layers)).save(tmp_path / "model.h5", save_format="h5", include_optimizer=False)
    target = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    assert weights.load_by_name(target, tmp_path / "model.h5").loaded == ("dense",)
    np.testing.assert_array_equal(target.get_weights()[0], np.full((3, 2), 0.5))


def test_what_does_not_fit_is_named_and_left_alone(tmp_path):
    source = keras.Sequential([
        keras.layers.Dense(4, name="body", input_shape=(3,)),
        keras.layers.Dense(5, name="head"),
        keras.layers.Dense(1, name="old"),
    ])  # fmt: skip
    source.save_weights(tmp_path / "w.h5")
    target = keras.Sequential([
        keras.layers.Dense(4, name="body", input_shape=(3,)),
        keras.layers.Dense(2, name="head"),
        keras.layers.Dense(1, name="new"),
    ])  # fmt: skip
    before = target.get_layer("head").get_weights()
    audit = weights.load_by_name(target, tmp_path / "w.h5")
    assert audit.loaded == ("body",)
    assert audit.mismatched == ("head: 4x5 5, not 4x2 2",)
    assert (audit.missing, audit.unused) == (("new",), ("old",))
    assert str(audit).splitlines() == [
        "1 layers loaded", "  1 mismatched: head: 4x5 5, not 4x2 2", "  1 missing: new", "  1 unused: old",
    ]  # fmt: skip
    np.testing.assert_array_equal(target.get_layer("head").get_weights()[0], before[0])


def test_names_that_keras_cut_into_parts(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names0"], file.attrs["layer_names1"] = [b"conv1"], [b"conv2"]
        for name, shape in (("conv1", (3, 3, 3, 8)), ("conv2", (3, 3, 8, 16))):
            group = file.create_group(name)
            group.attrs["weight_names"] = [b"kernel", b"bias"]
            group["kernel"], group["bias"] = np.ones(shape, np.float32), np.ones(shape[-1:], np.float32)
    model = toy.Toy().build_model()
    assert weights.load_by_name(model, tmp_path / "w.h5").loaded == ("conv1", "conv2")
    assert model.get_layer("conv2").get_weights()[0].min() == 1


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"no hdf5"), "cannot be read as hdf5"),
        (lambda path: h5py.File(path, "w").close(), "is not a file of Keras weights by layer name"),
        (lambda path: filled(keras.Sequential([keras.layers.Dense(1, name="far", input_shape=(1,))]))
            .save_weights(path), "no layer of it fits this model; it has far"),
    ],
)  # fmt: skip
def test_files_that_are_no_use(tmp_path, write, message):
    write(tmp_path / "w.h5")
    with pytest.raises(weights.WeightsError, match=message):
        weights.load_by_name(toy.Toy().build_model(), tmp_path / "w.h5")


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(weights.WeightsError, match="cannot be read"):
        weights.load_by_name(toy.Toy().build_model(), tmp_path / "none.h5")
