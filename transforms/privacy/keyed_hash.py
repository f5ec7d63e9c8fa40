"""A keyed hash of many texts at once: AES-CMAC (NIST SP 800-38B, RFC 4493), one block of all texts at a time.

A hash function that is called text by text takes longer than all other steps of ingest together.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BYTES = 16
"""Of a hash."""

_MORE = BYTES + 1
"""What stands for a length above one block."""

_BLOCK = np.dtype(f"V{BYTES}")
"""NumPy gathers blocks as wholes three times as fast as it gathers rows of bytes."""

_TEXTS_AT_ONCE = 1 << 15
"""So that what is in between stays in the processor's cache."""


def keyed_hash(texts: pa.StringArray, key: bytes) -> np.ndarray:
    """Returns the AES-CMAC of each text's UTF-8 bytes, (n, 2) uint64, little-endian words of its 16 bytes.

    Args:
        texts: without nulls.
        key: of 16, 24 or 32 bytes.
    """
    # In electronic code book mode each block is encrypted alone: here, one of each text, chained below as CMAC says.
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305

    def encrypt(blocks: np.ndarray) -> np.ndarray:
        return np.frombuffer(encryptor.update(blocks.tobytes()), _BLOCK)

    mask, pad = _endings(encrypt)
    texts = texts.cast(pa.large_string())
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets or bytes(8), np.int64)[texts.offset :][: len(texts) + 1]
    # Zeros behind, so that a block may be read past the last text.
    content = np.concatenate([np.frombuffer(data or b"", np.uint8), np.zeros(BYTES, np.uint8)])
    block_at = np.ndarray((len(content) - BYTES + 1,), _BLOCK, content, strides=(1,))
    hashes = np.zeros(len(texts), _BLOCK)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        at, left = ends[start:-1][:_TEXTS_AT_ONCE], np.diff(ends[start : start + _TEXTS_AT_ONCE + 1])
        rows: slice | np.ndarray = slice(start, start + len(at))
        while len(at):
            length = np.minimum(left, _MORE)
            blocks = _words(block_at[at])
            blocks &= _words(mask[length])
            blocks ^= _words(pad[length])
            blocks ^= _words(hashes[rows])
            hashes[rows] = encrypt(blocks)
            more = np.flatnonzero(left > BYTES)
            rows = start + more if isinstance(rows, slice) else rows[more]
            at, left = at[more] + BYTES, left[more] - BYTES
    return _words(hashes).reshape(-1, 2)


def _words(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<u8")


def _endings(encrypt: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """By what is left of a text, 0 to 16 bytes or more: which bytes of the block are its own, and what is added to them.

    A last block that is full gets the subkey K1; any other the bit that ends the text, and K2 (RFC 4493, section 2.4).
    """
    first = _double(int.from_bytes(encrypt(np.zeros(1, _BLOCK).view(np.uint8)).tobytes()))
    k1, k2 = (np.frombuffer(key.to_bytes(BYTES), np.uint8) for key in (first, _double(first)))
    mask = np.full((_MORE + 1, BYTES), 255, np.uint8)
    pad = np.zeros((_MORE + 1, BYTES), np.uint8)
    for length in range(BYTES):
        mask[length, length:] = 0
        pad[length, length] = 0x80
        pad[length] ^= k2
    pad[BYTES] = k1
    return mask.view(_BLOCK)[:, 0], pad.view(_BLOCK)[:, 0]


def _double(element: int) -> int:
    """Multiplies by x in GF(2^128) with the polynomial of section 2.3."""
    return (element << 1) ^ ((1 << 8 * BYTES | 0x87) if element >> (8 * BYTES - 1) else 0)
