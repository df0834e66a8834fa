"""For programs with a terminal: imports TensorFlow without the notices it prints about itself, says in one line what
went wrong, and ends without a trace when nobody reads any more.

TensorFlow writes lines of level INFO ("oneDNN custom operations are on ...") to the standard error stream before
its log level can be set. They are dropped here; everything else that appears during the import is passed on.
"""

import contextlib
import errno
import functools
import os
import re
import sys
import tempfile
from pathlib import Path

_NOTICE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|I0000 |To enable the following instructions"
)


@contextlib.contextmanager
def _without_notices():
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            written.seek(0)
            for line in written:
                if not _NOTICE.match(line):
                    os.write(2, line)


_names = []  # under which the program that runs was called


@contextlib.contextmanager
def called(name):
    """What the programs in the block tell begins with this name."""
    _names.append(name)
    try:
        yield
    finally:
        _names.pop()


def tell(message):
    """Prints a line to the standard error stream, under the name that the program was called by."""
    print(f"{_names[0]}: {message}" if _names else message, file=sys.stderr)


def program(*expected):
    """Makes `main(arguments=None) -> int` the main function of a program: an expected error is one line and exit code
    2, Ctrl-C is a line with what its KeyboardInterrupt says, and 130."""

    def decorate(main):
        @functools.wraps(main)
        def run(arguments=None) -> int:
            with called(Path(main.__code__.co_filename).stem):
                try:
                    return main(arguments)
                except BrokenPipeError:  # of the output, not of a file: for until_unread
                    raise
                except expected as error:
                    tell(_describe(error))
                    return 2
                except KeyboardInterrupt as interrupt:
                    tell(f"interrupted{interrupt}")
                    return 130

        return run

    return decorate


_PATH_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM)


def _describe(error) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        place = f"{error.filename} -> {error.filename2}" if error.filename2 else error.filename
        return f"{place}: {error.strerror}" + ("; check the path" if error.errno in _PATH_ERRORS else "")
    return getattr(error, "message", str(error))  # TensorFlow's, without the graph's nodes


def until_unread(main) -> int:
    """The exit code of a program, which ends quietly once the reader of its output has gone: `... | head`."""
    try:
        try:
            return main()
        finally:
            if sys.stdout:  # closed by whoever started this: >&-
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more at its end
        return 141  # as the shell counts a SIGPIPE


def import_tensorflow():
    """Imports TensorFlow; later imports find it loaded. Set TF_CPP_MIN_LOG_LEVEL before, for what it logs later."""
    with _without_notices():
        import tensorflow  # noqa: F401
