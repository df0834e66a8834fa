"""The training loop: epochs of steps, validation, checkpoints, reports, and an orderly end whatever happens.

Everything that a step depends on is the step's number, the checkpoint, and the data made for that number. So a run that
is cut short anywhere, and resumed, is the run that was not cut short.
"""

import time

from tfdet import config as configs
from tfdet.train import checkpoints, stages
from tfdet.train.errors import TrainingError
from tfdet.train.pace import Pace
from tfdet.train.part import Part
from tfdet.train.setup import require_possible
from tfdet.train.step import require_even_split
from tfdet.train.validation import Validation

__all__ = ["TrainingError", "fit"]


def fit(
    model, detector, make_dataset, config, run, *, steps_per_epoch, validation=None, evaluate=None, evaluate_every=1,
    pictures=None, optimizer=None, callbacks=(), resume=False, checkpoint_every=0, checkpoint_minutes=0.0,
    log_every=20, progress=True,
):  # fmt: skip
    """Trains `model` as `config.train` says and leaves everything in the folder `run` (see checkpoints.py).

    SIGTERM and Ctrl-C end it after the step that runs, with a checkpoint. The batch, the losses and the data's order
    of a resumed run are those of one that was not interrupted; so are callbacks' counters and best values.

    Args:
        model: keras.Model built under the strategy it is to run on (`setup.build_model`).
        detector: follows `detectors.base.Detector`.
        make_dataset: int step -> tf.data.Dataset of batches that starts with the batch of that step, so that a
            resumed run sees the data it would have seen; if it ends, it is made again for the next step.
            Global batches of `config.train.batch_size` rows; smaller ones are filled. Where several workers train, it
            also takes shard=(i, n) and gives the i-th of n equal slices of every batch.
        config: Config, written to config.json. The parts that `train.stages` makes of a run are trained one after
            the other, and all files lie in the same folder.
        run: path of the run folder, which all workers share.
        steps_per_epoch: int, updates that count as one epoch.
        validation: tf.data.Dataset of batches with targets, one pass; gives val_loss once an epoch.
        evaluate: model -> dict of figures, e.g. {"map50": 0.7}; called every `evaluate_every` epochs and
            after the last of a part. With it best.h5 is the epoch with the highest map50, else with the lowest
            val_loss.
            "per_class": {name: {"ap50": 0.6}} among them is drawn by TensorBoard.
        pictures: model -> uint8 [N, H, W, 3], shown by TensorBoard whenever `evaluate` is called.
        optimizer: a Keras 2 optimizer made under the model's strategy; None: the one that `config.train` describes.
        callbacks: Keras callbacks; they get the usual hooks and logs, and may set `model.stop_training`. They see the
            weights that are trained, not their averages.
        resume: continue from the newest checkpoint in `run` if there is one.
        checkpoint_every: int, steps between checkpoints; 0: one an epoch. An epoch always ends with one.
        checkpoint_minutes: float, minutes between checkpoints, besides; 0: none.
        log_every: int, steps between two looks at the losses; a look waits for the device.
        progress: False prints nothing.
    Returns:
        dict: steps, epochs, seconds and images_per_second of this call, and the last epoch's loss and, where
        they exist, val_loss and the figures of `evaluate`.
    Raises:
        ConfigError: the config does not fit the data, the devices or the run folder.
        TrainingError: the loss is not finite, or the data ended.
        signals.Terminated: SIGTERM came, and a checkpoint is written.
    """
    start, strategy = time.perf_counter(), model.distribute_strategy
    checkpoints.require_new_or_resume(run, resume)
    if steps_per_epoch < 1:
        raise configs.ConfigError(f"{steps_per_epoch} steps an epoch leave nothing to train")
    require_even_split(config.train.batch_size, strategy, config.train.accumulate)
    require_possible(detector, config.train, strategy)
    stages.require_possible(config.train, validation, optimizer)
    measures = Validation(model, detector, validation, config.train.batch_size, evaluate, evaluate_every), pictures
    before = None
    for number, first_epoch, train in stages.remaining(config.train, run):
        if config.train.stages:
            stages.freeze(model, train.frozen)
        folder, averages = stages.open_part(model, train, run, optimizer, steps_per_epoch, number, first_epoch, before)
        folder.write_text("config.json", configs.to_json(config))
        pace = Pace(
            strategy, train, steps_per_epoch, first=folder.step, start=start, log_every=log_every,
            checkpoint_every=checkpoint_every, checkpoint_minutes=checkpoint_minutes,
        )  # fmt: skip
        part = Part(model, detector, make_dataset, train, folder, averages, steps_per_epoch, pace, measures)
        with part.reporting(config.train.epochs, progress and folder.writes):
            if config.train.stages:
                part.say(stages.describe(model, train, number))
            part.run([*callbacks, *stages.callbacks(train, folder.path)])
            if pace.is_late:
                part.say(
                    f"the {train.max_minutes:g} minutes given are over: ended after step {part.summary()['steps']}"
                )
        part.save_weights()
        before = folder
        if pace.is_late:
            break
    return {**part.summary(), "seconds": round(time.perf_counter() - start, 1)}
