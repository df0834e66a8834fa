"""What goes wrong with a user's data: each error says where, what, and what to do. Tools print it as one line."""


class DataError(ValueError):
    """Input that cannot be used.

    Attributes:
        where: a file, "file:line" or "file: key 'x'".
        reason: what is wrong with it.
        advice: what to do about it.
    """

    def __init__(self, where, reason: str, advice: str):
        super().__init__(f"{where}: {reason}; {advice}")
        self.where, self.reason, self.advice = str(where), reason, advice


class AnnotationError(DataError):
    """An annotation file or a file of class names that cannot be read as a whole."""


class RecordError(DataError):
    """Records that are missing, incomplete or damaged, or that cannot be written."""


class ImageError(DataError):
    """An image that cannot be used; `kind` is one of annotations.KINDS."""

    def __init__(self, where, reason: str, advice: str, kind: str):
        super().__init__(where, reason, advice)
        self.kind = kind

    def __reduce__(self):  # it crosses from worker processes
        return type(self), (self.where, self.reason, self.advice, self.kind)
