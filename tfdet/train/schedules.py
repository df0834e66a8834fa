"""Learning rates over the steps of a run."""

from tfdet.compat import keras
from tfdet.config import ConfigError


def learning_rate(config, total_steps: int, factor: float = 1.0):
    """What `TrainConfig` asks for, as a float or one of Keras' own schedules, which save and load with the optimizer.

    With warm-up w the rate of step s < w is rate * (s + 1) / (w + 1), so that no step is wasted at 0.
    "cosine" then falls from the rate to 0 at `total_steps` (SGDR, https://arxiv.org/abs/1608.03983, one cycle).
    A constant rate without warm-up stays a plain number, which callbacks may change. `factor` scales it all.

    Raises:
        ConfigError: the warm-up is as long as the run.
    """
    rate, warmup = factor * config.learning_rate, config.warmup_steps
    start = rate / (warmup + 1)
    if config.schedule == "constant" and not warmup:
        return rate
    if config.schedule == "constant":
        return keras.optimizers.schedules.PolynomialDecay(start, warmup, end_learning_rate=rate)
    if warmup >= total_steps:
        raise ConfigError(f"train.warmup_steps is {warmup}, but the whole run has {total_steps} steps")
    return keras.optimizers.schedules.CosineDecay(start, total_steps - warmup, warmup_target=rate, warmup_steps=warmup)
