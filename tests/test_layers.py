"""The house keeps its walls: imports point down, and what belongs in one file stays there."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FRONT_DOOR = ("__main__", "cli")  # a program: reads flags, and starts those of tools/
LEVELS = (  # top first; a room is a module or a package, and rooms of one level do not import each other
    {"__main__"},
    {"cli"},
    {"train", "evaluate", "predict", "export", "anchors", "contact_sheet", "pictures", "report", "unmatched"},
    {"detectors"},
    {"data", "models", "nms", "metrics", "draw", "timing", "configs"},
    {"schema", "boxes", "config", "compat", "addons", "quiet"},
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted((ROOT / "tfdet").rglob("*.py"))
SCRIPTS = sorted([*(ROOT / "tools").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


def name(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """Dotted names of all that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(path):
    """Every dotted expression such as `tf.keras.layers`, as text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down(path):
    room = path.relative_to(ROOT / "tfdet").parts[0].removesuffix(".py")
    if room == "__init__":
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert not [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))], "importing does no work"
        return
    assert room in LEVEL, f"a new room; say at which level {room} stands"
    for target in imports(path):
        package, _, rest = target.partition(".")
        other = rest.split(".")[0]
        assert package not in ("tools", "benchmarks", "tests"), f"{target} is above the library"
        if package == "tfdet" and other not in (room, "__version__"):
            assert LEVEL[other] > LEVEL[room], f"{name(path)} imports {target}, which is not below it"


def test_train_names_no_detector_and_no_data():
    for path in (ROOT / "tfdet" / "train").glob("*.py"):
        for target in imports(path):
            allowed = not target.startswith(("tfdet.data", "tfdet.detectors")) or target.startswith(
                "tfdet.detectors.base"
            )
            assert allowed, f"{name(path)} imports {target}"
        # what a detector asks of the machine it says itself
        assert not {text for text in dotted(path) if "config.detector." in f"{text}."}, f"{name(path)} knows its fields"


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=name)
def test_only_compat_and_addons_know_the_stack(path):
    if path.name in ("compat.py", "addons.py"):
        return
    foreign = {"keras", "tf_keras", "tensorflow_addons"} & {target.split(".")[0] for target in imports(path)}
    assert not foreign, f"take it from tfdet.compat or tfdet.addons, not {foreign}"
    assert "tensorflow.keras" not in {".".join(target.split(".")[:2]) for target in imports(path)}
    assert "tf.keras" not in set(dotted(path)), "take keras from tfdet.compat"


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in FRONT_DOOR], ids=name)
def test_the_library_reads_no_flags_and_calls_no_python_from_the_graph(path):
    assert not {"argparse", "absl"} & {target.split(".")[0] for target in imports(path)}
    names = set(dotted(path))
    assert not names & {"sys.argv", "os.environ", "os.getenv"}
    assert not {expression.rsplit(".", 1)[-1] for expression in names} & {"py_function", "numpy_function"}
