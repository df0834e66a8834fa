"""The folder of a run: what is in it, and how a run that was cut short finds its place again.

    config.json    the whole config, written first
    checkpoints/   model, optimizer and best score; the newest few
    weights.h5     at the end of the training
    best.h5        the epoch with the best score
    history.csv    one line an epoch (callbacks.py)
    logs/          TensorBoard (callbacks.py)

Every file appears under its name when it is complete, never before.
"""

import os
from pathlib import Path

import tensorflow as tf

from tfdet.config import ConfigError


def latest_step(run):
    """The step of the newest checkpoint in a run folder, or None where there is none."""
    path = tf.train.latest_checkpoint(str(Path(run) / "checkpoints"))
    return int(path.rsplit("-", 1)[1]) if path else None


def require_new_or_resume(run, resume):
    """Keeps a new run from writing over an old one.

    Raises:
        ConfigError: the folder holds checkpoints and `resume` is not set.
    """
    step = latest_step(run)
    if step is not None and not resume:
        raise ConfigError(f"{run} already holds a run at step {step}; resume it, or choose another folder")


class RunFolder:
    """Saves and restores one run.

    Args:
        path: the folder; made where missing.
        model, optimizer: built, so that a checkpoint can be compared with them; the step is `optimizer.iterations`.
        keep: how many checkpoints stay.
    """

    def __init__(self, path, model, optimizer, keep):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._model, self._optimizer = model, optimizer
        self._best = tf.Variable(float("-inf"), dtype=tf.float64, trainable=False)
        self._checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, best=self._best)
        folder = str(self.path / "checkpoints")
        self._manager = tf.train.CheckpointManager(self._checkpoint, folder, max_to_keep=keep)

    @property
    def step(self) -> int:
        """Updates made so far."""
        return int(self._optimizer.iterations.numpy())

    def restore(self) -> bool:
        """Continues from the newest checkpoint; False where there is none.

        Raises:
            ConfigError: it belongs to another model or optimizer.
        """
        path = self._manager.latest_checkpoint
        if path is None:
            return False
        try:
            self._checkpoint.restore(path).assert_existing_objects_matched()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"{path} does not fit this model and optimizer (other classes, preset, optimizer or frozen layers?): "
                f"{reason}"
            ) from error
        return True

    def save(self):
        """Writes a checkpoint of this step, unless there is one."""
        if latest_step(self.path) != self.step:
            self._manager.save(checkpoint_number=self.step)

    def save_weights(self, name):
        """The model's weights as a Keras hdf5 file, loadable by name."""
        unfinished = self.path / f"unfinished_{name}"
        self._model.save_weights(unfinished, save_format="h5")
        os.replace(unfinished, self.path / name)

    def save_if_best(self, score) -> bool:
        """Writes best.h5 if `score` is higher than every earlier one."""
        if not score > self._best.numpy():
            return False
        self.save_weights("best.h5")
        self._best.assign(score)
        return True

    def write_text(self, name, text):
        """A small text file, replaced in one go."""
        unfinished = self.path / f"unfinished_{name}"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, self.path / name)
