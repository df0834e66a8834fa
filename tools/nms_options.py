"""--nms and what belongs to it, for the tools that suppress overlapping boxes."""

from tfdet.config import NMS_KERNELS, NMS_METHODS, ConfigError


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


def require_use(limits, options):
    """That none is given in vain.

    Args:
        limits: NmsConfig, with the options on top of what the run was trained with.
    Raises:
        ConfigError: an option that the method, or the kernel, does not look at.
    """
    if limits.method == "hard" and (options.nms_kernel or options.nms_sigma is not None):
        raise ConfigError("--nms-kernel and --nms-sigma are for --nms soft and matrix; this is hard")
    if limits.kernel == "linear" and options.nms_sigma is not None:
        raise ConfigError("--nms-sigma is of the gaussian kernel; this one is linear")
