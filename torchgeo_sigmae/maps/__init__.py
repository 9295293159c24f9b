# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of whole scenes: saliency, embeddings, reconstructions."""

from .dataset import dataset_raster
from .embedding import embedding_map
from .raster import Raster, open_raster
from .reconstruction import reconstruction_map
from .regions import read_area, salient_regions, write_regions
from .saliency import saliency_map
from .similar import similar_map

__all__ = (
    'Raster',
    'dataset_raster',
    'embedding_map',
    'open_raster',
    'read_area',
    'reconstruction_map',
    'saliency_map',
    'salient_regions',
    'similar_map',
    'write_regions',
)
