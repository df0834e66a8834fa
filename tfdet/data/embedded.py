"""Images that are not files of their own but lie inside record files, named like files: FILE#bytes=START-END.

Pixels that are stored without a header carry their size as well: FILE#bytes=START-END,HEIGHTxWIDTH. Such a name
goes wherever the path of an image goes, so that nothing large is held in memory or copied between processes.
Nothing here needs TensorFlow.
"""

import re

from tfdet.data import files

_NAME = re.compile(r"(?P<file>.+)#bytes=(?P<start>\d+)-(?P<end>\d+)(?:,(?P<height>\d+)x(?P<width>\d+))?", re.DOTALL)


def name(file, start: int, end: int, raw_size: tuple[int, int] | None = None) -> str:
    """The name of the image in the bytes [start, end) of a file; `raw_size`: (height, width) of bare RGB pixels."""
    return f"{file}#bytes={start}-{end}" + (",{}x{}".format(*raw_size) if raw_size else "")


def _parts(path):
    """The match of a name, None for the path of a file; nearly all are, which a search for a constant tells at once."""
    return _NAME.fullmatch(str(path)) if "#bytes=" in str(path) else None


def is_embedded(path) -> bool:
    """Whether a path names an image inside a record file."""
    return _parts(path) is not None


def file_of(path):
    """The file that a path names or lies in."""
    found = _parts(path)
    return found["file"] if found else path


def read_bytes(path) -> bytes:
    """The image file that a path names; bare pixels get the header that makes them a PPM file.

    Raises:
        OSError: as reading a file does.
    """
    found = _parts(path)
    if not found:
        return files.read_bytes(path)
    start, end = int(found["start"]), int(found["end"])
    with files.opened(found["file"]) as file:
        file.seek(start)
        data = file.read(end - start)
    return b"P6 %d %d 255\n" % (int(found["width"]), int(found["height"])) + data if found["width"] else data


def file_size(path) -> int:
    """Bytes of the image. Raises OSError where there is no such file."""
    found = _parts(path)
    if found:
        return int(found["end"]) - int(found["start"])
    return files.size(path)
