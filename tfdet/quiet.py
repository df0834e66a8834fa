"""For programs with a terminal: imports TensorFlow without the notices it prints about itself, and ends without a trace
when nobody reads any more.

TensorFlow writes lines of level INFO ("oneDNN custom operations are on ...") to the standard error stream before
its log level can be set. They are dropped here; everything else that appears during the import is passed on.
"""

import contextlib
import os
import re
import sys
import tempfile

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
