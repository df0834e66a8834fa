"""The training loop: epochs of steps, validation, checkpoints, reports, and an orderly end whatever happens."""

import contextlib
import math
import time

import tensorflow as tf

from tfdet import config as configs
from tfdet import schema
from tfdet.compat import keras
from tfdet.train import checkpoints, schedules
from tfdet.train.callbacks import History, ProgressBar, TensorBoardLog
from tfdet.train.meters import EpochMean, Meter
from tfdet.train.step import distribute, make_train_step, require_even_split
from tfdet.train.validation import Validation


class TrainingError(RuntimeError):
    """Training cannot go on; the text says at which step, why, and what to try."""


def fit(
    model, detector, make_dataset, config, run, *, steps_per_epoch, validation=None, evaluate=None, evaluate_every=1,
    optimizer=None, callbacks=(), resume=False, checkpoint_every=0, log_every=20, progress=True,
):  # fmt: skip
    """Trains `model` as `config.train` says and leaves everything in the folder `run` (see checkpoints.py).

    Args:
        model: keras.Model built under the strategy it is to run on (`setup.build_model`).
        detector: follows `detectors.base.Detector`.
        make_dataset: int step -> endless tf.data.Dataset of batches that starts with the batch of that step,
            so that a resumed run sees the data it would have seen. Global batches of `config.train.batch_size`
            rows; smaller ones are filled.
        config: Config, written to config.json.
        run: path of the run folder.
        steps_per_epoch: int, updates that count as one epoch.
        validation: tf.data.Dataset of batches with targets, one pass; gives val_loss once an epoch.
        evaluate: model -> dict of figures, e.g. {"map50": 0.7}; called every `evaluate_every` epochs and
            after the last. With it best.h5 is the epoch with the highest map50, else the one with the lowest val_loss.
        optimizer: a Keras 2 optimizer made under the model's strategy; None: the one that `config.train` describes.
        callbacks: Keras callbacks; they get the usual hooks and logs, and may set `model.stop_training`.
        resume: continue from the newest checkpoint in `run` if there is one.
        checkpoint_every: int, steps between checkpoints; 0: one an epoch. An epoch always ends with one.
        log_every: int, steps between two looks at the losses; a look waits for the device.
        progress: False prints nothing.
    Returns:
        dict: steps, epochs, seconds and images_per_second of this call, and the last epoch's loss and, where
        they exist, val_loss and the figures of `evaluate`.
    Raises:
        ConfigError: the config does not fit the data, the devices or the run folder.
        TrainingError: the loss is not finite, or the data ended.
    """
    start = time.perf_counter()
    checkpoints.require_new_or_resume(run, resume)
    if steps_per_epoch < 1:
        raise configs.ConfigError(f"{steps_per_epoch} steps an epoch leave nothing to train")
    require_even_split(config.train.batch_size, model.distribute_strategy)
    total_steps = config.train.epochs * steps_per_epoch
    with model.distribute_strategy.scope():
        optimizer = optimizer or schedules.build_optimizer(config.train, total_steps, model)
    model.optimizer, model.stop_training = optimizer, False  # where Keras callbacks look for them
    folder = checkpoints.RunFolder(run, model, optimizer, config.train.keep_checkpoints)
    if folder.restore() and config.train.schedule == "constant" and not config.train.warmup_steps:
        _set_changed_rate(optimizer, folder, config)
    folder.write_text("config.json", configs.to_json(config))
    measurer = Validation(model, detector, validation, config.train.batch_size, evaluate, evaluate_every)
    loop = _Loop(model, detector, config, folder, measurer, steps_per_epoch, log_every, checkpoint_every)
    with loop.reporting(total_steps, progress):
        loop.run(make_dataset, callbacks, start)
    folder.save_weights("weights.h5")
    return {**loop.summary(), "seconds": round(time.perf_counter() - start, 1)}


def _set_changed_rate(optimizer, folder, config):
    """A rate that differs from the stored config's was asked for just now; else the checkpoint's own one stays,
    which a callback may have lowered."""
    stored = configs.from_json((folder.path / "config.json").read_text(encoding="utf-8"))
    if stored.train.learning_rate != config.train.learning_rate:
        optimizer.learning_rate.assign(config.train.learning_rate)


