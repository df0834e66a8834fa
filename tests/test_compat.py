"""Which Keras, and what is said where a package is missing."""

import importlib.util
import sys

import pytest
import tensorflow as tf

from tfdet import addons, compat


def test_keras_is_keras_2():
    assert issubclass(compat.keras.layers.Layer, tf.Module)  # in Keras 3 it no longer is
    assert tuple(map(int, tf.__version__.split(".")[:2])) == compat.TF_VERSION


@pytest.mark.skipif(compat.TF_VERSION < (2, 16), reason="TensorFlow up to 2.15 has Keras 2 itself")
def test_a_missing_tf_keras_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf_keras", None)  # makes its import fail
    spec = importlib.util.spec_from_file_location("compat_again", compat.__file__)
    with pytest.raises(ImportError, match=r"needs the package tf_keras .* pip install 'tf_keras~=2\.\d+\.0'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.fixture
def without_addons(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_addons", None)
    addons._load.cache_clear()
    yield
    addons._load.cache_clear()


@pytest.mark.usefixtures("without_addons")
def test_missing_addons_are_explained():
    assert not addons.available()
    with pytest.raises(ImportError, match=r"optimizers.LAMB: tensorflow-addons is not installed.*make install STACK"):
        addons.get("optimizers.LAMB")


@pytest.mark.skipif(not addons.available(), reason="tensorflow-addons is not installed")
def test_addons_give_their_parts():
    assert addons.get("optimizers.LAMB").__name__ == "LAMB"
    with pytest.raises(AttributeError):
        addons.get("optimizers.NoSuchThing")


@pytest.mark.skipif(compat.TF_VERSION >= (2, 16), reason="the default stack")
def test_the_addons_stack_has_addons():
    assert addons.available()
