"""Weights of others: files written here in their layouts; what fits is loaded, and every tensor is accounted for."""

import dataclasses
import json

import darknet_twin
import h5py
import numpy as np
import pytest
import toy

from tfdet import configs
from tfdet.compat import keras
from tfdet.config import SsdConfig, YoloConfig
from tfdet.models import class_heads, darknet, hdf5, mobilenet, ssd_vgg, weights

TINY = dataclasses.replace(configs.load("yolov3_tiny").detector, image_size=(64, 96), width_multiplier=0.125)
FULL = YoloConfig(image_size=(64, 32), width_multiplier=0.05)


def filled(model, value=0.5):
    for variable in model.weights:
        variable.assign(np.full(variable.shape, value, np.float32))
    return model


def write_h5(path, layers, root="", **attributes):
    """layers: {layer: {weight: array}}, in the form of Keras' save_weights (or of its save, root "model_weights")."""
    with h5py.File(path, "w") as file:
        group = file.create_group(root) if root else file
        group.attrs["layer_names"] = [name.encode() for name in layers]
        for key, value in attributes.items():
            group.attrs[key] = value
        for layer, tensors in layers.items():
            group.create_group(layer).attrs["weight_names"] = [name.encode() for name in tensors]
            for name, value in tensors.items():
                group[layer][name] = value
    return path


# --- the account --------------------------------------------------------------------------------


def test_every_layer_comes_back(tmp_path):
    source = toy.Toy("plain").build_model()
    source.save_weights(tmp_path / "w.h5")
    target = filled(toy.Toy("plain").build_model())
    audit = weights.load(target, tmp_path / "w.h5", strict=True)
    assert audit.loaded == ("conv1", "norm1", "conv2", "norm2", "box_head", "class_head")
    assert (audit.mismatched, audit.missing, audit.unused) == ((), (), ())
    assert len(audit.rows) == len(target.weights)
    for value, expected in zip(target.get_weights(), source.get_weights()):
        np.testing.assert_array_equal(value, expected)


def test_a_whole_saved_model_will_do(tmp_path):
    layers = [keras.layers.Dense(2, name="dense", input_shape=(3,))]
    with pytest.warns(UserWarning, match="legacy"):
        filled(keras.Sequential(layers)).save(tmp_path / "model.h5", save_format="h5", include_optimizer=False)
    target = keras.Sequential([keras.layers.Dense(2, name="dense", input_shape=(3,))])
    assert weights.load(target, tmp_path / "model.h5").loaded == ("dense",)
    np.testing.assert_array_equal(target.get_weights()[0], np.full((3, 2), 0.5))


@pytest.fixture
def two_models(tmp_path):
    """A file, and a model with one layer that fits, one of another shape and one that the file lacks."""
    dense = keras.layers.Dense
    source = [dense(4, name="body", input_shape=(3,)), dense(5, name="head"), dense(1, name="old")]
    keras.Sequential(source).save_weights(tmp_path / "w.h5")
    target = [dense(4, name="body", input_shape=(3,)), dense(2, name="head"), dense(1, name="new")]
    return tmp_path / "w.h5", keras.Sequential(target)


def test_what_does_not_fit_is_named_and_left_alone(two_models):
    path, target = two_models
    before = target.get_layer("head").get_weights()
    audit = weights.load(target, path)
    assert audit.loaded == ("body",)
    assert (audit.missing, audit.unused) == (("new",), ("old",))
    assert str(audit).splitlines() == [
        f"{path}: 2 tensors loaded, 2 tensors mismatched, 2 tensors missing, 2 tensors unused",
        "  loaded     body: kernel 3x4, bias 4",
        "  mismatched head: kernel bias 4x5 5 in the file, 4x2 2 in the model",
        "  missing    new: kernel bias not in the file",
        "  unused     old: kernel bias not in the model",
    ]
    np.testing.assert_array_equal(target.get_layer("head").get_weights()[0], before[0])


def test_strict_fails_before_anything_is_changed(two_models):
    path, target = two_models
    before = target.get_layer("body").get_weights()
    with pytest.raises(weights.WeightsError, match=r"not all of it fits.*head kernel \(mismatched.*and 3 more"):
        weights.load(target, path, strict=True)
    np.testing.assert_array_equal(target.get_layer("body").get_weights()[0], before[0])


