"""Which devices train: the first N GPUs, the CPU, CPU devices that stand for GPUs, or those of many machines."""

import contextlib
import os

import tensorflow as tf

from tfdet.config import ConfigError


def choose_strategy(gpus=None, replicas=0, multiworker=False):
    """The `tf.distribute.Strategy` for this machine. Call it before anything else uses TensorFlow.

    Args:
        gpus: int, train on the first `gpus` GPUs; 0: on the CPU; None: all GPUs there are, else the CPU.
        replicas: int, when positive, train on this many logical CPU devices instead. Not faster, but the
            same MirroredStrategy as on that many GPUs.
        multiworker: one process a machine, all started with the same command and TF_CONFIG in the environment; waits
            for the others.
    Raises:
        ConfigError: more GPUs are asked for than there are, it is too late to split the CPU, or TF_CONFIG says
            nothing about the workers.
    """
    if replicas and gpus:
        raise ConfigError("choose GPUs or CPU replicas, not both")
    found = tf.config.list_physical_devices("GPU")
    if gpus is not None and not 0 <= gpus <= len(found):
        raise ConfigError(f"{gpus} GPUs asked for, but this machine has {describe_gpus()}")
    if replicas < 0:
        raise ConfigError(f"{replicas} replicas asked for; it takes at least 1")
    gpus = 0 if replicas else len(found) if gpus is None else gpus
    _show_only(found[:gpus])
    if multiworker:
        return _many_workers(replicas)
    if replicas:
        return _cpu_replicas(replicas)
    if gpus == 0:
        # without a visible GPU the default strategy is the CPU, at no cost
        return tf.distribute.get_strategy() if not _visible_gpus() else tf.distribute.OneDeviceStrategy("/CPU:0")
    if gpus == 1:
        return tf.distribute.OneDeviceStrategy("/GPU:0")
    return tf.distribute.MirroredStrategy([f"/GPU:{number}" for number in range(gpus)])


def describe_gpus() -> str:
    """The GPUs of this machine, e.g. "2 GPUs: GPU:0 (NVIDIA H100), GPU:1 (NVIDIA H100)"."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"no GPU that TensorFlow can use, only a CPU with {os.cpu_count()} cores"
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "unnamed") for gpu in gpus]
    listed = ", ".join(f"GPU:{number} ({name})" for number, name in enumerate(names))
    return f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''}: {listed}"


def describe(strategy) -> str:
    """The devices of a strategy in words, e.g. "4 replicas on CPU:0, CPU:1, CPU:2, CPU:3"."""
    count = strategy.num_replicas_in_sync
    try:
        devices = [device.split("device:")[-1] for device in strategy.extended.worker_devices]
    except RuntimeError:  # the default strategy does not say
        devices = ["GPU:0" if _visible_gpus() else "CPU:0"]
    workers = getattr(strategy.extended, "_num_workers", 1)
    where = f" of this process, one of {workers}" if workers > 1 else ""
    return f"{count} replica{'s' if count > 1 else ''} on {', '.join(devices)}{where}"


def _visible_gpus():
    return tf.config.get_visible_devices("GPU")


def _show_only(gpus):
    """Leaves the memory of all other GPUs alone; once TensorFlow runs it is too late for that, and no harm."""
    if list(gpus) != _visible_gpus():
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices(gpus, "GPU")


def _many_workers(replicas):
    """The strategy over all processes that TF_CONFIG names; each trains on its visible GPUs, or on its CPU."""
    example = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        workers = resolver.cluster_spec().as_dict().get("worker", [])
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"TF_CONFIG in the environment is damaged ({error}); it looks like {example}") from error
    if not workers:
        raise ConfigError(f"several workers need TF_CONFIG in the environment, e.g. {example}")
    if replicas:
        _split_cpu(replicas)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except RuntimeError as error:
        raise ConfigError(f"workers have to be chosen before TensorFlow starts: {error}") from error


def _cpu_replicas(count):
    _split_cpu(count)
    return tf.distribute.MirroredStrategy([f"/CPU:{number}" for number in range(count)], cross_device_ops=_SumOnCpu())


def _split_cpu(count):
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        if len(tf.config.get_logical_device_configuration(cpu) or ()) < count:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError as error:
        raise ConfigError(
            f"{count} CPU replicas asked for after TensorFlow has started with fewer; choose the devices first"
        ) from error


class _SumOnCpu(tf.distribute.ReductionToOneDevice):
    """Adds the replicas' values; the default, collective ops, admits one number of replicas a process."""

    def reduce_implementation(self, reduce_op, per_replica_value, *args, **kwargs):
        # Gradients do not pass here, all_reduce defines its own. Saying so keeps TensorFlow from searching the
        # graphs of all replicas at each call, which takes minutes for synchronised batch normalisation.
        values = tf.nest.map_structure(tf.stop_gradient, per_replica_value, expand_composites=True)
        return super().reduce_implementation(reduce_op, values, *args, **kwargs)
