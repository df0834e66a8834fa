"""ImageNet's weights for the backbones that keras.applications has; the first time they come over the network."""

from tfdet.compat import keras
from tfdet.models import hdf5
from tfdet.models.errors import WeightsError

NAME = "imagenet"


def read(model) -> dict:
    """{layer: [(tensor, array), ...]} under the names of the model's layers.

    SSD's fc6, fc7 and what follows are no part of it.

    Raises:
        WeightsError: there are none for this model, or they cannot be fetched.
    """
    names = {layer.name: layer for layer in model.layers}
    if "conv1_1" in names:
        source = _fetch("VGG16")
    elif "block_16_project" in names:
        source = _fetch("MobileNetV2", alpha=names["block_16_project"].filters / 320, input_shape=(224, 224, 3))
    else:
        raise WeightsError(
            "imagenet: keras.applications has VGG16 and MobileNetV2, but no Darknet. For YOLOv3 take Darknet's own "
            "file darknet53.conv.74, for YOLOv3-tiny yolov3-tiny.conv.15"
        )
    layers = {layer.name: layer for layer in source.layers if layer.weights}
    stored = {
        name: list(zip((hdf5.tensor_name(w.name) for w in layer.weights), layer.get_weights()))
        for name, layer in layers.items()
    }
    return hdf5.rename(stored, names)


def _fetch(kind, **options):
    try:
        return getattr(keras.applications, kind)(include_top=False, weights="imagenet", **options)
    except Exception as error:  # Keras raises a bare one where a download fails
        raise WeightsError(
            f"imagenet: the weights of {kind} cannot be had: {str(error).splitlines()[0]}. The first time they come "
            "over the network, then from the folder ~/.keras/models, where a file can also be put by hand"
        ) from error
