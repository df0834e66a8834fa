"""Training batches made by other processes or machines: a client of tf.data service (tools/data_service.py runs one).

The workers of the service share the steps of an epoch out among each other (`ShardingPolicy.DYNAMIC`), and a step is a
batch. What is guaranteed:

- While all workers live, an epoch is the batches that training without a service would see, each once: the same images
  with the same random changes. Only their order within the epoch differs, from run to run.
- If a worker dies, the batches that it had in work are lost to this epoch (at most once). The service does not say so;
  it is concluded from `_PATIENCE` later batches that came before a missing one. The epoch then ends, and what is left
  of it is made up by its last batches once more.
- A worker that joins takes part from then on.

The workers open the shards by their absolute paths, so they need the same files in the same places. What they run is
the graph that the client sends, so they need the client's TensorFlow, whatever their tfdet.
"""

import dataclasses
from pathlib import Path

import tensorflow as tf

from tfdet.config import Config, ConfigError
from tfdet.data import pipeline
from tfdet.data.records import RecordSet

PROTOCOL = "grpc"
_PATIENCE = 32  # batches of the next epoch; a worker that is slower than this is taken for dead


def check_address(address: str) -> str:
    """grpc://host:port as it is.

    Raises:
        ConfigError: it has another form.
    """
    kind, separator, place = address.partition("://")
    host, _, port = place.rpartition(":")
    if kind != PROTOCOL or not separator or not host or not port.isdigit():
        raise ConfigError(f"the data service's address is {address!r}; it has the form {PROTOCOL}://host:port")
    return address


def served_dataset(
    record_set: RecordSet, config: Config, encode, address: str, start_step: int = 0, shard=(0, 1), endless=False
) -> tf.data.Dataset:
    """The batches from `start_step` to the end of its epoch, in any order; arguments as `pipeline.train_dataset`.

    Args:
        address: grpc://host:port of the dispatcher.
        endless: go on with the next epochs, which then overlap a little; for measuring.
    Raises:
        ConfigError: a config whose batches depend on their order, or an address of another form.
    """
    if config.data.shuffle == "sequential":
        raise ConfigError("a data service needs data.shuffle=global: sequential reading is not cut into steps")
    paths = tuple(str(Path(path).resolve()) for path in record_set.shard_paths)
    record_set = dataclasses.replace(record_set, shard_paths=paths)
    # held records would travel with the graph
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, ram_budget_mb=0))
    data = pipeline.train_dataset(record_set, config, encode, start_step, shard, numbered=True)
    service = tf.data.experimental.service
    data = data.apply(service.distribute(service.ShardingPolicy.DYNAMIC, check_address(address)))
    if endless:
        return data.map(_without_number).prefetch(config.data.prefetch)
    per_epoch = pipeline.steps_per_epoch(record_set, config.train.batch_size)
    return _rest_of_epoch(data, start_step, per_epoch).prefetch(config.data.prefetch)


def _rest_of_epoch(data, start_step, per_epoch):
    """The numbered batches of the epoch of `start_step`: all of them or, where some do not come, those that did."""
    end = (start_step // per_epoch + 1) * per_epoch

    def count(later, batch):
        is_inside = batch["step"][0] < end
        later += tf.cast(~is_inside, tf.int64)
        return later, (is_inside, later, _without_number(batch))

    data = data.scan(tf.constant(0, tf.int64), count)
    data = data.take_while(lambda is_inside, later, batch: later < _PATIENCE)
    data = data.filter(lambda is_inside, later, batch: is_inside)
    return data.map(lambda is_inside, later, batch: batch).take(end - start_step)


def _without_number(batch):
    return {key: value for key, value in batch.items() if key != "step"}
