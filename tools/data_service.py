"""Runs one process of a tf.data service, which makes training batches for tools/train.py --data-service."""

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported

from tfdet import quiet

quiet.import_tensorflow()

import tensorflow as tf

from tfdet.config import ConfigError
from tfdet.data import service

EPILOG = """
examples:
  # one dispatcher, then as many workers as there are machines or cores to use; all of them see the records' files
  # under the same absolute path
  python tools/data_service.py dispatcher --port 5050
  python tools/data_service.py worker --dispatcher grpc://host:5050 --host $(hostname)
  python tools/train.py --data tfrecords/mine --data-service grpc://host:5050

Each batch of an epoch is made once, by whichever worker is free. If a worker dies, training goes on without the
batches that it had in work. A dispatcher with --work-dir can be started again in the middle of training.
The line on standard output, a JSON object, says at which address the process listens; it runs until SIGTERM or Ctrl-C.
"""


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    roles = parser.add_subparsers(dest="role", required=True, metavar="dispatcher|worker")
    dispatcher = roles.add_parser("dispatcher", help="tells the workers which batches to make")
    dispatcher.add_argument("--work-dir", type=Path, metavar="DIR", help="keep its state there, to survive a restart")
    dispatcher.add_argument(
        "--worker-timeout", type=float, default=30.0, metavar="S",
        help="seconds without a sign of a worker after which it counts as dead (default: %(default)s)",
    )  # fmt: skip
    worker = roles.add_parser("worker", help="makes batches")
    worker.add_argument("--dispatcher", required=True, metavar="ADDRESS", help="grpc://host:port")
    for role in (dispatcher, worker):
        role.add_argument("--port", type=int, default=0, metavar="N", help="to listen at (default: a free one)")
        role.add_argument("--host", default="localhost", help="name by which others reach it (default: %(default)s)")
    return parser.parse_args(arguments)


def start(options):
    """The running server, and its address."""
    servers = tf.data.experimental.service
    if options.role == "dispatcher":
        if options.worker_timeout <= 0:
            raise ConfigError(f"--worker-timeout is {options.worker_timeout}; it must be positive")
        work_dir = str(options.work_dir) if options.work_dir else None
        config = servers.DispatcherConfig(
            port=options.port, work_dir=work_dir, fault_tolerant_mode=work_dir is not None,
            worker_timeout_ms=round(1000 * options.worker_timeout), job_gc_check_interval_ms=1000,
        )  # fmt: skip
        server = servers.DispatchServer(config)
        return server, f"{service.PROTOCOL}://{options.host}:{server.target.rpartition(':')[2]}"
    place = service.check_address(options.dispatcher).partition("://")[2]
    config = servers.WorkerConfig(
        dispatcher_address=place, port=options.port, worker_address=f"{options.host}:%port%",
        heartbeat_interval_ms=1000, dispatcher_timeout_ms=60_000,
    )  # fmt: skip
    server = servers.WorkerServer(config)
    return server, f"{service.PROTOCOL}://{options.host}:{server._address.rpartition(':')[2]}"  # no public name


@quiet.program(ConfigError, tf.errors.OpError)
def main(arguments=None) -> int:
    options = parse_arguments(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    _server, address = start(options)  # it stops when nothing refers to it
    print(json.dumps({"role": options.role, "address": address}), flush=True)
    ended.wait()
    os._exit(0)  # stopping the server in order waits for clients, which may never ask again


if __name__ == "__main__":
    sys.exit(quiet.until_unread(main))
