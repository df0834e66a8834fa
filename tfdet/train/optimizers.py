"""The optimizer that a TrainConfig describes: Keras' own, or tensorflow-addons' where they are installed."""

import re

from tfdet import addons
from tfdet.compat import keras
from tfdet.config import ConfigError
from tfdet.train import schedules
from tfdet.train.averages import MovingAverages, WeightAverages
from tfdet.train.setup import find_layers

SGD_MOMENTUM = 0.9
DECOUPLED = ("adamw", "sgdw", "lamb")  # decay by themselves
FROM_ADDONS = {
    "train.optimizer=lamb": "LAMB",
    "train.optimizer=radam": "RectifiedAdam",
    "train.lookahead=true": "Lookahead",
    "train.averaging=moving_average": "MovingAverage",
    "train.averaging=swa": "SWA",
    "train.slow_layers=[...]": "MultiOptimizer",
}


def build_optimizer(config, total_steps: int, model):
    """The optimizer of a `TrainConfig` for the trainable weights of `model`; call it under the model's strategy.

    `weight_decay` is decoupled for "adamw", "sgdw" (https://arxiv.org/abs/1711.05101) and "lamb", and spares biases
    and scales; for the others it is L2, which the train step adds (`l2`).

    Raises:
        ConfigError: tensorflow-addons is needed and missing, or parts that do not go together.
    """
    if _needs_addons(config):
        optimizer = _from_addons(config, total_steps, model)
    else:
        optimizer = _from_keras(config, schedules.learning_rate(config, total_steps), model)
    if config.precision == "mixed_float16":  # gradients of float16 underflow unless the loss is scaled up
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
    create_slots(optimizer, model.trainable_variables)
    return optimizer


def l2(config) -> float:
    """The L2 factor that the train step has to add: 0 for optimizers that decay by themselves."""
    return 0.0 if config.optimizer in DECOUPLED else config.weight_decay


def make_averages(config, model, optimizer):
    """The averages of the weights that a TrainConfig asks for, or None; call it after `build_optimizer`."""
    if config.ema_decay:
        return MovingAverages(model, config.ema_decay)
    if config.averaging == "none":
        return None
    keeper = getattr(optimizer, "inner_optimizer", optimizer)  # of a loss-scaling one
    return WeightAverages((v, keeper.get_slot(v, "average")) for v in model.trainable_variables)


def counters(optimizer) -> list:
    """The variables in which an optimizer and those inside of it count their updates."""
    return [part.iterations for part in [optimizer, *inner(optimizer)]]


def inner(optimizer) -> list:
    """The optimizers of a MultiOptimizer, which a checkpoint would not find by itself; else none."""
    return [spec["optimizer"] for spec in getattr(optimizer, "optimizer_specs", [])]


def rate_of(optimizer):
    """The learning rate as a variable, schedule's tensor or number; of a MultiOptimizer the faster part's."""
    return (inner(optimizer) or [optimizer])[0].learning_rate


def create_slots(optimizer, variables):
    """Makes the optimizer's variables at once, so that a checkpoint finds them."""
    if hasattr(optimizer, "build"):
        optimizer.build(variables)
        return
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    optimizer.iterations  # noqa: B018  made when first asked for
    groups = [(spec["optimizer"], set(spec["weights"])) for spec in getattr(optimizer, "optimizer_specs", [])]
    for part, names in groups or [(optimizer, {v.name for v in variables})]:
        part._create_all_weights([v for v in variables if v.name in names])  # the older optimizers' `build`


# --- Keras' own ---------------------------------------------------------------------------------


def _from_keras(config, rate, model):
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=SGD_MOMENTUM)
    if config.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    if config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
    else:  # `or None`: a decay of 0 counts as one
        optimizer = keras.optimizers.SGD(rate, momentum=SGD_MOMENTUM, weight_decay=config.weight_decay or None)
    optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if len(v.shape) < 2])
    return optimizer


# --- tensorflow-addons --------------------------------------------------------------------------


def _needs_addons(config):
    extras = config.lookahead or config.averaging != "none" or config.slow_layers
    return bool(extras or config.optimizer in ("lamb", "radam"))


def _from_addons(config, total_steps, model):
    """Their wrappers take Keras' older optimizers, and so does whatever is built from them."""
    if config.optimizer in ("adamw", "sgdw"):
        raise ConfigError(
            f"train.optimizer={config.optimizer} cannot be wrapped by tensorflow-addons' lookahead, averaging or "
            "slow_layers; take adam, sgd, lamb or radam"
        )
    if config.slow_layers and (config.lookahead or config.averaging != "none" or config.precision == "mixed_float16"):
        raise ConfigError(
            "train.slow_layers cannot be combined with train.lookahead, train.averaging or mixed_float16; "
            "train.ema_decay goes with it"
        )
    if config.lookahead and config.averaging != "none":
        raise ConfigError(
            "train.lookahead and train.averaging cannot wrap each other; train.lookahead goes with train.ema_decay"
        )
    rate = schedules.learning_rate(config, total_steps)
    try:
        if config.slow_layers:
            return _with_slow_layers(
                config, rate, schedules.learning_rate(config, total_steps, config.slow_factor), model
            )
        return _wrapped(config, _from_addons_alone(config, rate, model))
    except ImportError as error:
        raise ConfigError(str(error)) from error


def _from_addons_alone(config, rate, model):
    if config.optimizer == "radam":
        return addons.get("optimizers.RectifiedAdam")(rate)
    if config.optimizer == "lamb":
        spared = [_pattern(v) for v in model.trainable_variables if len(v.shape) < 2]
        kind = addons.get("optimizers.LAMB")
        return kind(rate, weight_decay=config.weight_decay, exclude_from_weight_decay=spared)
    addons.get("optimizers")  # says so where the package is missing
    legacy = keras.optimizers.legacy
    return legacy.SGD(rate, momentum=SGD_MOMENTUM) if config.optimizer == "sgd" else legacy.Adam(rate)


def _pattern(variable):
    """A regular expression for a variable's name, on whichever replica."""
    return rf"^{re.escape(variable.name.removesuffix(':0'))}(/replica_\d+)?:0$"


def _wrapped(config, optimizer):
    if config.lookahead:
        optimizer = addons.get("optimizers.Lookahead")(optimizer)
    if config.averaging == "moving_average":
        optimizer = addons.get("optimizers.MovingAverage")(optimizer, dynamic_decay=True)
    elif config.averaging == "swa":
        optimizer = addons.get("optimizers.SWA")(optimizer)
    return optimizer


def _with_slow_layers(config, rate, slow_rate, model):
    """The layers that match at `slow_rate`, the others at `rate`."""
    slow = {v.name for layer in find_layers(model, config.slow_layers, "train.slow_layers") for v in layer.weights}
    fast = {v.name for v in model.weights} - slow
    parts = [
        {"optimizer": _from_addons_alone(config, part_rate, model), "weights": sorted(names)}
        for part_rate, names in ((rate, fast), (slow_rate, slow))
    ]
    return addons.get("optimizers.MultiOptimizer")(optimizer_specs=parts)
