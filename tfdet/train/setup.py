"""A model made ready for training: seed, precision, the strategy's scope, synchronised and frozen layers."""

import contextlib
import difflib
import fnmatch

import tensorflow as tf

from tfdet.compat import keras
from tfdet.config import ConfigError


def build_model(detector, config, strategy):
    """The detector's model under `strategy`, with the seed, precision and frozen layers of a TrainConfig.

    The same seed gives the same initial weights on any number of replicas.
    To load weights first, call the parts: `new_model`, then `freeze`.
    """
    model = new_model(detector, config, strategy)
    freeze(model, config.frozen)
    return model


def new_model(detector, config, strategy):
    """`build_model` without the freezing."""
    keras.utils.set_random_seed(config.seed)
    with strategy.scope(), _precision(config.precision):
        model = detector.build_model()
    if config.sync_batch_norm and strategy.num_replicas_in_sync > 1:
        synchronise_batch_norm(model)
    return model


def freeze(model, patterns):
    """Takes the layers whose names match out of training; batch normalisation among them then keeps its statistics.

    Args:
        patterns: shell patterns of layer names, e.g. "conv1_*".
    Raises:
        ConfigError: a pattern matches no layer, or nothing is left to train.
    """
    for layer in find_layers(model, patterns, "train.frozen"):
        layer.trainable = False
    if not model.trainable_variables:
        raise ConfigError(f"train.frozen {', '.join(patterns)} leaves nothing to train")


def find_layers(model, patterns, field) -> list:
    """The layers whose names match.

    Args:
        patterns: shell patterns. field: of the config, for the error.
    Raises:
        ConfigError: a pattern matches no layer.
    """
    layers, found = {layer.name: layer for layer in _layers(model)}, {}
    for pattern in patterns:
        names = fnmatch.filter(layers, pattern)
        if not names:
            near = difflib.get_close_matches(pattern, layers, n=8, cutoff=0.3) or list(layers)[:8]
            raise ConfigError(f"{field}: no layer is called {pattern!r}; near it: {', '.join(near)}")
        found |= {name: layers[name] for name in names}
    return list(found.values())


def require_possible(detector, config, strategy):
    """Raises ConfigError where the parts of a TrainConfig exclude each other on this many replicas, or the detector
    cannot be trained here."""
    talking = config.sync_batch_norm and strategy.num_replicas_in_sync > 1
    for field, used in (("accumulate", config.accumulate > 1), ("xla", config.xla)):
        if talking and used:
            raise ConfigError(
                f"train.{field} keeps replicas from talking to each other inside the forward pass, which "
                "train.sync_batch_norm needs; leave out one of them"
            )
    detector.require_possible()  # now, not at the first step


def synchronise_batch_norm(model):
    """Lets batch normalisation take its statistics over the global batch; call it before a step is traced.

    Same as layers made with `synchronized=True`, which Keras has only for its unfused kernel.
    """
    for layer in _layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.fused = False
            layer.synchronized = True


def _layers(model):
    """All layers at any depth, without the models around them, in the order they were made."""
    inner = [part for part in model.submodules if isinstance(part, keras.layers.Layer)]
    return [layer for layer in inner if not isinstance(layer, keras.Model)]


@contextlib.contextmanager
def _precision(policy):
    """Layers made inside take the policy; the process keeps its own."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def enable_determinism():
    """Asks TensorFlow for kernels that give the same bits every time; slower on a GPU, and some ops have none."""
    tf.config.experimental.enable_op_determinism()
