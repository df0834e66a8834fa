"""tfdet: annotation files in, trained object detector out, for TensorFlow."""

__version__ = "0.1.0"


def load(run, weights=None, **settings):
    """A trained detector: `tfdet.load("runs/mine").predict(["a.jpg"])`.

    Args:
        run: the folder that training wrote. weights, settings: see `tfdet.predict.load`.
    Returns:
        `tfdet.predict.Predictor`.
    """
    from tfdet import predict  # importing tfdet does no work; this imports TensorFlow

    return predict.load(run, weights, **settings)
