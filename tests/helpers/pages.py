# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What a page of ``plotting.view`` holds."""

import base64
import io
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def read_page(path: Path) -> dict[str, Any]:
    """The data of a page."""
    (text,) = re.findall(
        r'<script id="data" type="application/json">(.*)</script>', path.read_text()
    )
    data: dict[str, Any] = json.loads(text)
    return data


def picture(text: str) -> np.ndarray:
    """A picture ``(H, W, 3)``."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))


def levels(text: str, shape: tuple[int, ...], highest: float = 1) -> np.ndarray:
    """Values of an array of levels; NaN where there is none."""
    stored = unpacked(text, np.uint8, shape)
    return np.where(stored == 255, np.nan, stored / 254 * highest)


def unpacked(text: str, kind: type, shape: tuple[int, ...]) -> np.ndarray:
    """An array of bytes."""
    content = zlib.decompress(base64.b64decode(text))
    return np.frombuffer(content, kind).reshape(shape)


def cosines(stored: np.ndarray, row: int, column: int) -> np.ndarray:
    """Similarity of all vectors ``(h, w, D)`` to one."""
    vectors = stored.astype(float)
    with np.errstate(invalid='ignore'):
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors @ vectors[row, column]
