"""Small data sets for tests: drawn images, converted."""

from tfdet.data import formats, records, synthetic
from tfdet.data.convert import convert


def make_records(directory, num_images=20, seed=0, val=0, shards=2, **options):
    """Draws shapes, converts them and returns the RecordSet of the train split (and of val, where asked)."""
    synthetic.make_shapes(directory / "drawn", num_images, seed)
    source = formats.read(directory / "drawn" / "gt.pkl", images=directory / "drawn" / "images")
    splits = {"train": source.listings[val:], "val": source.listings[:val]}
    convert(splits, directory / "records", "shapes", synthetic.SHAPE_CLASSES, shards=shards, **options)
    train = records.open_split(directory / "records", "train")
    return (train, records.open_split(directory / "records", "val")) if val else train
