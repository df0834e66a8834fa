"""--nms and what belongs to it, for the tools that suppress overlapping boxes."""

from tfdet.config import NMS_KERNELS, NMS_METHODS


def add_options(parser):
    parser.add_argument("--nms", choices=NMS_METHODS, help="suppression of overlapping boxes (default: as in training)")
    parser.add_argument("--nms-kernel", choices=NMS_KERNELS,
                        help="how soft and matrix lower a score (default: as in training)")  # fmt: skip
    parser.add_argument("--nms-sigma", type=float, metavar="S",
                        help="of the gaussian kernel exp(-iou^2 / S) (default: as in training)")  # fmt: skip


def chosen(options) -> dict:
    """Those that were given, as fields of NmsConfig."""
    given = {"method": options.nms, "kernel": options.nms_kernel, "sigma": options.nms_sigma}
    return {name: value for name, value in given.items() if value is not None}
