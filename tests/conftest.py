"""Shared by all tests: quiet TensorFlow, four logical CPU devices, and the optional reference data."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf

SHARED = Path(__file__).resolve().parents[2] / "shared"

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


@pytest.fixture(scope="session")
def shared():
    """The folder with real data, golden values and damaged files, which a user's clone does not have."""
    if not SHARED.is_dir():
        pytest.skip("the reference data folder ../shared is not there")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared):
    """Loads one file of reference outputs: golden("priors") -> the arrays of priors.npz."""

    def load(name):
        with np.load(shared / "golden" / f"{name}.npz", allow_pickle=False) as arrays:
            return dict(arrays)

    return load


@pytest.fixture
def rng():
    return np.random.default_rng(0)
