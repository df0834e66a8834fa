"""--skip-bad-records: tries all records before they are used, and leaves out those that cannot be."""

import sys

from rich.console import Console
from rich.progress import Progress

from tfdet.compat import keras
from tfdet.data import faults


def without_bad(records, config):
    """The record set, less what cannot be used where the config says so; lists that on stderr. None stays None."""
    if records is None or not config.data.skip_bad_records:
        return records
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"checking the {records.split} records", total=records.num_images)
        found = faults.find_faults(records, lambda: bar.advance(task))
    if found:
        listed = faults.list_faults([text for _, text in found])
        print(f"{len(found)} of {records.num_images} {records.split} records are left out: {listed}", file=sys.stderr)
    return faults.leave_out(records, [number for number, _ in found])


def reports(records) -> list:
    """Keras callbacks that say after every epoch how many records it went without."""
    if not records.left_out:
        return []

    def say(epoch, logs=None):
        print(f"epoch {epoch + 1}: {len(records.left_out)} bad records left out", file=sys.stderr, flush=True)

    return [keras.callbacks.LambdaCallback(on_epoch_end=say)]
