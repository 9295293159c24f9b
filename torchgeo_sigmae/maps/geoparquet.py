# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Patches as rows of a GeoParquet."""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from pyproj import CRS
from rasterio.windows import Window

from .._files import atomic_path

__all__ = ('require_pyarrow', 'write_geoparquet')


def require_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow, which nothing else needs.

    Returns:
        pyarrow, and its module for Parquet.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            'GeoParquet takes pyarrow: pip install "torchgeo-sigmae[parquet]".'
        ) from error
    return pyarrow, parquet


def write_geoparquet(
    target: Path,
    parts: Iterable[tuple[Window, np.ndarray]],
    transform: Affine,
    crs: CRS | None,
    tags: Mapping[str, str],
) -> None:
    """Write a row for every patch that has values, whole or not at all.

    Args:
        target: The file to be.
        parts: Windows in patches, and values of their patches ``(D, h, w)``, NaN where
            there are none.
        transform: From columns and rows of patches to coordinates.
        crs: Coordinate reference system; None without georeference.
        tags: Further metadata.

    Raises:
        ImportError: If pyarrow is not installed.
        OSError: If it cannot be written; nothing is left then under that name.
    """
    pa, parquet = require_pyarrow()
    # https://geoparquet.org/releases/v1.0.0
    column: dict[str, Any] = {
        'encoding': 'WKB',
        'geometry_types': ['Polygon'],
        'crs': None if crs is None else crs.to_json_dict(),
    }
    geo = {
        'version': '1.0.0',
        'primary_column': 'geometry',
        'columns': {'geometry': column},
    }
    writer = None
    with atomic_path(target) as part, ExitStack() as opened:
        for window, values in parts:
            rows, columns = np.nonzero(np.isfinite(values[0]))
            flat = pa.array(values[:, rows, columns].T.ravel())
            rows, columns = rows + window.row_off, columns + window.col_off
            corners = [
                np.stack(transform @ (columns + x, rows + y), -1)
                for x, y in ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))
            ]
            footprints = shapely.polygons(np.stack(corners, axis=1))
            table = pa.table(
                {
                    'geometry': pa.array(shapely.to_wkb(footprints), pa.binary()),
                    'row': pa.array(rows, pa.int32()),
                    'column': pa.array(columns, pa.int32()),
                    'embedding': pa.FixedSizeListArray.from_arrays(flat, len(values)),
                },
                metadata={'geo': json.dumps(geo), **tags},
            )
            if writer is None:
                writer = parquet.ParquetWriter(part, table.schema)
                opened.enter_context(writer)
            writer.write_table(table)
