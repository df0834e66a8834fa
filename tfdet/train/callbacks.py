"""What a run reports while it trains: a progress bar or plain lines, and history.csv."""

import csv
import io

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tfdet.train.board import Board


class ProgressBar:
    """On a terminal a bar with loss, images/s and the time left; elsewhere one plain line an epoch. All on stderr.

    Args:
        first, last: int, the step at which this process starts and the one at which the run ends.
        visible: False prints nothing at all.
    """

    def __init__(self, epochs, first, last, visible=True):
        self._epochs = epochs
        self._console = Console(stderr=True, quiet=not visible, soft_wrap=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
            TextColumn("left"), TimeRemainingColumn(compact=True),
            console=self._console, disable=not self._console.is_terminal,
        )  # fmt: skip
        # the first step is traced and compiled before it runs
        self._task = self._bar.add_task("preparing", total=last, completed=first, figures="")

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def update(self, step, epoch, logs):
        figures = f"loss {logs['loss']:.4f}, {logs['images_per_second']:.1f} images/s"
        self._bar.update(self._task, completed=step, description=f"epoch {epoch + 1}/{self._epochs}", figures=figures)

    def warn(self, text):
        self._console.print(text, markup=False)

    def validate(self, epoch):
        self._bar.update(self._task, description=f"check {epoch + 1}/{self._epochs}")

    def end_epoch(self, epoch, logs):
        figures = ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
        self._console.print(f"epoch {epoch + 1}/{self._epochs}: {figures}", markup=False)


class History:
    """history.csv: one row an epoch, with every figure that an epoch ever had as a column.

    Args:
        folder: a `checkpoints.RunFolder`.
        first_epoch: rows from here on, left by a run that got further than its last checkpoint, are dropped.
    """

    def __init__(self, folder, first_epoch):
        self._folder = folder
        path = folder.path / "history.csv"
        text = path.read_text(encoding="utf-8") if first_epoch and path.exists() else ""
        self._rows = [row for row in csv.DictReader(io.StringIO(text)) if int(row["epoch"]) <= first_epoch]

    def add(self, epoch, step, logs):
        row = {"epoch": epoch + 1, "step": step, **{name: f"{value:.6g}" for name, value in logs.items()}}
        self._rows = [old for old in self._rows if int(old["epoch"]) != epoch + 1] + [row]
        columns = dict.fromkeys(name for row in self._rows for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        self._folder.write_text("history.csv", text.getvalue())


class Reports:
    """All that tells of a run: the bar, history.csv and TensorBoard; as a context manager, open inside.

    Args:
        folder: a `checkpoints.RunFolder`. first_epoch: as in `History`. epochs, first, last, visible: as in
            `ProgressBar`.
    """

    def __init__(self, folder, first_epoch, epochs, first, last, visible):
        self._history = History(folder, first_epoch)
        self._board = Board(folder.path / "logs" if folder.writes else None)
        self._bar = ProgressBar(epochs, first, last, visible)

    def __enter__(self):
        self._bar.__enter__()
        return self

    def __exit__(self, *error):
        self._board.close()
        self._bar.__exit__(*error)

    def say(self, text):
        self._bar.warn(text)

    def steps(self, step, epoch, logs, learning_rate):
        """The steps since the last look: their losses and speed."""
        self._bar.update(step, epoch, logs)
        self._board.write("train", {**logs, "learning_rate": learning_rate}, step)

    def validate(self, epoch):
        self._bar.validate(epoch)

    def show(self, by_class, pictures, step):
        """by_class: {name: AP}. pictures: uint8 [N, H, W, 3] or None."""
        self._board.write("epoch/ap50", by_class, step)
        if pictures is not None:
            self._board.show(pictures, step)

    def end_epoch(self, epoch, step, logs):
        self._history.add(epoch, step, logs)
        self._board.write("epoch", logs, step)
        self._bar.end_epoch(epoch, logs)
