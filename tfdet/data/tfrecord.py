"""TFRecord frames and tf.train.Example messages in plain Python and numpy.

Importing TensorFlow costs each worker process seconds and hundreds of megabytes; records need only these two small
formats. The tests compare them byte by byte with TensorFlow's own.
"""

import functools
import struct

import numpy as np

try:
    import google_crc32c

    if google_crc32c.implementation == "python":  # where it has no wheel; numpy is faster than that
        google_crc32c = None
except ImportError:
    google_crc32c = None

_LARGE = 4096  # bytes from which a copy takes longer than keeping parts
FRAME_BYTES = 16  # of a record beside its payload: length, checksum of the length; checksum of the payload

# --- CRC-32C (Castagnoli, https://www.rfc-editor.org/rfc/rfc3720 appendix B.4) ------------------
# A CRC is the remainder of the message, as a polynomial over GF(2) whose first bit is the highest power, divided by
# the polynomial below. x^(8 * 5685) + x^(8 * 1362) + x^(8 * 426) + 1 is a multiple of that (found by search; the
# tests divide it), so a byte may be moved 4323, 5259 and 5685 bytes further back, all three XORed, and the remainder
# stays: numpy folds whole blocks so. Squaring a polynomial over GF(2) doubles its powers, so twice, four times ...
# these distances work, too, with larger blocks. The last 5685 bytes are divided by one parity for each bit.

_POLYNOMIAL = 0x82F63B78  # bit-reversed
_POWERS = (5685, 1362, 426)  # in bytes


def crc32c(data) -> int:
    """The CRC-32C of some bytes."""
    return google_crc32c.value(bytes(data)) if google_crc32c else crc32c_in_numpy(data)


def crc32c_in_numpy(data) -> int:
    """The same without the library; an image takes 0.1 ms."""
    if len(data) <= 16:  # numpy's calls would take longer
        return functools.reduce(_take_byte, data, 0xFFFFFFFF) ^ 0xFFFFFFFF
    message = np.zeros(len(data) + 4, np.uint8)  # the CRC is that of the message times x^32
    message[:-4] = np.frombuffer(data, np.uint8)
    message[:4] ^= 0xFF  # it begins with a register of ones, and ends with its complement
    return _remainder(_fold(message)) ^ 0xFFFFFFFF


def _take_byte(register, byte) -> int:
    return _byte_table()[(register ^ byte) & 0xFF] ^ register >> 8


@functools.cache
def _byte_table() -> list[int]:
    registers = range(256)
    for _ in range(8):
        registers = [register >> 1 ^ (register & 1) * _POLYNOMIAL for register in registers]
    return registers


def _fold(message):
    """uint8 [N], overwritten -> uint8 [at most _POWERS[0]] of the same remainder."""
    scale = 1
    while 2 * scale * _POWERS[0] < len(message):
        scale *= 2
    while scale:
        first, second, third = (scale * power for power in _POWERS)
        while len(message) > first:
            count = min(first - second, len(message) - first)
            for distance in (first - second, first - third, first):
                message[distance : distance + count] ^= message[:count]
            message = message[count:]
        scale //= 2
    return message


def _remainder(message) -> int:
    """uint8 [N], N at most _POWERS[0] -> the remainder of the division, bit-reversed."""
    masked = _masks()[:, -len(message) :] & message
    parities = np.unpackbits(np.bitwise_xor.reduce(masked, axis=1)[:, None], axis=1).sum(axis=1) & 1
    return int(np.packbits(parities.astype(np.uint8), bitorder="little").view("<u4")[0])


@functools.cache
def _masks():
    """uint8 [32, _POWERS[0]]: the bits of a message that a bit of the remainder is the parity of."""
    register, remainders = 1 << 31, []  # of x^0, x^1 ...; bit 31 is x^0
    for _ in range(8 * _POWERS[0]):
        remainders.append(register)
        register = register >> 1 ^ (register & 1) * _POLYNOMIAL
    bits = np.array(remainders[::-1], np.uint32) >> np.arange(32, dtype=np.uint32)[:, None] & 1
    return np.packbits(bits.astype(np.uint8), axis=1, bitorder="little")


# --- frames -------------------------------------------------------------------------------------


def frame(payload: bytes) -> bytes:
    """One record as it stands in a TFRecord file: length, its checksum, payload, its checksum."""
    return b"".join((frame_header(len(payload)), payload, _masked_crc(payload)))


