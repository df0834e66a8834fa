"""The only file that asks which TensorFlow and which Keras this is.

tfdet is written against Keras 2. TensorFlow up to 2.15 ships it as `tf.keras`; from 2.16 on
`tf.keras` is Keras 3 and Keras 2 lives in the package `tf_keras`.
"""

import tensorflow as tf

TF_VERSION = tuple(int(part) for part in tf.__version__.split(".")[:2])

if TF_VERSION >= (2, 16):
    try:
        import tf_keras as keras
    except ImportError as error:
        raise ImportError(
            f"TensorFlow {tf.__version__} needs the package tf_keras (Keras 2) of the same version: "
            f"pip install 'tf_keras~={TF_VERSION[0]}.{TF_VERSION[1]}.0'"
        ) from error
else:
    keras = tf.keras

__all__ = ["TF_VERSION", "keras"]
