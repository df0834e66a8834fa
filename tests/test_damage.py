"""Every kind of damage to a good data set is found, with its place, by the inspection and by the conversion."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from damage import DAMAGES, FILES, make_good_set

from tfdet.data.annotations import KINDS, NOTES

ROOT = Path(__file__).resolve().parents[1]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOLS = {name: load_tool(name) for name in ("inspect_dataset", "make_tfrecords")}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    root = tmp_path_factory.mktemp("good") / "set"
    make_good_set(root)
    return root


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a tool in a folder: exit code, the last line's JSON, the lines of problems."""

    def run_tool(root, name, file_format, *options):
        monkeypatch.chdir(root)
        common = ["--classes", "classes.txt", "--format", file_format, "--workers", "1"]
        common += [] if file_format == "records" else ["--images", "img"]
        code = TOOLS[name].main([FILES[file_format], *common, *map(str, options)])
        out = capsys.readouterr().out.splitlines()
        return code, json.loads(out[-1]), {line for line in out if any(f"[{kind}]; " in line for kind in KINDS)}

    return run_tool


@pytest.mark.parametrize("file_format", FILES)
def test_the_good_set_is_healthy(run, good, file_format):
    code, summary, lines = run(good, "inspect_dataset", file_format, "--image-size", "300", "--max-boxes", "20")
    assert (code, lines) == (0, set())
    assert (summary["images"], summary["boxes"], summary["healthy"]) == (8, 16, True)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damage_is_found_with_its_place(run, good, tmp_path, damage):
    root = tmp_path / "set"
    shutil.copytree(good, root)
    place = damage.do(root)
    only_notes = set(damage.finds) <= set(NOTES)

    code, summary, lines = run(root, "inspect_dataset", damage.format, *damage.options, "--json", "found.json")
    assert summary["problems"] | summary["notes"] == damage.finds
    assert (code, summary["healthy"]) == ((0, True) if only_notes else (1, False))
    first = next(iter(damage.finds))
    assert sum(line.startswith(f"{place}: ") and f"[{first}]; " in line for line in lines) == damage.finds[first]
    found = json.loads((root / "found.json").read_text())["found"]
    assert {problem["where"] for problem in found if problem["kind"] == first} == {place}

    out = ("--out", "records_made", "--val-ratio", 0)
    code, summary, same = run(root, "make_tfrecords", damage.format, *damage.options, *out)
    assert same == lines
    assert (code, summary["written"]) == ((0, True) if only_notes else (1, False))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_nothing_is_left_of_damage_that_is_dropped(run, good, tmp_path, damage):
    root = tmp_path / "set"
    shutil.copytree(good, root)
    damage.do(root)
    policies = ["drop", "notes=drop"]
    options = [word for policy in policies for word in ("--on-bad", policy)]
    options += ["--out", "made", "--val-ratio", 0]
    code, summary, _ = run(root, "make_tfrecords", damage.format, *damage.options, *options)
    assert (code, summary["written"]) == (0, True)
    shutil.rmtree(root / "records")
    (root / "made").rename(root / "records")
    code, left, lines = run(root, "inspect_dataset", "records", *damage.options)
    assert all("[shifted_classes]" in line for line in lines)  # which is of the file, not of a box
    assert (code, left["images"], left["boxes"]) == (0, summary["images"], summary["boxes"])
    assert left["images"] >= 7
    assert left["boxes"] >= 11


def test_there_are_at_least_forty():
    assert len(DAMAGES) == len({damage.name for damage in DAMAGES}) >= 40
