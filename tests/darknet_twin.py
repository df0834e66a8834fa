"""Darknet's networks in NumPy, straight from the floats of a .weights file, as its .cfg files chain the layers.

Slow and obvious. It knows nothing of the library but the form of its outputs.
"""

import struct

import numpy as np

EPSILON = 1e-3  # of the batch normalisations here, as in keras-yolo3


def write_weights(path, values, version=(0, 2, 0), seen=32013312):
    """values: float32 [N]. From version 0.2 on the images seen are an int64."""
    wide = version[0] * 10 + version[1] >= 2
    path.write_bytes(struct.pack("<3i" + ("q" if wide else "i"), *version, seen) + values.astype("<f4").tobytes())
    return path


class Network:
    """Layers that take their weights from the file one after the other.

    Args:
        floats: all of a file's. width: factor for filters, but for the outputs'. depth: filters of an output.
    """

    def __init__(self, floats, width, depth):
        self._floats, self._at, self._width, self._depth = floats, 0, width, depth

    def _take(self, *shape):
        count = int(np.prod(shape))
        self._at += count
        return self._floats[self._at - count : self._at].reshape(shape).astype(np.float64)

    def conv(self, x, filters, side, stride=1):
        filters = max(8, int(filters * self._width))
        beta, gamma, mean, variance = (self._take(filters) for _ in range(4))
        x = _correlate(x, self._take(filters, x.shape[-1], side, side), stride)
        x = gamma * (x - mean) / np.sqrt(variance + EPSILON) + beta
        return np.where(x > 0, x, 0.1 * x)

    def output(self, x):
        bias = self._take(self._depth)
        return _correlate(x, self._take(self._depth, x.shape[-1], 1, 1), 1) + bias

    @property
    def is_used_up(self):
        return self._at == self._floats.size


def _correlate(x, kernel, stride):
    """float [h, w, in], [out, in, k, k] -> [h / stride, w / stride, out]; k // 2 zeros on every side."""
    side = kernel.shape[-1]
    x = np.pad(x, ((side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), (0, 1))[::stride, ::stride]
    return np.einsum("yxikl,oikl->yxo", windows, kernel)


def _pool(x, stride):
    """The largest of 2x2; what lies beyond the right and lower border counts for nothing."""
    x = np.pad(x, ((0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (0, 1))
    return windows.max((-1, -2))[::stride, ::stride]


def _double(x):
    return x.repeat(2, 0).repeat(2, 1)


def yolov3_tiny(net, x):
    """float [H, W, 3] in [0, 1] -> the two outputs, coarse first."""
    for filters in (16, 32, 64, 128):
        x = _pool(net.conv(x, filters, 3), 2)
    fine = net.conv(x, 256, 3)
    x = net.conv(_pool(fine, 2), 512, 3)
    x = net.conv(_pool(x, 1), 1024, 3)
    x = net.conv(x, 256, 1)
    coarse = net.output(net.conv(x, 512, 3))
    x = np.concatenate([_double(net.conv(x, 128, 1)), fine], -1)
    return coarse, net.output(net.conv(x, 256, 3))


def yolov3(net, x):
    """float [H, W, 3] in [0, 1] -> the three outputs, coarse first."""
    x, maps, outputs = net.conv(x, 32, 3), [], []
    for filters, count in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        x = net.conv(x, filters, 3, stride=2)
        for _ in range(count):
            x = x + net.conv(net.conv(x, filters // 2, 1), filters, 3)
        maps.append(x)
    for filters, skipped in ((512, None), (256, maps[3]), (128, maps[2])):
        if skipped is not None:
            x = np.concatenate([_double(net.conv(x, filters, 1)), skipped], -1)
        for _ in range(2):
            x = net.conv(net.conv(x, filters, 1), 2 * filters, 3)
        x = net.conv(x, filters, 1)
        outputs.append(net.output(net.conv(x, 2 * filters, 3)))
    return outputs