def test_names_that_keras_cut_into_parts(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names0"], file.attrs["layer_names1"] = [b"conv1"], [b"conv2"]
        for name, shape in (("conv1", (3, 3, 3, 8)), ("conv2", (3, 3, 8, 16))):
            group = file.create_group(name)
            group.attrs["weight_names"] = [b"kernel", b"bias"]
            group["kernel"], group["bias"] = np.ones(shape, np.float32), np.ones(shape[-1:], np.float32)
    model = toy.Toy().build_model()
    assert weights.load(model, tmp_path / "w.h5").loaded == ("conv1", "conv2")
    assert model.get_layer("conv2").get_weights()[0].min() == 1


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("w.h5", lambda path: path.write_bytes(b"no hdf5"), "cannot be read as hdf5"),
        ("w.h5", lambda path: h5py.File(path, "w").close(), "is not a file of Keras weights by layer name"),
        ("w.h5", lambda path: write_h5(path, {"far": {"far/kernel:0": np.ones(3)}}),
            "no layer of it fits this model; it has far"),
        ("w.weights", lambda path: path.write_bytes(b"x" * 40), "is not hdf5, and Darknet's files fit YOLOv3"),
    ],
)  # fmt: skip
def test_files_that_are_no_use(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(weights.WeightsError, match=message):
        weights.load(toy.Toy().build_model(), tmp_path / name)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(weights.WeightsError, match="cannot be read"):
        weights.load(toy.Toy().build_model(), tmp_path / "none.h5")


# --- rykov8/ssd_keras: Keras 1 ------------------------------------------------------------------


@pytest.fixture(scope="module")
def seed_ssd():
    return ssd_vgg.build(SsdConfig(priors="ssd300_7308"), num_classes=2)


def random(rng, *shape):
    return rng.uniform(0, 1, shape).astype(np.float32)


def rykov8_layers(rng, classes):
    """Some layers of weights_SSD300.hdf5, named as Keras 1 does; with other than 21 classes the name says how many."""
    end = "" if classes == 21 else f"_{classes}"
    return {
        "input_1": {},
        "conv1_1": {"conv1_1_W": random(rng, 3, 3, 3, 64), "conv1_1_b": random(rng, 64)},
        "conv4_3_norm": {"conv4_3_norm_gamma": random(rng, 512)},
        "conv8_1": {"conv8_1_W": random(rng, 1, 1, 256, 128), "conv8_1_b": random(rng, 128)},
        f"conv8_2_mbox_conf{end}": {"W": random(rng, 3, 3, 256, 6 * classes), "b": random(rng, 6 * classes)},
        f"pool6_mbox_conf_flat{end}": {"W": random(rng, 256, 6 * classes), "b": random(rng, 6 * classes)},
        "pool6_mbox_loc_flat": {"W": random(rng, 256, 24), "b": random(rng, 24)},
        "conv8_2_mbox_priorbox": {},
    }


def test_rykov8_by_name(seed_ssd, rng, tmp_path):
    layers = rykov8_layers(rng, classes=3)  # background and two
    audit = weights.load(filled(seed_ssd), write_h5(tmp_path / "w.hdf5", layers, keras_version="1.2.2"))
    assert set(audit.loaded) == {
        "conv1_1", "conv4_3_norm", "conv8_1", "conv8_2_mbox_conf", "pool6_mbox_conf_flat", "pool6_mbox_loc_flat",
    }  # fmt: skip
    assert audit.unused == audit.mismatched == ()
    assert "conv1_2" in audit.missing
    for name in ("conv1_1", "conv4_3_norm", "conv8_1", "pool6_mbox_loc_flat"):
        for value, expected in zip(seed_ssd.get_layer(name).get_weights(), layers[name].values()):
            np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(
        seed_ssd.get_layer("conv8_2_mbox_conf").get_weights()[1], layers["conv8_2_mbox_conf_3"]["b"]
    )


def test_heads_of_other_classes_are_left_out_and_said_so(seed_ssd, rng, tmp_path):
    path = write_h5(tmp_path / "w.hdf5", rykov8_layers(rng, classes=21))
    audit = weights.load(filled(seed_ssd), path)
    assert {row.split(":")[0] for row in audit.mismatched} == {"conv8_2_mbox_conf", "pool6_mbox_conf_flat"}
    assert "20 classes there, 2 here, so left out; --keep-classes takes a part" in str(audit)
    assert (seed_ssd.get_layer("conv8_2_mbox_conf").get_weights()[0] == 0.5).all()


def test_weights_for_other_priors_name_the_option(seed_ssd, rng, tmp_path):
    """conv4_3 has 3 boxes a cell in the layout of 7,308 priors, 4 in that of 8,732."""
    layers = rykov8_layers(rng, classes=3)
    layers["conv4_3_norm_mbox_loc"] = {"W": random(rng, 3, 3, 512, 16), "b": random(rng, 16)}
    audit = weights.load(filled(seed_ssd), write_h5(tmp_path / "w.hdf5", layers))
    assert "4 boxes a cell there, 3 here, so it was made for other priors; choose them by detector.priors" in str(audit)


def test_some_classes_of_a_head_are_kept(seed_ssd, rng, tmp_path):
    """Class 1 here is class 14 there, counted without background; class 0 keeps its own filters."""
    layers = rykov8_layers(rng, classes=21)
    audit = weights.load(filled(seed_ssd), write_h5(tmp_path / "w.hdf5", layers), keep={1: 14})
    assert {"conv8_2_mbox_conf", "pool6_mbox_conf_flat"} <= set(audit.loaded)
    assert "with 1 of 20 classes" in str(audit)
    for name in ("conv8_2_mbox_conf", "pool6_mbox_conf_flat"):
        for value, source in zip(seed_ssd.get_layer(name).get_weights(), layers[name].values()):
            for box in range(6):
                np.testing.assert_array_equal(value[..., 3 * box], source[..., 21 * box])  # background
                assert (value[..., 3 * box + 1] == 0.5).all()
                np.testing.assert_array_equal(value[..., 3 * box + 2], source[..., 21 * box + 15])


@pytest.mark.parametrize("backend", ["tensorflow", "theano"])
def test_kernels_in_theanos_order(seed_ssd, rng, tmp_path, backend):
    kernel = random(rng, 3, 3, 3, 64)
    stored = kernel.transpose(3, 2, 0, 1)  # [out, in, height, width]
    stored = stored[:, :, ::-1, ::-1] if backend == "theano" else stored
    layers = {"conv1_1": {"conv1_1_W": stored, "conv1_1_b": random(rng, 64)}}
    weights.load(seed_ssd, write_h5(tmp_path / "w.h5", layers, keras_version="1.2.2", backend=backend))
    np.testing.assert_array_equal(seed_ssd.get_layer("conv1_1").get_weights()[0], kernel)


def test_vgg16_of_keras_applications(seed_ssd, rng, tmp_path):
    kernel, bias = random(rng, 3, 3, 64, 128), random(rng, 128)
    layers = {"block2_conv1": {"block2_conv1_W_1:0": kernel, "block2_conv1_b_1:0": bias}, "predictions": {"b": bias}}
    audit = weights.load(seed_ssd, write_h5(tmp_path / "vgg16_weights.h5", layers))
    assert (audit.loaded, audit.unused) == (("conv2_1",), ("predictions",))
    np.testing.assert_array_equal(seed_ssd.get_layer("conv2_1").get_weights()[0], kernel)


# --- keras-yolo3 --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    return darknet.build(TINY, num_classes=2)


def yolo_layers(model, rng, first=1):
    """Its weights drawn anew, named as keras-yolo3's programs do; TensorFlow 2 numbers from "conv2d" on."""
    layers = {}
    for layer in model.layers:
        if layer.weights:
            kind, number = layer.name.rsplit("_", 1)
            name = f"{kind}_{int(number) - 1 + first}" if int(number) - 1 + first else kind
            layers[name] = {f"{name}/{w.name.split('/')[-1]}": random(rng, *w.shape) for w in layer.weights}
    return layers


@pytest.mark.parametrize(("first", "root"), [(1, ""), (1, "model_weights"), (0, ""), (76, "")])
def test_keras_yolo3_by_name(tiny, rng, tmp_path, first, root):
    layers = yolo_layers(tiny, rng, first)
    layers = {name: layers[name] for name in sorted(layers)}  # their order does not matter
    audit = weights.load(filled(tiny), write_h5(tmp_path / "w.h5", layers, root), strict=True)
    assert len(audit.loaded) == len(layers) == 13 + 11
    for layer in tiny.layers:
        kind, _, number = layer.name.rpartition("_")
        if layer.weights:
            name = f"{kind}_{int(number) - 1 + first}" if int(number) - 1 + first else kind
            for value, expected in zip(layer.get_weights(), layers[name].values()):
                np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(("structure", "convs"), [("yolo_body_416_80c", 75), ("tiny_yolo_body_416_80c", 13)])
def test_the_references_names_are_found(shared, structure, convs):
    rows = json.loads((shared / "golden" / "model_structure.json").read_text())[structure]["layers"]
    norms = convs - (3 if convs == 75 else 2)
    known = [f"conv2d_{n + 1}" for n in range(convs)] + [f"batch_normalization_{n + 1}" for n in range(norms)]
    renamed = hdf5.rename({row["name"]: row["weights"] for row in rows if row["weights"]}, dict.fromkeys(known))
    assert renamed.keys() == set(known)
    assert renamed["conv2d_1"][0][-1] == (32 if convs == 75 else 16)


# --- Darknet ------------------------------------------------------------------------------------


def draw_floats(model, rng):
    """A file's worth of floats for the model: moderate kernels, variances about 1."""
    count = model.count_params()
    return rng.uniform(0.05, 0.35, count).astype(np.float32) * rng.choice([-1, 1], count, p=[0.4, 0.6])


def positive_variances(floats, model):
    """Makes what are variances in the file positive."""
    floats, at = floats.copy(), 0
    for layer in sorted((x for x in model.layers if x.name.startswith("conv2d_")), key=lambda x: int(x.name[7:])):
        filters = layer.filters
        if not layer.use_bias:
            floats[at + 3 * filters : at + 4 * filters] = np.abs(floats[at + 3 * filters : at + 4 * filters]) + 0.5
        at += (1 if layer.use_bias else 4) * filters + int(np.prod(layer.kernel.shape))
    assert at == floats.size
    return floats


NETS = {"tiny": (TINY, darknet_twin.yolov3_tiny), "darknet53": (FULL, darknet_twin.yolov3)}


@pytest.mark.parametrize(("name", "version"), [("tiny", (0, 2, 0)), ("tiny", (0, 1, 0)), ("darknet53", (0, 2, 5))])
def test_a_forward_pass_equals_darknets(name, version, rng, tmp_path):
    config, forward = NETS[name]
    model = darknet.build(config, num_classes=2)
    floats = positive_variances(draw_floats(model, rng), model)
    path = darknet_twin.write_weights(tmp_path / "net.weights", floats, version)
    audit = weights.load(model, path, strict=True)
    assert len(audit.rows) == len(model.weights)
    image = rng.integers(0, 256, (*config.image_size, 3), dtype=np.uint8)
    net = darknet_twin.Network(floats, config.width_multiplier, depth=3 * 7)
    expected = np.concatenate([out.reshape(-1, 7) for out in forward(net, image / 255)])
    assert net.is_used_up
    found = model(image[None])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found["box_deltas"][0] / scale, expected[:, :4] / scale, atol=1e-5)
    np.testing.assert_allclose(found["objectness_logits"][0] / scale, expected[:, 4] / scale, atol=1e-5)
    np.testing.assert_allclose(found["class_logits"][0] / scale, expected[:, 5:] / scale, atol=1e-5)