def frame_header(length) -> bytes:
    """What a record begins with: the length of its payload and the checksum of that."""
    octets = struct.pack("<Q", length)
    return octets + _masked_crc(octets)


def _masked_crc(data):
    """TFRecord's checksum: the CRC rotated by 15 bits plus a constant (tensorflow/core/lib/hash/crc32c.h)."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def unframe(data, start: int, length: int):
    """The payload of a record whose place the offset index gives.

    Args:
        data: a shard's bytes, or a memoryview of them.
        length: of the payload, in bytes.
    Raises:
        ValueError: which part of the frame is damaged.
    """
    end = start + length + FRAME_BYTES
    header, payload = bytes(data[start : start + 12]), data[start + 12 : end - 4]
    if end > len(data):
        raise ValueError("the file ends before the record does")
    if header != frame_header(length):
        raise ValueError("the record's length or its checksum is damaged")
    if bytes(data[end - 4 : end]) != _masked_crc(payload):
        raise ValueError("the record does not have its checksum")
    return payload


# --- tf.train.Example ---------------------------------------------------------------------------


def example(features: dict) -> bytes:
    """A serialized tf.train.Example, its features sorted by name.

    Args:
        features: name -> list of bytes, float32 [N] or int64 [N].
    """
    parts = []
    for name in sorted(features):
        parts += _entry(name, features[name])
    return b"".join((_head(1, sum(map(len, parts))), *parts))


def _entry(name, values) -> list[bytes]:
    """In parts, so that images are copied once. Feature is one of bytes_list = 1, float_list = 2, int64_list = 3."""
    if not isinstance(values, list):
        feature = [_numbers(values)]
    elif sum(map(len, values)) > _LARGE:
        fields = [part for value in values for part in (_head(1, len(value)), value)]
        feature = [_head(1, sum(map(len, fields))), *fields]
    else:
        feature = [_field(1, b"".join([_field(1, value) for value in values]))]
    size, key = sum(map(len, feature)), _text(name)
    head = _head(2, size)
    return [_head(1, len(key) + len(head) + size) + key + head, *feature]


def _numbers(values) -> bytes:
    """Numbers are packed."""
    if values.dtype.kind == "f":
        kind, packed = 2, values.astype("<f4", copy=False).tobytes()
    else:
        kind, packed = 3, b"".join(map(_varint, values.tolist()))
    return _field(kind, _field(1, packed) if packed else b"")


@functools.lru_cache(256)
def _text(name) -> bytes:
    return _field(1, name.encode())


def _field(number, content) -> bytes:
    """A length-delimited field of the protocol buffer wire format."""
    return _head(number, len(content)) + content


@functools.lru_cache(1 << 12)
def _head(number, size) -> bytes:
    return bytes((number << 3 | 2,)) + _varint(size)


@functools.lru_cache(1 << 16)  # lengths and labels come again and again
def _varint(value) -> bytes:
    value &= (1 << 64) - 1  # negative numbers as two's complement
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def parse_example(data) -> dict:
    """What `example` wrote, or any tf.train.Example.

    Args:
        data: bytes or a memoryview; only what is looked at is read, so a large file may be mapped into memory.
    Returns:
        name -> list of memoryviews, float32 [N] or int64 [N].
    Raises:
        ValueError: it is no such message.
    """
    features = {}
    for _, entries in _fields(memoryview(data)):
        for _, entry in _fields(entries):
            parts = dict(_fields(entry))
            features[bytes(parts[1]).decode()] = _values(parts.get(2, memoryview(b"")))
    return features


def _values(feature):
    for kind, content in _fields(feature):
        parts = [part for _, part in _fields(content)]
        if kind == 1:
            return parts
        packed = b"".join(parts)
        if kind == 2:
            return np.frombuffer(packed, "<f4")
        return np.array(list(_varints(packed)), np.uint64).astype(np.int64)
    return []


def _fields(message):
    """(number, content) of the length-delimited fields of a message; this schema has no others."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        length, at = _read_varint(message, at)
        if tag & 7 != 2 or at + length > len(message):
            raise ValueError("the record holds no tf.train.Example")
        yield tag >> 3, message[at : at + length]
        at += length


def _varints(packed):
    at = 0
    while at < len(packed):
        value, at = _read_varint(packed, at)
        yield value


def _read_varint(data, at):
    value = shift = 0
    while at < len(data) and shift < 64:
        octet = data[at]
        value |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if octet < 0x80:
            return value, at
    raise ValueError("the record holds no tf.train.Example")
