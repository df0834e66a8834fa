"""Learning rates over the steps of a run, and the optimizer that follows them."""

from tfdet.compat import keras
from tfdet.config import ConfigError

SGD_MOMENTUM = 0.9


def learning_rate(config, total_steps: int):
    """What `TrainConfig` asks for, as a float or one of Keras' own schedules, which save and load with the optimizer.

    With warm-up w the rate of step s < w is rate * (s + 1) / (w + 1), so that no step is wasted at 0.
    "cosine" then falls from the rate to 0 at `total_steps` (SGDR, https://arxiv.org/abs/1608.03983, one cycle).
    A constant rate without warm-up stays a plain number, which callbacks may change.

    Raises:
        ConfigError: the warm-up is as long as the run.
    """
    rate, warmup = config.learning_rate, config.warmup_steps
    start = rate / (warmup + 1)
    if config.schedule == "constant" and not warmup:
        return rate
    if config.schedule == "constant":
        return keras.optimizers.schedules.PolynomialDecay(start, warmup, end_learning_rate=rate)
    if warmup >= total_steps:
        raise ConfigError(f"train.warmup_steps is {warmup}, but the whole run has {total_steps} steps")
    return keras.optimizers.schedules.CosineDecay(start, total_steps - warmup, warmup_target=rate, warmup_steps=warmup)


def build_optimizer(config, total_steps: int, model):
    """The optimizer of a `TrainConfig` for the trainable weights of `model`; call it under the model's strategy.

    `weight_decay` is decoupled for "adamw" (https://arxiv.org/abs/1711.05101) and spares biases and scales;
    for the others it is L2, which the train step adds (`l2`).
    """
    rate = learning_rate(config, total_steps)
    if config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=SGD_MOMENTUM)
    elif config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
        optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if len(v.shape) < 2])
    else:
        optimizer = keras.optimizers.Adam(rate)
    if config.precision == "mixed_float16":  # gradients of float16 underflow unless the loss is scaled up
        optimizer = keras.mixed_precision.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer


def l2(config) -> float:
    """The L2 factor that the train step has to add: 0 for "adamw", which decays by itself."""
    return 0.0 if config.optimizer == "adamw" else config.weight_decay
