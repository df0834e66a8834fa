"""TFRecord frames and tf.train.Example messages in plain Python and numpy.

Importing TensorFlow costs each worker process seconds and hundreds of megabytes; writing records needs only
these two small formats. The tests compare them byte by byte with TensorFlow's own.
"""

import functools
import struct

import numpy as np

FRAME_BYTES = 16  # of a record beside its payload: length, checksum of the length; checksum of the payload

# --- CRC-32C (Castagnoli, https://www.rfc-editor.org/rfc/rfc3720 appendix B.4) ------------------
# A CRC is linear: with a register of zeros, each byte contributes on its own, by its value and its distance
# from the end, and the contributions are XORed. So numpy looks them all up at once, in two steps that keep
# the tables small: bytes give a register per block, and the blocks' registers give the piece's.

_POLYNOMIAL = 0x82F63B78  # bit-reversed
_BLOCK = 256  # bytes
_PIECE = 256 * _BLOCK  # bytes


def crc32c(data: bytes) -> int:
    """The CRC-32C of some bytes."""
    register = 0xFFFFFFFF
    for start in range(0, len(data), _PIECE):
        register = _advance(register, data[start : start + _PIECE])
    return register ^ 0xFFFFFFFF


def _advance(register: int, piece: bytes) -> int:
    """The register after at most _PIECE bytes more. What is in it acts as if it were XORed into the next bytes."""
    byte_table, block_table = _tables()
    blocks = -(-len(piece) // _BLOCK)
    octets = np.zeros(blocks * _BLOCK, np.uint8)  # zeros in front leave a register of zeros as it is
    octets[octets.size - len(piece) :] = np.frombuffer(piece, np.uint8)
    carried = octets[octets.size - len(piece) :][:4]
    carried ^= np.frombuffer(register.to_bytes(4, "little"), np.uint8)[: len(carried)]
    registers = _look_up(octets.reshape(blocks, _BLOCK), byte_table)
    joined = _look_up(registers.astype("<u4").view(np.uint8)[None], block_table[-4 * blocks :])
    return int(joined[0]) ^ (register >> 8 * len(piece))


def _look_up(octets, table):
    """octets: uint8 [N, K], table: uint32 [K, 256] -> uint32 [N], the XOR over K of table[k, octets[:, k]]."""
    rows = np.arange(len(table), dtype=np.uint16 if len(table) <= 256 else np.uint32) * 256
    return np.bitwise_xor.reduce(table.reshape(-1).take(octets + rows, mode="clip"), axis=1)  # clip: no check


@functools.cache
def _tables():
    """What bytes contribute to the register at the end.

    Returns:
        uint32 [_BLOCK, 256]: byte k of a block.
        uint32 [4 * blocks a piece, 256]: byte k of the register of each block of a piece.
    """
    one_byte = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        one_byte = (one_byte >> 1) ^ (one_byte & 1) * np.uint32(_POLYNOMIAL)
    places = [one_byte]
    while len(places) < _BLOCK:
        places.insert(0, one_byte[places[0] & 0xFF] ^ (places[0] >> 8))
    byte_table = np.stack(places)
    joins = [np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None]]  # the last block's
    while len(joins) < _PIECE // _BLOCK:
        octets = joins[0].reshape(-1, 1).astype("<u4").view(np.uint8)
        joins.insert(0, _look_up(octets, byte_table[:4]).reshape(4, 256))
    return byte_table, np.concatenate(joins)


# --- frames -------------------------------------------------------------------------------------


def frame(payload: bytes) -> bytes:
    """One record as it stands in a TFRecord file: length, its checksum, payload, its checksum."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, _masked_crc(length), payload, _masked_crc(payload)))


def _masked_crc(data):
    """TFRecord's checksum: the CRC rotated by 15 bits plus a constant (tensorflow/core/lib/hash/crc32c.h)."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


# --- tf.train.Example ---------------------------------------------------------------------------


def example(features: dict) -> bytes:
    """A serialized tf.train.Example, its features sorted by name.

    Args:
        features: name -> list of bytes, float32 [N] or int64 [N].
    """
    entries = ((name.encode(), _feature(features[name])) for name in sorted(features))
    return _field(1, b"".join(_field(1, _field(1, name) + _field(2, feature)) for name, feature in entries))


def _feature(values) -> bytes:
    """Feature is one of bytes_list = 1, float_list = 2, int64_list = 3; numbers are packed."""
    if isinstance(values, list):
        return _field(1, b"".join(_field(1, value) for value in values))
    kind, packed = 2, values.astype("<f4").tobytes()
    if values.dtype.kind != "f":
        kind, packed = 3, b"".join(_varint(int(value)) for value in values)
    return _field(kind, _field(1, packed) if packed else b"")


def _field(number, payload) -> bytes:
    """A length-delimited field of the protocol buffer wire format."""
    return bytes((number << 3 | 2,)) + _varint(len(payload)) + payload


def _varint(value) -> bytes:
    value &= (1 << 64) - 1  # negative numbers as two's complement
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)
