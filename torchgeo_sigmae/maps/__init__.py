# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Maps of whole scenes: saliency, embeddings, similarity, reconstructions."""

from .embedding import embedding_map
from .read import crop, dataset_raster, open_raster
from .reconstruction import reconstruction_map
from .regions import read_aoi, salient_regions, write_regions
from .saliency import saliency_map
from .similarity import similarity_map
from .view import view_scene

__all__ = (
    'crop',
    'dataset_raster',
    'embedding_map',
    'open_raster',
    'read_aoi',
    'reconstruction_map',
    'saliency_map',
    'salient_regions',
    'similarity_map',
    'view_scene',
    'write_regions',
)
