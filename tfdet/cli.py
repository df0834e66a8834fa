"""The command `tfdet`: one door to the programs in tools/ and benchmarks/, which are imported when they are asked for.

Programs beside the library are in a checkout at its root, and in an installed package in tfdet/programs.
"""

import argparse
import contextlib
import difflib
import importlib
import re
import sys
from pathlib import Path

from tfdet import __version__, quiet

COMMANDS = {  # name -> program, what it does
    "convert": ("tools/make_tfrecords.py", "annotations and images to TFRecords, or to annotations of another form"),
    "inspect": ("tools/inspect_dataset.py", "what is wrong with a data set, and what is in it"),
    "anchors": ("tools/kmeans_anchors.py", "the YOLO anchors that fit a data set"),
    "train": ("tools/train.py", "train a detector"),
    "evaluate": ("tools/evaluate.py", "average precision of a trained detector, and its mistakes"),
    "predict": ("tools/predict.py", "find objects in images: pictures, JSON, annotations"),
    "export": ("tools/export.py", "a trained detector as SavedModel, TFLite or ONNX"),
    "benchmark": ("benchmarks/input_pipeline.py", "how fast the input pipeline is on this machine"),
}
_LIST = "\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items())
HELP = f"""usage: tfdet COMMAND ...

Annotation files in, trained object detector out.

commands:
{_LIST}

options:
  -h, --help               this page; after a command, that of the command
  --version                the version
  --completion bash|zsh    print a script that completes commands and options in this shell, e.g.
                           tfdet --completion bash > ~/.local/share/bash-completion/completions/tfdet
"""


def main(arguments=None) -> int:
    """What the command does; returns its exit code. Programs may end by SystemExit, as argparse does."""
    return quiet.until_unread(lambda: choose(list(sys.argv[1:] if arguments is None else arguments)))


def choose(arguments) -> int:
    """Goes by the first argument; returns the exit code."""
    first = arguments[0] if arguments else None
    try:
        if first in COMMANDS:
            return run(first, arguments[1:])
        if first in ("-h", "--help", "help"):
            print(HELP, end="")
        elif first == "--version":
            print(f"tfdet {__version__}")
        elif first == "--completion":
            print(completion(arguments[1] if len(arguments) > 1 else ""), end="")
        else:
            return refuse(first)
        return 0
    except KeyboardInterrupt:  # while a program is imported; later it says so itself
        print("tfdet: interrupted", file=sys.stderr)
        return 130


def refuse(word) -> int:
    """Says what there is instead of the command `word`, None where none was given."""
    if word is None:
        print(HELP, end="", file=sys.stderr)
        return 2
    close = difflib.get_close_matches(word, COMMANDS, 1)
    advice = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
    print(f"tfdet: there is no command {word!r}; {advice}", file=sys.stderr)
    return 2


# --- the programs -------------------------------------------------------------------------------


def programs() -> Path:
    """The folder that holds tools/ and benchmarks/."""
    here = Path(__file__).resolve().parent
    return here / "programs" if (here / "programs" / "tools").is_dir() else here.parent


def load(command):
    """The module of a command's program, imported as if it had been started by its file."""
    path = Path(COMMANDS[command][0])
    root = programs()
    for folder in (root, root / path.parent):  # other packages bring a `tools`, too: ours comes first
        sys.path.insert(0, str(folder))
    sys.path.insert(0, str(root))
    return importlib.import_module(path.stem if path.parent.name == "benchmarks" else f"tools.{path.stem}")


def run(command, arguments) -> int:
    """Runs a program in this process; its help page and its messages say `tfdet COMMAND`."""
    sys.argv = [f"tfdet {command}", *arguments]  # argparse takes the name from there
    with _named_as_commands(), quiet.called(f"tfdet {command}"):
        return load(command).main(arguments)


@contextlib.contextmanager
def _named_as_commands():
    """Help pages that speak of the commands instead of the files."""
    plain = argparse.ArgumentParser.format_help
    argparse.ArgumentParser.format_help = lambda parser: rename(plain(parser))
    try:
        yield
    finally:
        argparse.ArgumentParser.format_help = plain


def rename(text) -> str:
    """`python tools/train.py` and `tools/train.py` -> `tfdet train`."""
    for name, (path, _) in COMMANDS.items():
        text = re.sub(rf"(python )?{re.escape(path)}", f"tfdet {name}", text)
    return text


# --- completion ---------------------------------------------------------------------------------

_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"
_BASH = """_tfdet() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words=""
    if [[ $COMP_CWORD -eq 1 ]]; then
        words="{commands} --help --version --completion"
    else
        case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}" in
            "--completion --completion") words="bash zsh" ;;
{values}
        esac
        if [[ -z $words && $current == -* ]]; then
            case "${{COMP_WORDS[1]}}" in
{options}
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _tfdet tfdet
"""


def completion(shell) -> str:
    """A script that completes commands, options, and values that are chosen of a few; files where nothing else fits.

    Raises:
        SystemExit: another shell.
    """
    if shell not in ("bash", "zsh"):
        print("tfdet: --completion needs the name of a shell, bash or zsh", file=sys.stderr)
        raise SystemExit(2)
    values, options = [], []
    for command in COMMANDS:
        actions = parser_of(command)._actions
        words = " ".join(option for action in actions for option in action.option_strings)
        options.append(f'                {command}) words="{words}" ;;')
        for action in actions:
            if action.choices and action.option_strings:
                places = "|".join(f'"{command} {option}"' for option in action.option_strings)
                values.append(f'            {places}) words="{" ".join(map(str, action.choices))}" ;;')
    script = _BASH.format(commands=" ".join(COMMANDS), values="\n".join(values), options="\n".join(options))
    return script if shell == "bash" else _ZSH + script


class _Parser(Exception):
    """Carries a program's parser out of the program."""


def parser_of(command) -> argparse.ArgumentParser:
    """The parser of a command's program, taken where the program is about to use it."""

    def stop(parser, *_, **__):
        raise _Parser(parser)

    module, plain = load(command), argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = stop
    try:
        module.parse_arguments([])
    except _Parser as found:
        return found.args[0]
    finally:
        argparse.ArgumentParser.parse_known_args = plain
    raise RuntimeError(f"{command} parses nothing")  # no program is so
