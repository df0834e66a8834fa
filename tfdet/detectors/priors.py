"""SSD's priors (default boxes): made from a `config.PriorLayout`, saved and loaded as a pickle.

They are float64 here, so that their centre form and their corners can each be rounded to float32 once.
"""

import pickle

import numpy as np

from tfdet.boxes import VARIANCES
from tfdet.config import PRIOR_LAYOUTS, PriorLayout
from tfdet.data import unpickle
from tfdet.data.errors import AnnotationError


def make_priors(layout: PriorLayout) -> np.ndarray:
    """The priors of a layout, as Caffe's prior_box_layer (branch ssd) makes them.

    Returns:
        float64 [A, 4] cxcywh, relative: level by level, then row, column, box of the cell.
    """
    priors = np.concatenate([_level(layout, level) for level in range(len(layout.feature_maps))])
    if layout.clip:  # the corners, as Caffe and rykov8 do; ssd.pytorch clips centres and sizes
        priors = to_cxcywh(np.clip(to_xyxy(priors), 0.0, 1.0))
    return priors


def count_priors(layout: PriorLayout) -> int:
    """A of `make_priors`."""
    return sum(side**2 * layout.boxes_per_cell(level) for level, side in enumerate(layout.feature_maps))


def _level(layout, level):
    """float64 [A, 4] cxcywh: the priors of one feature map."""
    side, shapes = layout.feature_maps[level], _shapes(layout, level)
    step = layout.steps[level] or layout.image_side / side
    centres = (np.arange(side) + layout.offset) * step / layout.image_side
    priors = np.empty((side, side, len(shapes), 4))
    priors[..., 0] = centres[None, :, None]
    priors[..., 1] = centres[:, None, None]
    priors[..., 2:] = shapes
    return priors.reshape(-1, 4)


def _shapes(layout, level):
    """float64 [boxes of a cell, 2] width, height, relative."""
    smallest, largest = layout.min_sizes[level], layout.max_sizes[level]
    if layout.truncate_sizes:
        smallest, largest = int(smallest), int(largest)
    shapes = [(smallest, smallest)]
    if largest:
        shapes.append((np.sqrt(smallest * largest),) * 2)
    for ratio in layout.aspect_ratios[level]:
        long, short = smallest * np.sqrt(ratio), smallest / np.sqrt(ratio)
        shapes += [(long, short), (short, long)]
    return np.array(shapes) / layout.image_side


# --- files --------------------------------------------------------------------------------------


def save_priors(path, priors_cxcywh, variances=VARIANCES):
    """Writes priors in the form of rykov8's prior_boxes_ssd300.pkl.

    The pickle holds one float32 [A, 8] array: x_min, y_min, x_max, y_max, relative, and four variances.

    Args:
        priors_cxcywh: float [A, 4] cxcywh, relative.
        variances: float [4] or [A, 4].
    """
    corners = to_xyxy(np.asarray(priors_cxcywh, np.float64))
    rows = np.concatenate([corners, np.broadcast_to(variances, corners.shape)], axis=1)
    with open(path, "wb") as file:
        pickle.dump(rows.astype(np.float32), file, protocol=2)  # the newest that Python 2 reads


def load_priors(path) -> tuple[np.ndarray, np.ndarray]:
    """Reads what `save_priors` or rykov8/ssd_keras wrote; runs nothing that the file asks for.

    Returns:
        priors float64 [A, 4] cxcywh, relative, and variances float32 [A, 4].
    Raises:
        AnnotationError: the file cannot be read or holds something else.
    """
    advice = f"give detector.priors one of {', '.join(PRIOR_LAYOUTS)} or a pickle of a float32 [A, 8] array"
    try:
        with open(path, "rb") as file:
            rows = _to_rows(unpickle.load(file))
    except OSError as error:
        raise AnnotationError(path, f"cannot be read ({error.strerror})", advice) from error
    except unpickle.UnpickleError as error:
        raise AnnotationError(path, str(error), advice) from error
    return to_cxcywh(rows[:, :4]), rows[:, 4:].astype(np.float32)


def _to_rows(content):
    """The array of the pickle, float64 [A, 8], checked."""
    if not isinstance(content, unpickle.StoredArray):
        raise unpickle.UnpickleError(f"the pickle holds a {type(content).__name__}, not an array")
    rows = content.build().astype(np.float64)
    if rows.ndim != 2 or rows.shape[1] != 8 or not len(rows):
        raise unpickle.UnpickleError(f"the array has the shape {rows.shape}, not [A, 8]")
    if not (np.isfinite(rows).all() and (rows[:, :2] < rows[:, 2:4]).all() and (rows[:, 4:] > 0).all()):
        raise unpickle.UnpickleError("a prior is not finite, without area, or has a variance that is not positive")
    return rows


def to_xyxy(boxes_cxcywh):
    """`boxes.to_xyxy` for numpy, in the type of its argument."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return np.concatenate([centre - half, centre + half], -1)


def to_cxcywh(boxes):
    """`boxes.to_cxcywh` for numpy, in the type of its argument."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1)
