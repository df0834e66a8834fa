"""What storing images otherwise than as they come costs and brings: bytes, and time to decode."""

import io
import time

import numpy as np
from PIL import Image

from tfdet.data import embedded, files, stored

_SAMPLE = 16


def compare_storage(splits, directory, manifest) -> dict:
    """Compares stored images with their originals.

    Args:
        splits: split name -> listings, as they were converted.
        manifest: of what was written.
    Returns:
        bytes of the originals and of the records, and the median time that decoding a stored image takes, as a
        share of its original's (both with Pillow, a sample of images, from memory).
    """
    originals = {stored.encode_id(item.image_id): item.image_path for items in splits.values() for item in items}
    ratios = [
        _seconds(lambda: _stored_pixels(fields)) / _seconds(lambda: _pixels(data))  # noqa: B023 called at once
        for fields, data in _sample(originals, directory, manifest)
    ]
    return {
        "original_bytes": sum(files.ask(_size, originals.values())),
        "stored_bytes": sum(shard["bytes"] for entry in manifest["splits"].values() for shard in entry["shards"]),
        "decode_time": round(float(np.median(ratios)), 3) if ratios else None,
        "sample": len(ratios),
    }


def _sample(originals, directory, manifest):
    """(fields of a record, bytes of the original file) of some images that were converted."""
    for fields in stored.first_records(directory, manifest, _SAMPLE):
        path = originals.get(bytes(fields["image/source_id"][0]))
        if path is not None:
            yield fields, embedded.read_bytes(path)


def _size(path) -> int:
    try:
        return embedded.file_size(path)
    except OSError:  # a missing image, left out
        return 0


def _seconds(work) -> float:
    """The best of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _pixels(data):
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _stored_pixels(fields):
    encoded = fields["image/encoded"][0]
    if bytes(fields["image/format"][0]) == b"raw":
        return np.frombuffer(encoded, np.uint8).copy()
    return _pixels(encoded)


def describe(figures, store: str) -> str:
    """One line for people."""
    before, after = figures["original_bytes"], figures["stored_bytes"]
    text = f"stored: {after / 1e6:.1f} MB for {before / 1e6:.1f} MB of images ({after / max(before, 1):.2f} x)"
    if figures["decode_time"] is not None:
        text += f"; decoding a stored image takes {figures['decode_time']:.2g} of an original's time"
        text += f" ({figures['sample']} images)"
    if store == "raw":  # read from a disk, so many bytes cost more than decoding a JPEG
        text += f"; worth it where training holds them in memory: --set data.ram_budget_mb={after // 10**6 + 1}"
    return text
