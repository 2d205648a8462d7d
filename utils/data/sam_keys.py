"""Keys of SAM's cached embeddings: hashes of everything that their values depend on. See sam_cache.py."""

from __future__ import annotations

import json
import zlib
from hashlib import blake2b

import cv2
import numpy as np
import torch
from torch import Tensor

from model.decoders.sam import SamSegmenter

VERSION = 1  # of the cache format; entries of another version are not found
DIGEST_SIZE = 20  # bytes; 40 hexadecimal digits in a file name


def encoder_key(sam: SamSegmenter) -> str:
    """The key of everything that an embedding depends on besides the image: weights, sizes and number format.

    Takes about a second per gigabyte, in every process.
    """
    digest = blake2b(digest_size=DIGEST_SIZE)
    _add(digest, VERSION, sam.settings.to_dict())
    for name, value in sorted(sam.image_encoder.state_dict().items()):
        _add(digest, name, str(value.dtype), list(value.shape))
        digest.update(_bytes_of(value))
    assert not any(value.requires_grad for value in sam.image_encoder.parameters()), "a training encoder"
    # A parameter that ZeRO-3 has divided is empty.
    assert all(value.numel() for value in sam.image_encoder.parameters()), "weights are not whole"
    return digest.hexdigest()


def image_key(image: np.ndarray, image_size: int, *, fast_resize: bool = False) -> str:
    """The key of SAM's input: the decoded image and how it is resized.

    image: (height, width, 3) uint8 RGB, original size; `image_size` is SAM's longest side. The result of a fast
    resize differs by a grey level between releases of its libraries, so that their versions are part of the key.
    """
    resize = [cv2.__version__, torch.__version__] if fast_resize else "exact"
    digest = blake2b(digest_size=DIGEST_SIZE)
    _add(digest, VERSION, image_size, resize, list(image.shape))
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def checksum(tensor: Tensor) -> int:
    """The CRC-32 of a tensor's bytes."""
    return zlib.crc32(_bytes_of(tensor))


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's memory; through uint8, as NumPy has no bfloat16."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _add(digest: blake2b, *values: object) -> None:
    """Hash plain values in an unambiguous form."""
    digest.update(json.dumps(values, sort_keys=True).encode() + b"\0")
