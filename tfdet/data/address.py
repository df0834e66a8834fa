"""Places with a scheme (gs://bucket/folder) with the methods of pathlib.Path that the readers of annotations call.

To an object store "a/../b" is a name like any other, to a file system and to many programs between it is "b". So that
what is checked is what is read, such parts are resolved as soon as an address is made.
"""

import functools
import posixpath
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from tfdet.data import files


def as_path(text):
    """A Path for a file on this machine, file:// included; an Address for what has another scheme."""
    if isinstance(text, Address) or not files.is_remote(text):
        return text if isinstance(text, Address) else Path(text)
    return Path(str(text).removeprefix("file://")) if str(text).startswith("file:///") else Address(text)


def below(folder, name: str):
    """The path of a name in a folder. As of a Path, a name that begins with / or has a scheme replaces the folder."""
    return as_path(name) if files.is_remote(name) else folder / name


class Address:
    """A file or folder at an address such as gs://bucket/folder/file.jpg.

    All that asks the file system raises OSErrors. A folder of an object store is what its files' names begin with.
    """

    def __init__(self, text):
        self.scheme, _, rest = str(text).partition("://")
        self._path = PurePosixPath(posixpath.normpath(f"/{rest}"))

    def __str__(self):
        return f"{self.scheme}:/{self._path}"

    def __repr__(self):
        return f"Address({str(self)!r})"

    def __eq__(self, other):
        return isinstance(other, Address) and str(self) == str(other)

    def __hash__(self):
        return hash(str(self))

    def __lt__(self, other):
        return str(self) < str(other)

    def __truediv__(self, name):
        return self._with(self._path / name)

    def _with(self, path):
        return Address(f"{self.scheme}:/{path}")

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def stem(self) -> str:
        return self._path.stem

    @property
    def suffix(self) -> str:
        return self._path.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        return self.scheme, *self._path.parts

    @property
    def parent(self):
        return self._with(self._path.parent)

    @property
    def parents(self):
        return [self._with(path) for path in self._path.parents]

    def absolute(self):
        return self

    resolve = absolute

    def relative_to(self, folder) -> PurePosixPath:
        """Of what lies in the folder."""
        return self._path.relative_to(folder._path)

    def is_relative_to(self, folder) -> bool:
        same = isinstance(folder, Address) and folder.scheme == self.scheme
        return same and self._path.is_relative_to(folder._path)

    def exists(self) -> bool:
        return files.exists(self)

    def is_dir(self) -> bool:
        return files.is_folder(self)

    def is_file(self) -> bool:
        """By the list of its folder's files, which is asked for once: a question travels."""
        return self.name in _listed(str(self.parent))

    def iterdir(self):
        return (self / name for name in files.names(self))

    def glob(self, pattern: str):
        """Of names in this folder alone."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str):
        return (Address(path) for path in files.walk(self) if fnmatchcase(posixpath.basename(path), pattern))


@functools.lru_cache(256)
def _listed(folder) -> frozenset[str]:
    return frozenset(files.names(folder))


def forget():
    """Asks anew what is in a folder."""
    _listed.cache_clear()
