# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo-sigmae demo``: the whole story in minutes on two cores."""

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchgeo.datamodules import NonGeoDataModule

    from ..tasks import SIGMAETask

__all__ = ('demo',)

_BATCH = 32


def demo(
    *, output: Path = Path('outputs/demo'), steps: int = 400, data: Path | None = None
) -> list[Path]:
    """Pretrain a small encoder on synthetic chips or your scenes, in minutes.

    Pictures, a checkpoint and the encoder are written.

    Args:
        output: Folder for reconstruction.png, indices.png, saliency.png, mask.png,
            curves.png, last.ckpt and encoder.pth.
        steps: Number of optimizer steps.
        data: Folder of Sentinel-2 GeoTIFF scenes in digital numbers, whose band
            descriptions name the bands; synthetic chips by default.
    """
    import torch
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.loggers import CSVLogger

    from .._compat import TORCHGEO_VERSION
    from ..tasks import SIGMAETask

    seed_everything(0, verbose=False)
    per_epoch = min(steps, 8)
    datamodule = _datamodule(output, data, per_epoch)
    task = SIGMAETask(
        model='sigmae_vit_tiny_patch8',
        size=64,
        mask_ratio=0.75,
        decoder_dim=128,
        decoder_depth=2,
        decoder_num_heads=4,
        lr=1e-3,
    )
    epochs = math.ceil(steps / per_epoch)
    # The curves of this run, not of an earlier one in the same folder.
    shutil.rmtree(output / 'log', ignore_errors=True)
    trainer = Trainer(
        accelerator='cpu',
        max_steps=steps,
        max_epochs=epochs,
        check_val_every_n_epoch=max(epochs // 5, 1),
        num_sanity_val_steps=0,
        log_every_n_steps=max(min(steps // 40, per_epoch), 1),
        logger=CSVLogger(output, name='log', version=0),
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=output,
    )
    before = trainer.validate(task, datamodule, verbose=False)[0]
    trainer.fit(task, datamodule)
    after = trainer.validate(task, datamodule, verbose=False)[0]

    trainer.save_checkpoint(output / 'last.ckpt', weights_only=False)
    task.export(output / 'encoder.pth')
    picture = _draw(task, datamodule, output)
    print(
        f'Validation loss before {before["val_loss"]:.4f}, '
        f'after {after["val_loss"]:.4f} (mean of the visible tokens '
        f'{after["val_baseline_loss"]:.4f}).'
    )
    print(f'TorchGeo {TORCHGEO_VERSION}, torch {torch.__version__}.')
    return [picture, output / 'last.ckpt', output / 'encoder.pth']


def _datamodule(output: Path, data: Path | None, per_epoch: int) -> 'NonGeoDataModule':
    """Synthetic chips, or scenes cut into as many."""
    from ..datamodules import SceneDataModule
    from ..datasets import SyntheticSentinel2DataModule

    if data is None:
        return SyntheticSentinel2DataModule(root=output / 'data', batch_size=_BATCH)
    datamodule = SceneDataModule(
        data, size=64, batch_size=_BATCH, length=_BATCH * per_epoch, val_length=64
    )
    try:
        datamodule.setup('fit')
    except ValueError as error:
        if not str(error).startswith('val_fraction'):
            raise
        raise ValueError(
            f'data: the scenes under {data} show one place, too small to validate on a '
            'part of it: chips of 64 px and a gap between them need about 200 x 200 '
            'px. Add a larger scene, or scenes of other places.'
        ) from error
    return datamodule


def _draw(task: 'SIGMAETask', datamodule: 'NonGeoDataModule', output: Path) -> Path:
    """Draw what the encoder learned, from validation chips."""
    import torch

    from .._files import write_figure
    from ..masking import sample_noise
    from ..patches import valid_patches
    from ..plotting import plot_indices, plot_mask, plot_saliency, plot_training
    from ..transforms import patch_statistics, spectral_indices

    chips = datamodule.val_dataset
    assert chips is not None
    count = len(chips)  # type: ignore[arg-type]
    drawn = torch.linspace(0, count - 1, min(count, 4)).long().tolist()
    image = torch.stack([chips[i]['image'] for i in drawn])
    prediction = task.reconstruct(image)
    picture = output / 'reconstruction.png'
    write_figure(picture, task.plot(prediction))

    # One chip, the one with the most to see: its indices, what they make of its
    # patches, and what is hidden at the start and at the end of the curriculum.
    reflectance = prediction['image']
    best = int(reflectance.nan_to_num().flatten(2).std(dim=2).mean(dim=1).argmax())
    chip, saliency = reflectance[best], prediction['saliency'][best]
    size = task.model.patch_size
    valid = chip.isfinite().all(dim=0)
    indices = spectral_indices(chip, task.bands)
    richness, heterogeneity = patch_statistics(indices, size, valid)
    patches = valid_patches(valid, size)
    noise = sample_noise(0, torch.tensor([0]), saliency.numel())
    masks = {}
    for title, progress in (('Start: at random', 0.0), ('End: salient first', 1.0)):
        hidden = torch.zeros(saliency.numel(), dtype=torch.bool)
        token_mask = task.mask_schedule.mask(
            saliency.reshape(1, -1), noise, progress, patches.reshape(1, -1)
        )
        hidden[token_mask.masked[0]] = True
        masks[title] = hidden.view_as(saliency)
    figures = {
        'indices.png': plot_indices(image[best], task.bands),
        'saliency.png': plot_saliency(
            chip, saliency, task.bands, richness, heterogeneity
        ),
        'mask.png': plot_mask(chip, masks, task.bands),
        'curves.png': plot_training(output / 'log'),
    }
    for name, figure in figures.items():
        write_figure(output / name, figure)
    print(f'More pictures in {output}: {", ".join(figures)}.')
    return picture
