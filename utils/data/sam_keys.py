"""Keys of SAM's cached embeddings: hashes of everything that their values depend on. See sam_cache.py."""

from __future__ import annotations

import json
import zlib
from hashlib import blake2b

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from model.decoders.base import MaskDecoder
from model.decoders.transform import LONGEST_SIDE, ImageTransform
from model.inputs import Levels

VERSION = 1  # of the cache format; entries of another version are not found
DIGEST_SIZE = 20  # bytes; 40 hexadecimal digits in a file name


def encoder_key(sam: MaskDecoder) -> str:
    """The key of everything that an embedding depends on besides the image: weights, sizes and number formats.

    Those are the dtypes of the weights and, where some are cast (--encoder_precision), that of the embeddings.
    Takes about a second per gigabyte, in every process.
    """
    digest = blake2b(digest_size=DIGEST_SIZE)
    _add(digest, VERSION, sam.settings.to_dict())
    tensors = sam.encoder_tensors()
    if any(isinstance(value, Parameter) and value.dtype != sam.embedding_dtype for value in tensors.values()):
        _add(digest, "embeddings", str(sam.embedding_dtype))
    for name, value in sorted(tensors.items()):
        assert not value.requires_grad, "a training encoder"
        assert value.numel(), "weights are not whole"  # a parameter that ZeRO-3 has divided is empty
        _add(digest, name, str(value.dtype), list(value.shape))
        digest.update(_bytes_of(value))
    return digest.hexdigest()


def image_key(image: np.ndarray, transform: ImageTransform, *, fast_resize: bool = False) -> str:
    """The key of the mask decoder's input: the decoded image and how it is resized.

    image: (height, width, 3) uint8 RGB, original size. The result of a fast resize differs by a grey level between
    releases of its libraries, so that their versions are part of the key.
    """
    resize = [cv2.__version__, torch.__version__] if fast_resize else "exact"
    kind = [] if transform.resize == LONGEST_SIDE else [transform.resize]
    digest = blake2b(digest_size=DIGEST_SIZE)
    _add(digest, VERSION, transform.side, *kind, resize, list(image.shape))
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def checksum(levels: Levels) -> int:
    """The CRC-32 of the bytes of one or more tensors, one after the other."""
    value = 0
    for level in levels:
        value = zlib.crc32(_bytes_of(level), value)
    return value


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's memory; through uint8, as NumPy has no bfloat16."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _add(digest: blake2b, *values: object) -> None:
    """Hash plain values in an unambiguous form."""
    digest.update(json.dumps(values, sort_keys=True).encode() + b"\0")
