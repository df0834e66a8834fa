"""What stops a training."""


class TrainingError(RuntimeError):
    """Training cannot go on; the text says at which step, why, and what to try."""
