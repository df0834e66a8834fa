"""The folder of a run: what is in it, and how a run that was cut short finds its place again.

    config.json    the whole config, written first
    checkpoints/   model, optimizer, averages, and where the loop and its callbacks stand; the newest few. Those of
                   a run's second part lie in stage_2/
    weights.h5     at the end of the training
    best.h5        the epoch with the best score, which the file carries as an attribute
    history.csv    one line an epoch (callbacks.py)
    logs/          TensorBoard (board.py)
    nan/           a batch whose loss was not finite (guard.py)

Every file appears under its name when it is complete, never before.
"""

import json
import os
import tempfile
from pathlib import Path

import h5py
import tensorflow as tf

from tfdet.config import ConfigError
from tfdet.train import optimizers

CHECKPOINTS = "checkpoints"
SCORE = "tfdet_score"  # attribute of best.h5


def latest_step(run):
    """The step of the newest checkpoint in a run folder, or None where there is none.

    Raises:
        ConfigError: the checkpoint cannot be read.
    """
    folders = [folder for folder in [Path(run) / CHECKPOINTS, *_stage_folders(run)] if latest_checkpoint(folder)]
    if not folders:
        return None
    path = latest_checkpoint(folders[-1])
    try:
        return int(tf.train.load_variable(path, "step/.ATTRIBUTES/VARIABLE_VALUE"))
    except (tf.errors.OpError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read as a checkpoint of tfdet: {_first_line(error)}") from error


def latest_checkpoint(folder):
    """The path of the newest checkpoint in a folder, or None."""
    return tf.train.latest_checkpoint(str(folder))


def stage_folder(run, number) -> Path:
    """Where the checkpoints of a run's part lie, counted from 0: an optimizer of one part is none for another."""
    return Path(run) / CHECKPOINTS / (f"stage_{number + 1}" if number else "")


def _stage_folders(run):
    return sorted((Path(run) / CHECKPOINTS).glob("stage_*"), key=lambda path: int(path.name.rpartition("_")[2]))


def require_new_or_resume(run, resume):
    """Keeps a new run from writing over an old one.

    Raises:
        ConfigError: the folder holds checkpoints and `resume` is not set.
    """
    step = latest_step(run)
    if step is not None and not resume:
        raise ConfigError(f"{run} already holds a run at step {step}; go on with --resume, or choose another folder")


class RunFolder:
    """Saves and restores one run.

    Args:
        path: the folder; made where missing.
        model, optimizer: built, so that a checkpoint can be compared with them.
        keep: how many checkpoints stay.
        averages: `averages.WeightAverages`, or None.
        stage: int, part of the run, from 0, whose checkpoints these are.
        writes: False for all workers but one: what they save, because all have to take part in it, is thrown away.

    Attributes:
        step: int, updates made so far. progress: dict that JSON can hold, where the loop and its callbacks stand.
        best: float, the highest score so far.
    """

    def __init__(self, path, model, optimizer, keep, averages=None, writes=True, stage=0):
        self.path, self.writes, self.step = Path(path), writes, 0
        self.path.mkdir(parents=True, exist_ok=True)
        self._thrown_away = None if writes else tempfile.TemporaryDirectory(prefix="tfdet_worker_")
        self._out = self.path if writes else Path(self._thrown_away.name)
        self._model, self._averages, self.best = model, averages, float("-inf")
        self._step, self._progress = tf.Variable(0, dtype=tf.int64, trainable=False), _Progress()
        self._checkpoint = tf.train.Checkpoint(
            model=model, optimizer=optimizer, inner=optimizers.inner(optimizer),
            averages=averages.saved if averages else [], step=self._step, progress=self._progress,
        )  # fmt: skip
        self._checkpoints = stage_folder(self.path, stage)
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, str(stage_folder(self._out, stage)), max_to_keep=keep
        )

    @property
    def progress(self) -> dict:
        return self._progress.values

    def restore(self) -> bool:
        """Continues from the newest checkpoint; False where there is none.

        Raises:
            ConfigError: it belongs to another model or optimizer.
        """
        path = latest_checkpoint(self._checkpoints)
        if path is None:
            return False
        try:
            self._checkpoint.restore(path).assert_existing_objects_matched()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            raise ConfigError(
                f"{path} does not fit this model and optimizer (other classes, preset, optimizer, averages or frozen "
                f"layers?): {_first_line(error)}"
            ) from error
        self.step = int(self._step.numpy())
        self.best = _score_of(self.path / "best.h5")
        return True

    def begin(self, step, progress, best):
        """Starts where another part of the run has ended; `best` is that part's. best.h5 is not asked: of several
        workers one may come here before the writing one has replaced it."""
        self.step, self._progress.values, self.best = step, progress, best

    def save(self, step, progress):
        """Writes a checkpoint, numbered by how many were written before it."""
        self._step.assign(step)
        self.step, self._progress.values = step, progress
        self._manager.save()

    def save_weights(self, name, score=None):
        """The model's weights, or their averages, as a Keras hdf5 file, loadable by name."""
        unfinished = self._out / f"unfinished_{name}"
        self._model.save_weights(unfinished, save_format="h5")
        if score is not None:
            with h5py.File(unfinished, "r+") as file:
                file.attrs[SCORE] = score
        os.replace(unfinished, self._out / name)

    def save_if_best(self, score) -> bool:
        """Writes best.h5 if `score` is higher than every earlier one."""
        if not score > self.best:
            return False
        self.save_weights("best.h5", score)
        self.best = score
        return True

    def write_text(self, name, text):
        """A small text file, replaced in one go."""
        unfinished = self._out / f"unfinished_{name}"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, self._out / name)


class _Progress(tf.train.experimental.PythonState):
    """A dict that a checkpoint holds as JSON."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def serialize(self):
        return json.dumps(self.values).encode()

    def deserialize(self, string_value):
        self.values = json.loads(string_value)


def _score_of(path):
    """The score that best.h5 carries; minus infinity where there is no such file."""
    try:
        with h5py.File(path, "r") as file:
            return float(file.attrs.get(SCORE, float("-inf")))
    except OSError:
        return float("-inf")


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]