class _Loop:
    """The state of one call of `fit`."""

    def __init__(self, model, detector, config, folder, validation, steps_per_epoch, log_every, checkpoint_every):
        self._model, self._train, self._folder, self._validation = model, config.train, folder, validation
        self._steps_per_epoch, self._log_every, self._checkpoint_every = steps_per_epoch, log_every, checkpoint_every
        self._detector = detector
        self._first = self._step = folder.step
        self._meter = Meter()
        self._logs = {}

    @contextlib.contextmanager
    def reporting(self, total_steps, progress):
        """The reports, open; an interrupt leaves a checkpoint behind."""
        self._history = History(self._folder, self._step // self._steps_per_epoch)
        self._board = TensorBoardLog(self._folder.path / "logs")
        with ProgressBar(self._train.epochs, self._step, total_steps, progress) as self._bar:
            try:
                yield
            except KeyboardInterrupt:
                self._save()
                raise
            finally:
                self._board.close()

    def run(self, make_dataset, callbacks, start):
        self._make_dataset = make_dataset
        self._deadline = start + 60 * self._train.max_minutes if self._train.max_minutes else math.inf
        self._callbacks = keras.callbacks.CallbackList(
            list(callbacks), model=self._model, epochs=self._train.epochs, steps=self._steps_per_epoch
        )
        self._callbacks.on_train_begin()
        epochs = range(self._step // self._steps_per_epoch, self._train.epochs)
        data = self._open(make_dataset) if epochs else None
        for epoch in epochs:
            self._run_epoch(epoch, data)
            if self._stopped():
                break
        self._callbacks.on_train_end(self._logs)

    def _open(self, make_dataset):
        """The data from this step on, and the update that fits it."""
        data = distribute(make_dataset(self._step), self._model.distribute_strategy, self._train.batch_size)
        self._update = make_train_step(
            self._model, self._detector, self._model.optimizer, element_spec=data.element_spec,
            weight_decay=schedules.l2(self._train), clip_norm=self._train.clip_norm,
        )  # fmt: skip
        return iter(data)

    def _run_epoch(self, epoch, data):
        self._callbacks.on_epoch_begin(epoch)
        losses = self._train_epoch(epoch, data)
        self._bar.validate(epoch)
        # asked after the validation loss is known, which takes time too
        is_last = lambda: epoch + 1 == self._train.epochs or self._stopped()  # noqa: E731
        figures, score = self._validation.measure(epoch, is_last)
        if score is not None:
            self._folder.save_if_best(score)
        self._logs = {**losses, **figures, "learning_rate": self._learning_rate()}
        self._callbacks.on_epoch_end(epoch, self._logs)
        self._history.add(epoch, self._step, self._logs)
        self._board.write("epoch", self._logs, self._step)
        self._bar.end_epoch(epoch, self._logs)
        self._folder.save()

    def _train_epoch(self, epoch, data):
        mean, end = EpochMean(), (epoch + 1) * self._steps_per_epoch
        counted = self._meter.images, self._meter.seconds
        self._meter.restart()
        while self._step < end and not self._stopped():
            self._one_step(self._step - epoch * self._steps_per_epoch, data)
            if self._step % self._log_every == 0 or self._step == self._first + 1:
                self._look(mean, epoch)
            if self._checkpoint_every and self._step % self._checkpoint_every == 0 and self._step < end:
                self._look(mean, epoch)
                self._save()
        self._look(mean, epoch)
        return {**mean.result(), "images_per_second": self._meter.images_per_second(counted)}

    def _one_step(self, number, data):
        self._callbacks.on_train_batch_begin(number)
        try:
            batch = self._meter.next(data)
        except StopIteration:
            raise TrainingError(
                f"the training data ended at step {self._step}; make_dataset has to repeat it for ever"
            ) from None
        metrics = self._update(batch)
        self._step += 1
        self._meter.add(metrics)
        self._callbacks.on_train_batch_end(number, metrics)

    def _look(self, mean, epoch):
        """Reads the metrics of the steps since the last look, adds them to the epoch's mean and reports them."""
        rows, speed = self._read()
        if not rows:
            return
        recent = EpochMean()
        for metrics in rows:
            recent.add(metrics)
            mean.add(metrics)
        logs = recent.result() | speed
        self._bar.update(self._step, epoch, logs)
        self._board.write("train", {**logs, "learning_rate": self._learning_rate()}, self._step)

    def _read(self):
        rows, speed = self._meter.read()
        for number, metrics in enumerate(rows, self._step - len(rows) + 1):
            self._require_finite(metrics, number)
        return rows, speed

    def _save(self):
        """A checkpoint, though never one of weights that a loss which is not finite has spoiled."""
        self._read()
        self._folder.save()
        self._meter.restart()

    def _require_finite(self, metrics, number):
        if math.isfinite(metrics["loss"]):
            return
        parts = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
        raise TrainingError(
            f"the loss is not finite at step {number} ({parts}); images: {self._images_of(number)}. "
            "Try a lower train.learning_rate or a train.clip_norm, or look at these images"
        )

    def _images_of(self, number):
        """The image ids of a step, from its batch made once more."""
        batch = next(iter(self._make_dataset(number - 1)))
        ids = batch.get(schema.IMAGE_ID)
        return "unknown" if ids is None else ", ".join(name.decode() for name in ids.numpy() if name)

    def _learning_rate(self):
        return float(tf.convert_to_tensor(self._model.optimizer.learning_rate))

    def _stopped(self):
        return self._model.stop_training or time.perf_counter() >= self._deadline

    def summary(self):
        figures = {name: value for name, value in self._logs.items() if name != "learning_rate"}
        epochs = self._step // self._steps_per_epoch
        rate = round(self._meter.images_per_second(), 2)
        return {"steps": self._step, "epochs": epochs, **figures, "images_per_second": rate}
