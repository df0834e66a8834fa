import os
import subprocess
import sys

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
