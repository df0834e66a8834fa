"""The package's metadata; the stacks' exact versions are in constraints.txt and constraints-addons.txt."""

from pathlib import Path

from setuptools import find_packages, setup

PROGRAMS = {"tfdet.programs.tools": "tools", "tfdet.programs.benchmarks": "benchmarks"}

setup(
    name="tfdet",
    version="0.1.0",
    description="A tf.data-first, high-throughput object-detection pipeline library for TensorFlow",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # the programs of tools/ and benchmarks/ come along, for the command `tfdet`
    packages=[*find_packages(include=["tfdet", "tfdet.*"]), *PROGRAMS],
    package_dir=PROGRAMS,
    entry_points={"console_scripts": ["tfdet = tfdet.cli:main"]},
    install_requires=[
        "tensorflow>=2.15,<2.22",
        "tf_keras>=2.15,<2.22",  # Keras 2; asks for the TensorFlow of its own version
        "numpy>=1.23",
        "pillow>=10.1",
        "rich>=13",
        "tensorboard>=2.15,<2.22",
        "pycocotools>=2.0.7",
        "faster-coco-eval>=1.6",  # the same figures in a fifth of the time
        "google-crc32c>=1.5",  # checksums of records in a seventh of numpy's time, which is taken where it has no wheel
        "h5py>=3.9",
        "matplotlib>=3.7",
    ],
    extras_require={
        # tensorflow-addons ended with TensorFlow 2.15; Python 3.10 and 3.11
        "addons": ["tensorflow~=2.15.0", "tf_keras~=2.15.0", "tensorflow-addons~=0.23.0", "numpy<2"],
        "onnx": ["tf2onnx>=1.16", "onnxruntime>=1.16"],
        "beam": ["apache-beam>=2.60"],  # in an environment of its own: its pins clash with TensorFlow's
        "docs": ["mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26"],  # make docs
        "dev": ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6", "ruff>=0.5"],
    },
)
