"""An mkdocs hook: puts the --help page of each program in the place of a line `{{ help NAME }}`."""

import contextlib
import importlib
import io
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def help_page(name) -> str:
    """What `tfdet NAME --help` prints, or a program of tools/ that is none of its commands."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["COLUMNS"] = "110"
    sys.path.insert(0, str(ROOT))
    from tfdet import cli

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        if name in cli.COMMANDS:
            cli.main([name, "--help"])
        else:
            sys.argv = [f"tools/{name}.py"]
            importlib.import_module(f"tools.{name}").parse_arguments(["--help"])
    return text.getvalue()


def on_page_markdown(markdown, **_):
    return re.sub(
        r"^\{\{ help (\w+) \}\}$",
        lambda match: f"```text\n{help_page(match[1])}```",
        markdown,
        flags=re.MULTILINE,
    )
