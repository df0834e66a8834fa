"""The epochs of a part of a run: steps, looks at the losses, checkpoints, validation, and an orderly end."""

import contextlib
import signal

import tensorflow as tf

from tfdet.compat import keras
from tfdet.train import guard, optimizers, signals, workers
from tfdet.train.callbacks import Reports
from tfdet.train.errors import TrainingError
from tfdet.train.memory import Memory
from tfdet.train.meters import EpochMean, Meter
from tfdet.train.step import SKIPPED, make_train_step


class Part:
    """One part of a run, from the step that its folder is at to its last epoch.

    Args:
        model, detector, make_dataset, steps_per_epoch: as in `loop.fit`.
        train: TrainConfig of this part. folder, averages: as `stages.open_part` gives them. pace: `pace.Pace`.
        measures: `validation.Validation`, and the `pictures` of `loop.fit`.
    """

    def __init__(self, model, detector, make_dataset, train, folder, averages, steps_per_epoch, pace, measures):
        self._model, self._detector, self._make_dataset, self._train = model, detector, make_dataset, train
        self._folder, self._averages, self._steps_per_epoch = folder, averages, steps_per_epoch
        self._pace, (self._validation, self._pictures) = pace, measures
        self._guard = guard.Guard(make_dataset, folder, self.say)
        self._step = folder.step
        # epochs that ended; that their steps are done is not enough, an interrupt may have come during validation
        self._epoch = folder.progress.get("epoch", 0)
        self._mean = EpochMean(folder.progress.get("mean"))
        self._meter, self._logs = Meter(), {}

    @contextlib.contextmanager
    def reporting(self, epochs, visible):
        """The reports, open; an interrupt leaves a checkpoint behind."""
        last = epochs * self._steps_per_epoch
        reports = Reports(self._folder, self._epoch, epochs, self._step, last, visible)
        with signals.Requests() as self._requests, reports as self._reports:
            try:
                yield
            except KeyboardInterrupt:
                if not self._requests.forced:
                    self._save()
                raise
            except signals.Requested:
                self._save()
                if self._requests.received == signal.SIGINT:
                    raise KeyboardInterrupt from None
                raise signals.Terminated(self._step) from None

    def say(self, text):
        self._reports.say(text)

    def run(self, callbacks):
        """Trains and validates, epoch after epoch, to the last one or until something ends it; inside `reporting`."""
        self._pace.saved()
        self._begin_callbacks(callbacks)
        epochs = [] if self._model.stop_training else range(self._epoch, self._train.epochs)
        data = self._open() if epochs else None
        for epoch in epochs:
            self._run_epoch(epoch, data)
            if self._ended():
                break
        self._callbacks.on_train_end(self._logs)

    def _begin_callbacks(self, callbacks):
        """Keras' callbacks, with what they remember of an earlier call."""
        self._callbacks = keras.callbacks.CallbackList(
            list(callbacks), model=self._model, epochs=self._train.epochs, steps=self._steps_per_epoch
        )
        self._callbacks.on_train_begin()
        self._memory = Memory(self._callbacks.callbacks)
        self._memory.give_back(self._folder.progress.get("callbacks", []))
        # of a run that keras' EarlyStopping ended
        stopped = [getattr(callback, "stopped_epoch", 0) for callback in self._callbacks.callbacks]
        self._model.stop_training |= any(stopped)

    def _open(self):
        """The data from this step on, and the update that fits it."""
        strategy = self._model.distribute_strategy
        feed = lambda: workers.feed(self._make_dataset, self._step, strategy, self._train.batch_size)  # noqa: E731
        data = feed()
        self._update = make_train_step(
            self._model, self._detector, self._model.optimizer, element_spec=data.element_spec,
            weight_decay=optimizers.l2(self._train), clip_norm=self._train.clip_norm, averages=self._averages,
            accumulate=self._train.accumulate, xla=self._train.xla, skip_nonfinite=self._train.on_nan == "skip",
        )  # fmt: skip
        self._model.train_tf_function = self._update  # where Keras' TensorBoard callback looks for the graph
        return workers.Batches(data, feed)

    # --- an epoch -------------------------------------------------------------------------------

    def _run_epoch(self, epoch, data):
        self._callbacks.on_epoch_begin(epoch)
        losses = self._train_epoch(epoch, data)
        is_whole = self._step == (epoch + 1) * self._steps_per_epoch
        if not is_whole:  # what its end changes must not be there when the rest of it is trained
            self._save()
        figures = self._validate(epoch)
        self._logs = {**losses, **figures, "learning_rate": self._learning_rate()}
        self._callbacks.on_epoch_end(epoch, self._logs)
        self._reports.end_epoch(epoch, self._step, self._logs)
        if is_whole:
            self._epoch, self._mean = epoch + 1, EpochMean()
            self._save()

    def _train_epoch(self, epoch, data):
        counted, end = (self._meter.images, self._meter.seconds), (epoch + 1) * self._steps_per_epoch
        self._meter.restart()
        while self._step < end and not self._ended():
            self._one_step(self._step - epoch * self._steps_per_epoch, data)
            if self._pace.is_time_to_look(self._step):
                self._look()
            if self._step < end and self._pace.is_time_to_save(self._step):
                self._look()
                self._save()
        self._look()
        losses = self._mean.result()
        if not losses:
            raise TrainingError(f"no step of epoch {epoch + 1} had a loss that is finite; try a lower learning rate")
        skipped = {SKIPPED: float(self._mean.skipped)} if self._train.on_nan == "skip" else {}
        return {**losses, **skipped, "images_per_second": self._meter.images_per_second(counted)}

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
        if self._callbacks.callbacks:
            self._model._train_counter.assign_add(1)  # by which Keras' own count steps
        self._callbacks.on_train_batch_end(number, metrics)

    def _validate(self, epoch):
        self._reports.validate(epoch)
        self._callbacks.on_test_begin()
        # asked after the validation loss is known, which takes time too
        is_last = lambda: epoch + 1 == self._train.epochs or self._ended()  # noqa: E731
        # one of several workers must not leave the others waiting
        at_once = contextlib.nullcontext() if self._pace.agrees else self._requests.at_once()
        with self._averaged(), at_once:
            figures, score = self._validation.measure(epoch, is_last)
            shown = self._pictures(self._model) if self._pictures and self._validation.evaluated else None
        self._callbacks.on_test_end({name.removeprefix("val_"): value for name, value in figures.items()})
        with self._averaged():
            if score is not None:
                self._folder.save_if_best(score)
        self._reports.show(self._validation.by_class, shown, self._step)
        return figures

    def _averaged(self):
        return self._averages.swapped() if self._averages else contextlib.nullcontext()

    # --- looks and checkpoints ------------------------------------------------------------------

    def _look(self):
        """Reads the metrics of the steps since the last look, adds them to the epoch's mean and reports them."""
        rows, speed = self._meter.read()
        recent = EpochMean()
        for number, metrics in enumerate(rows, self._step - len(rows) + 1):
            self._guard.check(number, metrics, self._mean.skipped)
            recent.add(metrics)
            self._mean.add(metrics)
        logs = recent.result()
        if logs:
            self._reports.steps(self._step, self._epoch, logs | speed, self._learning_rate())

    def _save(self):
        """A checkpoint, though never one of weights that a loss which is not finite has spoiled."""
        self._look()
        progress = {"epoch": self._epoch, "mean": self._mean.state, "callbacks": self._memory.take()}
        self._folder.save(self._step, {**progress, "learning_rate": self._train.learning_rate})
        self._pace.saved()
        self._meter.restart()

    def save_weights(self):
        """weights.h5, and the file that the config names besides where training has come to its end."""
        with self._averaged():
            self._folder.save_weights("weights.h5")
            if self._train.saved_as and not self._pace.is_late:
                self._folder.save_weights(self._train.saved_as)

    # --- the end --------------------------------------------------------------------------------

    def _ended(self):
        """Whether to end here, for all workers alike.

        Raises:
            signals.Requested: a signal came to one of them.
        """
        received = self._requests.received is not None
        ended, signalled = self._pace.ended(self._step, self._model.stop_training, received)
        if signalled:
            raise signals.Requested
        return ended

    def _learning_rate(self):
        return float(tf.convert_to_tensor(optimizers.rate_of(self._model.optimizer)))

    def summary(self):
        """What `loop.fit` returns of it."""
        figures = {name: value for name, value in self._logs.items() if name != "learning_rate"}
        rate = round(self._meter.images_per_second(), 2)
        return {"steps": self._step, "epochs": self._epoch, **figures, "images_per_second": rate}
