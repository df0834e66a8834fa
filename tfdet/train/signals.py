"""Requests to end: SIGTERM, as machines get that are about to be taken away, and Ctrl-C."""

import contextlib
import signal
import threading


class Terminated(SystemExit):
    """Raised after SIGTERM, once a checkpoint is written. Left alone it ends the process with exit code 0.

    Attributes:
        step: int, updates made.
    """

    def __init__(self, step):
        super().__init__(0)
        self.step = step


class Requested(BaseException):
    """Inside `Requests.at_once`: a signal has come."""


class Requests:
    """As a context manager: takes SIGTERM and SIGINT, which then wait until the loop asks for them.

    A second SIGINT raises KeyboardInterrupt wherever the program is, and nothing is saved. Outside of the main
    thread, where Python does not allow it, nothing is taken.

    Attributes:
        received: the signal's number or None. forced: whether a second SIGINT came.
    """

    def __init__(self):
        self.received, self.forced, self._at_once, self._before = None, False, False, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self):
        """For work that may be left off anywhere: inside, a signal raises `Requested`, one that waits at the start."""
        self._at_once = True
        try:
            if self.received is not None:
                raise Requested
            yield
        finally:
            self._at_once = False

    def _receive(self, number, _):
        self.forced = self.received == number == signal.SIGINT
        self.received = number
        if self.forced:
            raise KeyboardInterrupt
        if self._at_once:
            raise Requested
