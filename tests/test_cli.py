"""The command `tfdet`: its pages, its commands in a process and installed, completion in a real shell, mistakes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tfdet
from tfdet import cli
from tfdet.data import synthetic

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def same_process(monkeypatch):
    """The command changes sys.argv and sys.path."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_the_front_page_is_instant():
    code = "import sys, time; start = time.perf_counter(); from tfdet.cli import main; main(['--help'])\n"
    code += "print(len({'tensorflow', 'numpy', 'rich'} & set(sys.modules)), time.perf_counter() - start)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, seconds = ran.stdout.split()[-2:]
    assert loaded == "0"
    assert float(seconds) < 1
    for name in cli.COMMANDS:
        assert f"\n  {name} " in ran.stdout


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tfdet {tfdet.__version__}\n"


@pytest.mark.parametrize(
    "arguments, says",
    [(["trian"], "did you mean train?"), (["xyz"], "choose one of convert"), ([], "usage: tfdet COMMAND"),
     (["--versoin"], "there is no command '--versoin'")],
)  # fmt: skip
def test_what_is_no_command(capsys, arguments, says):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_a_page_that_names_commands(capsys, command):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: tfdet {command} ")
    for path, _ in cli.COMMANDS.values():
        assert path not in page


def test_files_become_commands():
    text = "run python tools/train.py, or tools/make_tfrecords.py --out x; benchmarks/input_pipeline.py"
    assert cli.rename(text) == "run tfdet train, or tfdet convert --out x; tfdet benchmark"


MISTAKES = {
    "convert": ["nothing.txt"],
    "inspect": ["nothing.txt"],
    "anchors": ["nothing.txt"],
    "train": ["--data", "nothing"],
    "evaluate": ["--run", "nothing", "--data", "nothing"],
    "predict": ["nothing.jpg", "--run", "nothing", "--out", "out"],
    "export": ["--run", "nothing", "--out", "out"],
    "benchmark": ["--data", "nothing"],
}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_mistake_ends_with_a_line_and_code_2(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([command, *MISTAKES[command]]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "nothing" in lines[-1]
    assert len(lines[-1]) < 300
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--no-such-option"])
    assert end.value.code == 2
    assert f"tfdet {command}: error:" in capsys.readouterr().err


def test_an_interruption_while_a_program_is_imported(monkeypatch, capsys):
    def interrupted(command):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupted)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "tfdet: interrupted\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_reader_that_leaves_is_no_error():
    code = 'import sys, tfdet.cli as c; c.HELP *= 9999; sys.exit(c.main(["-h"]))'
    command = ["bash", "-c", '"$0" -c "$1" | true; echo ${PIPESTATUS[0]}', sys.executable, code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("141\n", "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_so_it_is_for_a_program_that_is_started_by_its_file(tmp_path):
    (tmp_path / "train.txt").write_text("".join(f"{i}.jpg\n" for i in range(3000)))  # 3000 lines of output
    (tmp_path / "classes.txt").write_text("cat\n")
    tool = Path(__file__).resolve().parents[1] / "tools" / "make_tfrecords.py"
    line = f'"$0" {tool} train.txt --classes classes.txt --out out 2>errors | true; echo ${{PIPESTATUS[0]}}'
    ran = subprocess.run(["bash", "-c", line, sys.executable], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "141\n"
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert "Broken" not in (tmp_path / "errors").read_text()


# --- completion ---------------------------------------------------------------------------------

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_tfdet; echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "tfdet"
    path.write_text(cli.completion("bash"))
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    "words, found",
    [("tr", "train"), ("train --pres", "--preset"), ("train --preset yolov3_4", "yolov3_416"),
     ("export --format tf", "tflite"), ("--completion z", "zsh"), ("predict photo", ""), ("nothing --x", "")],
)  # fmt: skip
def test_bash_completes(script, words, found):
    command = ["bash", "-c", COMPLETE, "bash", script, "tfdet", *words.split()]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == found


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_loads_its_script(script, tmp_path):
    (tmp_path / "tfdet").write_text(cli.completion("zsh"))
    subprocess.run(["zsh", "-f", tmp_path / "tfdet"], check=True, env={**os.environ, "HOME": str(tmp_path)})


def test_completion_knows_two_shells(script, capsys):
    assert cli.completion("zsh").endswith(script.read_text())
    for shell in (["fish"], []):
        with pytest.raises(SystemExit) as end:
            cli.main(["--completion", *shell])
        assert end.value.code == 2
        assert "bash or zsh" in capsys.readouterr().err


# --- installed ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The command in an environment of its own, which sees the packages of this one."""
    folder = tmp_path_factory.mktemp("installed")
    source, home = folder / "source", folder / "venv"
    keep = shutil.ignore_patterns("__pycache__", "data", "results")
    for name in ("tools", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=keep)
    shutil.copytree(ROOT / "tfdet", source / "tfdet", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / "lib" / version / "site-packages"
    packages.joinpath("others.pth").write_text(f"{Path(json.__file__).parent}\n" + "\n".join(sys.path) + "\n")
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", source]
    ran = subprocess.run([home / "bin" / "python", *pip], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    shutil.rmtree(source)
    return home / "bin" / "tfdet"


def test_installed_it_works_without_the_repository(installed, tmp_path):
    start = time.perf_counter()
    assert subprocess.run([installed, "--version"], capture_output=True, text=True).stdout.startswith("tfdet ")
    assert time.perf_counter() - start < 2
    synthetic.make_shapes(tmp_path, 8, 0)
    command = ["convert", synthetic.LINES, "--classes", synthetic.CLASSES, "--name", "drawn", "--workers", "2"]
    ran = subprocess.run([installed, *command], cwd=tmp_path, capture_output=True, text=True, check=True)
    summary = json.loads(ran.stdout.splitlines()[-1])
    assert (tmp_path / summary["out"] / "manifest.json").exists()
    ran = subprocess.run(
        [installed, "anchors", summary["out"], "-k", "2"], cwd=tmp_path, capture_output=True, text=True
    )
    assert json.loads(ran.stdout.splitlines()[-1])["images"] == 8
    code = "import tfdet.cli; print(tfdet.cli.programs())"
    python = installed.parent / "python"
    found = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(installed.parents[1])
