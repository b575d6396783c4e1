"""Reader of the IDX format of MNIST (http://yann.lecun.com/exdb/mnist): magic number, sizes, then bytes."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas.core.errors import InputError

UNSIGNED_BYTES = 8


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or `.gz`, as a uint8 tensor of its shape.

    Raises:
        InputError: naming the file, when it cannot be read, is damaged, or its length contradicts its header.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:  # gzip's BadGzipFile is an OSError
        raise InputError(f"{path}: cannot be read as an idx file ({error}); fetch it again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTES:
        raise InputError(
            f"{path}: not an idx file of bytes, it starts with {content[:4].hex() or 'nothing'}; fetch it again"
        )
    header = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:header], dtype=">u4").tolist() if len(content) >= header else []
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected or not shape:
        raise InputError(
            f"{path}: {len(content)} bytes, but its header promises {expected} (shape {shape}); fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy())
