"""A trained detector out of the folder that training wrote."""

from pathlib import Path

from tfdet import detectors
from tfdet.config import ConfigError, from_json
from tfdet.models import weights as weight_files

WEIGHTS = ("best.h5", "weights.h5")  # the first that is there


def load(run, weights=None):
    """The config, detector and model of a run.

    Args:
        run: folder with config.json and best.h5 or weights.h5.
        weights: another .h5 file to take the weights from.
    Returns:
        Config, detector, keras.Model.
    Raises:
        ConfigError: no run, a config that cannot be read, or weights that do not fit all of the model.
        WeightsError: a weights file that cannot be read.
    """
    run = Path(run)
    path = Path(weights) if weights else _weights(run)
    config = _config(run / "config.json")
    detector = detectors.build(config.detector, config.num_classes)
    model = detector.build_model()
    audit = weight_files.load(model, path)
    unfit = [*audit.mismatched, *(f"{name}: not in the file" for name in audit.missing)]
    if unfit:
        raise ConfigError(f"{path} does not fit the model of {run / 'config.json'}: {'; '.join(unfit[:5])}")
    return config, detector, model


def _weights(run) -> Path:
    if not run.is_dir():
        raise ConfigError(f"{run}: no such folder; give the folder that training made, its --run")
    for name in WEIGHTS:
        if (run / name).exists():
            return run / name
    raise ConfigError(f"{run}: neither {' nor '.join(WEIGHTS)} is there; has the training ended an epoch?")


def _config(path):
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; give the folder that training made, its --run") from error
    except ValueError as error:  # not JSON, or not a config
        raise ConfigError(f"{path}: {error}") from error
