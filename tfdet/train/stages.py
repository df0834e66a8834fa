"""The parts of a run, one after the other: each has its own frozen layers, learning rate and optimizer.

Weights, epochs and the data's order go on from part to part, and so does the best value of Keras' ModelCheckpoint;
patience is counted anew.
"""

from dataclasses import replace

import numpy as np

from tfdet.compat import keras
from tfdet.config import ConfigError
from tfdet.train import checkpoints, optimizers, setup, workers

MONITORED = "val_loss"


def parts(train) -> list:
    """The stages of a TrainConfig, and what its other fields describe as the last part: list of TrainConfig."""
    first = [
        replace(
            train, epochs=stage.epochs, learning_rate=stage.learning_rate, frozen=stage.frozen,
            saved_as=stage.saved_as, plateau_patience=0, stopping_patience=0, stages=(),
        )
        for stage in train.stages
    ]  # fmt: skip
    return [*first, replace(train, stages=())]


def remaining(train, run) -> list:
    """The parts from the one on that the newest checkpoint in a run folder belongs to.

    Returns:
        list of (number from 0, epoch from 0 that it starts with, TrainConfig).
    """
    all_parts = parts(train)
    begun = [n for n in range(len(all_parts)) if checkpoints.latest_checkpoint(checkpoints.stage_folder(run, n))]
    starts = [0, *(part.epochs for part in all_parts)]
    return list(zip(range(len(all_parts)), starts, all_parts))[max(begun, default=0) :]


def open_part(model, train, run, optimizer, steps_per_epoch, number, first_epoch, before):
    """The folder of a part of the run, and the averages of its weights; continued from its newest checkpoint, or from
    the part before.

    Args:
        model: keras.Model; it gets the optimizer that `train`, a TrainConfig, describes, or the one given.
        number, first_epoch, train: as `remaining` gives them. before: RunFolder of the part before.
    Returns:
        `checkpoints.RunFolder`, and `averages.WeightAverages` or None.
    """
    strategy, steps = model.distribute_strategy, (train.epochs - first_epoch) * steps_per_epoch
    with strategy.scope():
        optimizer = optimizer or optimizers.build_optimizer(train, steps, model)
    averages = optimizers.make_averages(train, model, optimizer)
    model.optimizer, model.stop_training = optimizer, False  # where Keras callbacks look for them
    writes = workers.is_chief(strategy)
    folder = checkpoints.RunFolder(run, model, optimizer, train.keep_checkpoints, averages, writes, number)
    if folder.restore():
        if train.schedule == "constant" and not train.warmup_steps:
            _set_changed_rate(optimizer, folder.progress, train)
    elif number:
        folder.begin(first_epoch * steps_per_epoch, next_progress(first_epoch, before.progress), before.best)
    return folder, averages


def _set_changed_rate(optimizer, progress, train):
    """A rate that differs from the one the run was started with was asked for just now; else the checkpoint's own one
    stays, which a callback may have lowered."""
    if progress.get("learning_rate") != train.learning_rate and not optimizers.inner(optimizer):
        optimizer.learning_rate = train.learning_rate


def describe(model, train, number) -> str:
    """One line about a part that begins or goes on."""
    count = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    return f"stage {number + 1}, to epoch {train.epochs}: {count:,} parameters trained"


def freeze(model, patterns):
    """Freezes the layers that match, and no others, see `setup.freeze`."""
    model.trainable = True
    setup.freeze(model, patterns)


def require_possible(train, validation, optimizer):
    """Raises ConfigError where the parts of a run need what is not there."""
    watching = train.plateau_patience or train.stopping_patience or train.epoch_files
    if watching and validation is None:
        raise ConfigError(
            "train.epoch_files, plateau_patience and stopping_patience go by val_loss, and there is no validation split"
        )
    if train.stages and optimizer is not None:
        raise ConfigError("train.stages makes an optimizer for each part, so fit takes none")


def callbacks(train, folder) -> list:
    """The Keras callbacks that a part of a TrainConfig asks for; their files lie in `folder`."""
    found = []
    if train.epoch_files:
        path = str(folder / train.epoch_files)
        found.append(keras.callbacks.ModelCheckpoint(path, MONITORED, save_best_only=True, save_weights_only=True))
        found[0].period = train.epoch_files_every  # as an argument it is deprecated, and nothing else counts epochs
    if train.plateau_patience:
        kind = keras.callbacks.ReduceLROnPlateau
        found.append(kind(MONITORED, factor=train.plateau_factor, patience=train.plateau_patience))
    if train.stopping_patience:
        # as keras-yolo3: any decrease counts
        found.append(keras.callbacks.EarlyStopping(MONITORED, patience=train.stopping_patience))
    return found


def next_progress(epoch, progress) -> dict:
    """Where a part starts from.

    Args:
        epoch: int, at which the part before ends. progress: the last of that part, see `RunFolder`.
    """
    files = [entry for entry in progress.get("callbacks", []) if entry[0] == keras.callbacks.ModelCheckpoint.__name__]
    return {"epoch": epoch, "callbacks": files}