def test_the_first_layers_alone(tiny, rng, tmp_path):
    """As darknet53.conv.74 or yolov3-tiny.conv.15: it ends after a convolution."""
    floats = draw_floats(tiny, rng)
    count = sum(tiny.get_layer(f"{kind}_{n}").count_params() for kind in ("conv2d", "batch_normalization")
                for n in (1, 2, 3))  # fmt: skip
    audit = weights.load(tiny, darknet_twin.write_weights(tmp_path / "tiny.conv.5", floats[:count]))
    assert audit.loaded == tuple(f"{kind}_{n}" for n in (1, 2, 3) for kind in ("conv2d", "batch_normalization"))
    assert len(audit.missing) == 24 - 6
    # 8 filters: shifts, scales, means, variances; Keras has the scales first
    np.testing.assert_array_equal(tiny.get_layer("batch_normalization_1").get_weights(), floats[:32].reshape(4, 8)[
        [1, 0, 2, 3]])  # fmt: skip
    with pytest.raises(weights.WeightsError, match=r"conv2d_4 kernel .missing"):
        weights.load(tiny, tmp_path / "tiny.conv.5", strict=True)


def test_a_darknet_file_of_other_classes(tiny, rng, tmp_path):
    """Five classes in the file: 3 * (5 + 5) = 30 filters an output where this model has 21."""
    source = darknet.build(TINY, num_classes=5)
    floats = draw_floats(source, rng)
    path = darknet_twin.write_weights(tmp_path / "five.weights", floats)
    audit = weights.load(filled(tiny), path)
    assert [row.split(":")[0] for row in audit.mismatched] == ["conv2d_10", "conv2d_13"]
    assert "5 classes there, 2 here, so left out" in str(audit)
    assert len(audit.loaded) == 22
    weights.load(source, path, strict=True)
    np.testing.assert_array_equal(
        tiny.get_layer("conv2d_12").get_weights()[0], source.get_layer("conv2d_12").get_weights()[0]
    )


