"""Where a tool is asked to write: what cannot be is said before the work instead of after it."""

from tfdet.data.errors import DataError


def require_parents(*files):
    """Paths to write to, None for those that were not asked for.

    Raises:
        DataError: the folder of one of them is missing.
    """
    for path in files:
        if path and not path.absolute().parent.is_dir():
            raise DataError(path, "its folder does not exist", "make the folder, or choose another")


def require_folder(path):
    """A folder that is made later, or None.

    Raises:
        DataError: there is a file of that name.
    """
    if path and path.exists() and not path.is_dir():
        raise DataError(path, "it is a file, where a folder is to be", "choose another name")
