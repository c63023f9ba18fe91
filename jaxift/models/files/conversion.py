"""Converts blocks of weights between float types, and sees what is not finite."""

import ml_dtypes
import numpy as np

_BFLOAT16, _FLOAT16, _FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
_INFINITY = {  # bits of infinity without the sign
    _BFLOAT16: 0x7F80,
    _FLOAT16: 0x7C00,
    _FLOAT32: 0x7F800000,
    np.dtype(np.float64): 0x7FF0000000000000,
}


def is_finite(block: np.ndarray) -> bool:
    """Whether a contiguous block of floats holds neither NaN nor infinity.

    Two reductions over integers: several times faster than `np.isfinite`, which does not know bfloat16's bits.
    """
    if not block.size:
        return True
    infinity, bits = _INFINITY[block.dtype], 8 * block.itemsize
    largest = int(block.view(f"i{block.itemsize}").max())  # of the numbers without sign
    lowest = int(block.view(f"u{block.itemsize}").max())  # of those with it, if there are any
    return largest < infinity and lowest < infinity + (1 << (bits - 1))


def convert(block: np.ndarray, out: np.ndarray) -> None:
    """Writes a contiguous block of finite floats into one of another float type, rounded as `astype` rounds.

    Into memory that is at hand, since fresh memory for every block would cost more than the conversion.
    """
    if block.dtype == _BFLOAT16 and out.dtype == _FLOAT32:
        # NumPy's own shift runs beside other threads; ml_dtypes' conversion does not
        np.left_shift(block.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)
    elif block.dtype == _FLOAT16 and out.dtype == _FLOAT32:
        _widen(block, out)
    elif block.dtype == _FLOAT16:
        wide = np.empty(block.shape, np.float32)
        _widen(block, wide)
        np.copyto(out, wide, casting="unsafe")
    else:
        with np.errstate(over="ignore"):  # the caller looks for infinity in what comes out
            np.copyto(out, block, casting="unsafe")


def _widen(block: np.ndarray, out: np.ndarray) -> None:
    """float16 to float32, twice as fast as NumPy: the exponent's bias is put right by a product."""
    bits = out.view(np.int32)
    np.copyto(bits, block.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70000001), out=bits)  # copies of the sign bit
    np.multiply(out, np.float32(2.0**112), out=out)
