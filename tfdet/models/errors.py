"""What the readers of weights raise."""


class WeightsError(ValueError):
    """A file that holds no weights for this model."""
