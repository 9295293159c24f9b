# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What our pages refer to in other projects' documentation.

Sphinx downloads an inventory of every project it points to. A build without a network
would then have no targets, and warnings are errors here. So the few objects we name are
listed in this file, and inventories of them are written at the start of a build. With
``SIGMAE_DOCS_ONLINE=1`` the projects' own inventories are taken instead: a name that
went away there is then an error.
"""

from pathlib import Path

from sphobjinv import DataObjStr, Inventory, compress, writebytes

__all__ = ('ALIASES', 'INVENTORIES', 'UNDOCUMENTED', 'write_inventories')

#: Project: address of its documentation, and page by object ('$': the object's name).
INVENTORIES: dict[str, tuple[str, dict[str, str]]] = {
    'python': (
        'https://docs.python.org/3/',
        {
            'class argparse.ArgumentParser': 'library/argparse.html#$',
            'class argparse.Namespace': 'library/argparse.html#$',
            'class collections.abc.Callable': 'library/collections.abc.html#$',
            'class collections.abc.Iterable': 'library/collections.abc.html#$',
            'class collections.abc.Iterator': 'library/collections.abc.html#$',
            'class collections.abc.Mapping': 'library/collections.abc.html#$',
            'class collections.abc.MutableMapping': 'library/collections.abc.html#$',
            'class collections.abc.Sequence': 'library/collections.abc.html#$',
            'class contextlib.AbstractContextManager': 'library/contextlib.html#$',
            'class os.PathLike': 'library/os.html#$',
            'class pathlib.Path': 'library/pathlib.html#$',
            'module glob': 'library/glob.html#module-$',
        },
    ),
    'geopandas': (
        'https://geopandas.org/en/stable/',
        {'class geopandas.GeoDataFrame': 'docs/reference/api/$.html#$'},
    ),
    'lightning': (
        'https://lightning.ai/docs/pytorch/stable/',
        {
            'class lightning.pytorch.core.LightningDataModule': 'api/$.html#$',
            'class lightning.pytorch.core.LightningModule': (
                'common/lightning_module.html#$'
            ),
            'class lightning.pytorch.loggers.logger.Logger': 'api/$.html#$',
            'class lightning.pytorch.trainer.trainer.Trainer': 'api/$.html#$',
        },
    ),
    'matplotlib': (
        'https://matplotlib.org/stable/',
        {'class matplotlib.figure.Figure': 'api/figure_api.html#$'},
    ),
    'numpy': (
        'https://numpy.org/doc/stable/',
        {'class numpy.ndarray': 'reference/generated/$.html#$'},
    ),
    'pyproj': (
        'https://pyproj4.github.io/pyproj/stable/',
        {'class pyproj.crs.CRS': 'api/crs/crs.html#$'},
    ),
    'rasterio': (
        'https://rasterio.readthedocs.io/en/stable/',
        {'class rasterio.windows.Window': 'api/rasterio.windows.html#$'},
    ),
    'torch': (
        'https://docs.pytorch.org/docs/stable/',
        {
            'class torch.Generator': 'generated/$.html#$',
            'class torch.Tensor': 'tensors.html#$',
            'class torch.device': 'tensor_attributes.html#$',
            'class torch.nn.Module': 'generated/$.html#$',
            'class torch.optim.AdamW': 'generated/$.html#$',
            'class torch.optim.Optimizer': 'optim.html#$',
            'class torch.optim.lr_scheduler.LRScheduler': 'generated/$.html#$',
            'class torch.optim.lr_scheduler.LambdaLR': 'generated/$.html#$',
            'class torch.optim.lr_scheduler.ReduceLROnPlateau': 'generated/$.html#$',
            'class torch.utils.data.DataLoader': 'data.html#$',
            'class torch.utils.data.Dataset': 'data.html#$',
            'function torch.load': 'generated/$.html#$',
        },
    ),
    'torchgeo': (
        'https://torchgeo.readthedocs.io/en/stable/',
        {
            'class torchgeo.datasets.BigEarthNet': 'api/datasets/bigearthnet.html#$',
            'class torchgeo.datasets.EuroSAT': 'api/datasets/eurosat.html#$',
            'class torchgeo.datasets.OSCD': 'api/datasets/oscd.html#$',
            'class torchgeo.datasets.RasterDataset': 'api/datasets.html#$',
            'module torchgeo.datasets': 'api/datasets.html#module-$',
        },
    ),
}

#: Where a class is defined: where it is documented.
ALIASES: dict[str, str] = {
    'geopandas.geodataframe.GeoDataFrame': 'geopandas.GeoDataFrame',
    'lightning.pytorch.core.datamodule.LightningDataModule': (
        'lightning.pytorch.core.LightningDataModule'
    ),
    'lightning.pytorch.core.module.LightningModule': (
        'lightning.pytorch.core.LightningModule'
    ),
    'pyproj.crs.crs.CRS': 'pyproj.crs.CRS',
    'torch._C.Generator': 'torch.Generator',
    'torch.nn.modules.module.Module': 'torch.nn.Module',
    'torch.optim.adamw.AdamW': 'torch.optim.AdamW',
    'torch.optim.optimizer.Optimizer': 'torch.optim.Optimizer',
    'torch.utils.data.dataloader.DataLoader': 'torch.utils.data.DataLoader',
    'torch.utils.data.dataset.Dataset': 'torch.utils.data.Dataset',
    'torchgeo.datasets.geo.RasterDataset': 'torchgeo.datasets.RasterDataset',
    'torchgeo_sigmae.datasets.resumable._DataModule': (
        'lightning.pytorch.core.LightningDataModule'
    ),
    'torchgeo_sigmae.transforms.bitemporal._DataModule': (
        'lightning.pytorch.core.LightningDataModule'
    ),
}

#: What has no page in its project's documentation, or none with an inventory.
UNDOCUMENTED: list[tuple[str, str]] = [
    ('py:class', 'affine.Affine'),
    ('py:class', 'jsonargparse._namespace.Namespace'),
    ('py:class', 'kornia.augmentation.container.augment.AugmentationSequential'),
    ('py:class', 'lightning.fabric.utilities.data.AttributeDict'),
    ('py:class', 'lightning.pytorch.cli.LightningArgumentParser'),
    ('py:class', 'lightning.pytorch.cli.SaveConfigCallback'),
    ('py:class', 'lightning.pytorch.utilities.types.LRSchedulerConfig'),
    ('py:class', 'lightning.pytorch.utilities.types.OptimizerConfig'),
    ('py:class', 'lightning.pytorch.utilities.types.OptimizerLRSchedulerConfig'),
    ('py:class', 'shapely.geometry.base.BaseGeometry'),
    ('py:class', 'timm.models.VisionTransformer'),
    ('py:class', 'timm.models.vision_transformer.VisionTransformer'),
    ('py:func', 'timm.create_model'),
    ('py:class', 'torchgeo_sigmae.models.pyramid._Pyramid'),
    ('py:class', 'torchmetrics.metric.Metric'),
    ('py:class', 'torchvision.models._api.WeightsEnum'),
    ('py:exc', 'DatasetNotFoundError'),
]


def write_inventories(folder: Path) -> dict[str, tuple[str, str]]:
    """Write an inventory a project.

    Args:
        folder: Where to.

    Returns:
        What ``intersphinx_mapping`` takes: by project, address and inventory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for project, (address, objects) in INVENTORIES.items():
        inventory = Inventory()
        inventory.project, inventory.version = project, ''
        for name, page in objects.items():
            role, target = name.split()
            inventory.objects.append(
                DataObjStr(
                    name=target, domain='py', role=role, priority='1',
                    uri=page.replace('$.html', f'{target}.html'), dispname='-',
                )
            )  # fmt: skip
        path = folder / f'{project}.inv'
        writebytes(path, compress(inventory.data_file()))
        mapping[project] = (address, str(path))
    return mapping
