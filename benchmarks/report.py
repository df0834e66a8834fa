"""How every benchmark ends: with its figures, the machine and the versions they belong to, as JSON."""

import json
import os
import platform
import sys

_VERSIONED = {"tensorflow": "tensorflow", "numpy": "numpy", "PIL": "pillow", "faster_coco_eval": "faster_coco_eval"}


def publish(figures: dict, path=None):
    """Prints the figures as the last line on standard output, and writes them to `path` (a Path or None), too."""
    figures = {**figures, "machine": _machine(), "versions": _versions()}
    print(json.dumps(figures), flush=True)  # first: a file that cannot be written loses nothing
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _machine():
    return {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()}


def _versions():
    """Of Python and of what the benchmark has imported."""
    loaded = {name: getattr(sys.modules[module], "__version__", None) for module, name in _VERSIONED.items()
              if module in sys.modules}  # fmt: skip
    return {"python": platform.python_version(), **loaded}
