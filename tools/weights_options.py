"""The options that say which weights a model starts from, and what is done with them."""

from pathlib import Path

from tfdet.config import from_json
from tfdet.data import formats
from tfdet.models import class_heads, imagenet
from tfdet.models import weights as weight_files


def add_options(parser):
    """The group of options: --weights, --strict, --keep-classes, --source-classes."""
    group = parser.add_argument_group("weights to start from")
    group.add_argument(
        "--weights", metavar="FILE",
        help="Keras .h5 or .hdf5, by layer name; Darknet .weights; or imagenet: the backbone of keras.applications",
    )  # fmt: skip
    group.add_argument("--strict", action="store_true", help="fail unless every tensor of model and file has its match")
    group.add_argument(
        "--keep-classes", metavar="A,B=C",
        help="take these classes' filters from a file of other classes; B=C where it calls B by another name or number",
    )  # fmt: skip
    group.add_argument("--source-classes", type=Path, metavar="FILE",
                       help="names of the file's classes, one a line (default: of the run it lies in)")  # fmt: skip


def load(model, options, class_names):
    """Loads what the options name into the model, and prints the account of it.

    Raises:
        WeightsError: see `weights.load`.
    """
    keep = None
    if options.keep_classes is not None:
        keep = class_heads.parse_keep(options.keep_classes, class_names, _source_names(options))
    audit = weight_files.load(model, options.weights, strict=options.strict, keep=keep)
    print(audit, flush=True)


def check(options):
    """Raises WeightsError where there is nothing to load from; before anything takes time."""
    named = options.strict or options.keep_classes is not None or options.source_classes
    if named and not options.weights:
        raise weight_files.WeightsError("--strict, --keep-classes and --source-classes say something about --weights")
    if options.weights and options.weights != imagenet.NAME and not Path(options.weights).is_file():
        raise weight_files.WeightsError(f"{options.weights}: cannot be read, there is no such file")


def _source_names(options):
    """The names of the file's classes, or None."""
    if options.source_classes:
        return formats.read_class_names(options.source_classes)
    beside = Path(options.weights).parent / "config.json"
    return from_json(beside.read_text(encoding="utf-8")).class_names if beside.is_file() else None