def test_some_classes_of_a_darknet_file(tiny, rng, tmp_path):
    """Class 0 here is 3 there; box and objectness columns come along, class 1 stays."""
    source = darknet.build(TINY, num_classes=5)
    path = darknet_twin.write_weights(tmp_path / "five.weights", draw_floats(source, rng))
    weights.load(source, path, strict=True)
    weights.load(filled(tiny), path, strict=True, keep={0: 3})
    for name in ("conv2d_10", "conv2d_13"):
        for value, there in zip(tiny.get_layer(name).get_weights(), source.get_layer(name).get_weights()):
            for box in range(3):
                own, other = value[..., 7 * box : 7 * box + 7], there[..., 10 * box : 10 * box + 10]
                np.testing.assert_array_equal(own[..., :6], other[..., [0, 1, 2, 3, 4, 8]])
                assert (own[..., 6] == 0.5).all()
    with pytest.raises(weights.WeightsError, match="class 5 is to be kept, but the file has 5 classes"):
        weights.load(tiny, path, keep={0: 5})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-2], "or it was cut short"),
        (lambda data: data[:-4], "Is it the file of another network"),
        (lambda data: data[:9], "9 bytes are no file of weights"),
        (lambda data: b"\xff\xd8\xff\xe0" + data, "neither hdf5 nor a Darknet"),
    ],
)
def test_darknet_files_that_are_no_use(tiny, rng, tmp_path, change, message):
    path = darknet_twin.write_weights(tmp_path / "net.weights", draw_floats(tiny, rng))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(weights.WeightsError, match=message):
        weights.load(tiny, path)


