"""Presets: one file a preset, each with a `CONFIG`. `load("yolov3_416")` returns it."""

import importlib

from tfdet.config import Config, ConfigError

PRESETS = (
    "ssd300_vgg16", "ssd512_vgg16", "ssd300_mobilenetv2", "ssd300_mobilenetv2_scratch",
    "yolov3_416", "yolov3_modern", "yolov3_tiny", "yolov3_tiny_scratch", "demo",
)  # fmt: skip


def load(name: str) -> Config:
    """The preset `name`.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    return importlib.import_module(f"tfdet.configs.{name}").CONFIG
