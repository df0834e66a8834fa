import os
import subprocess
import sys

import pytest

from tfdet import quiet

SCRIPT = """
import os, sys
from tfdet import quiet
with quiet._without_notices():
    os.write(2, b"I0000 00:00:1 port.cc:153] a notice\\nE0000 an error\\n")
    print("a plain line", file=sys.stderr, flush=True)
os.write(2, b"I0000 afterwards\\n")
"""


def test_only_notices_are_dropped():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=dict(os.environ))
    assert done.stderr.splitlines() == ["E0000 an error", "a plain line", "I0000 afterwards"]


def test_an_error_during_the_import_is_shown():
    script = SCRIPT.replace("I0000 00:00:1", "W0000").replace('os.write(2, b"I0000 afterwards', "raise SystemExit(3)#")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 3
    assert "a notice" in done.stderr


def test_a_closed_output_is_no_error():
    code = "import sys; from tfdet import quiet; sys.exit(quiet.until_unread(lambda: 3))"
    assert subprocess.run(["sh", "-c", '"$0" -c "$1" >&-', sys.executable, code]).returncode == 3


def test_a_reader_that_has_gone_ends_the_program_quietly():
    code = "import sys; from tfdet import quiet; sys.exit(quiet.until_unread(lambda: print('x' * 10**6) or 0))"
    command = ["bash", "-c", '"$0" -c "$1" | true; exit ${PIPESTATUS[0]}', sys.executable, code]
    ran = subprocess.run(command, capture_output=True)
    assert (ran.returncode, ran.stderr) == (141, b"")


class Expected(Exception):
    message = "what happened"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Expected("at length"), 2, "test_quiet: what happened"),
        (
            FileNotFoundError(2, "No such file or directory", "a.txt"),
            2,
            "test_quiet: a.txt: No such file or directory; check the path",
        ),
        (OSError("disk"), 2, "test_quiet: disk"),
        (KeyboardInterrupt(), 130, "test_quiet: interrupted"),
        (KeyboardInterrupt("; go on with --resume"), 130, "test_quiet: interrupted; go on with --resume"),
    ],
)
def test_an_expected_error_is_one_line(capsys, error, code, line):
    @quiet.program(Expected, OSError)
    def main(arguments=None):
        raise error

    assert main() == code
    assert capsys.readouterr().err == f"{line}\n"
    with quiet.called("tfdet test"):
        assert main() == code
    assert capsys.readouterr().err == f"{line.replace('test_quiet', 'tfdet test')}\n"


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("a bug")])
def test_other_errors_pass(error):
    @quiet.program(Expected, OSError)
    def main(arguments=None):
        raise error

    with pytest.raises(type(error)):
        main()


def test_a_program_hands_its_arguments_and_its_exit_code_through(capsys):
    @quiet.program(Expected)
    def main(arguments=None):
        quiet.tell("a word")
        return len(arguments)

    assert main(["a", "b"]) == 2
    assert main.__name__ == "main"
    quiet.tell("of no program")
    assert capsys.readouterr().err == "test_quiet: a word\nof no program\n"