# --- keras.applications -------------------------------------------------------------------------


def test_imagenets_mobilenet(monkeypatch, rng):
    config = SsdConfig(backbone="mobilenetv2", width_multiplier=0.35)
    made = []

    def without_network(**options):
        assert options.pop("weights") == "imagenet"
        made.append(options)
        return filled(original(weights=None, **options), 0.25)

    original = keras.applications.MobileNetV2
    model = mobilenet.build(config, num_classes=2)
    monkeypatch.setattr(keras.applications, "MobileNetV2", without_network)
    audit = weights.load(model, "imagenet")
    assert made == [{"include_top": False, "alpha": 0.35, "input_shape": (224, 224, 3)}]
    assert audit.mismatched == audit.unused == ()
    assert {"Conv1", "block_16_project_BN", "out_relu"} - set(audit.loaded) == {"out_relu"}
    assert "extra_1_reduce" in audit.missing
    assert (model.get_layer("block_3_expand_BN").get_weights()[3] == 0.25).all()


def test_imagenet_without_a_network(monkeypatch, seed_ssd):
    def fail(**_):
        raise Exception("URL fetch failure on https://storage: None -- timed out")

    monkeypatch.setattr(keras.applications, "VGG16", fail)
    with pytest.raises(weights.WeightsError, match=r"VGG16 cannot be had: URL fetch failure.*~/.keras/models"):
        weights.load(seed_ssd, "imagenet")


def test_imagenet_for_yolo(tiny):
    with pytest.raises(weights.WeightsError, match=r"no Darknet. For YOLOv3 take Darknet's own file darknet53.conv.74"):
        weights.load(tiny, "imagenet")


# --- classes to keep ----------------------------------------------------------------------------


def test_classes_to_keep_by_name_and_number():
    names = ("car", "lorry", "person")
    assert class_heads.parse_keep("person, car", names, ("person", "bicycle", "car")) == {2: 0, 0: 2}
    assert class_heads.parse_keep("lorry=truck,car=2", names, ("person", "truck", "car")) == {1: 1, 0: 2}
    assert class_heads.parse_keep("lorry=7", names) == {1: 7}


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("bus", None, "'bus' is no class here; there are car, lorry"),
        ("car", None, "which class of the file is 'car'.*--source-classes FILE.*car=0"),
        ("car=van", ("person", "bus"), "no class 'van'; it has person, bus"),
        (",", None, "names no class"),
    ],
)
def test_classes_that_cannot_be_kept(text, source, message):
    with pytest.raises(weights.WeightsError, match=message):
        class_heads.parse_keep(text, ("car", "lorry"), source)


def test_there_is_nothing_to_keep_in_other_models(tmp_path):
    model = keras.Sequential([keras.layers.Dense(1, name="dense", input_shape=(1,))])
    model.save_weights(tmp_path / "w.h5")
    with pytest.raises(weights.WeightsError, match="no layer with classes of which some could be kept"):
        weights.load(model, tmp_path / "w.h5", keep={0: 0})
