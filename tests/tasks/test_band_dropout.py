# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from helpers.training import SMALL, quiet_trainer
from torchgeo_sigmae import SIGMAETask
from torchgeo_sigmae.masking import band_mask, sample_noise
from torchgeo_sigmae.tasks.settings import BatchSpec
from torchgeo_sigmae.tasks.token_batch import hide_bands

MODELS = ('sigmae_vit_tiny_patch8', 's2mae_vit_tiny_patch8', 'satmae_vit_tiny_patch8')


@given(seed=st.integers(0, 2**31), bands=st.integers(2, 13), share=st.floats(0.5, 0.99))
def test_half_of_the_samples_keep_all_bands(
    seed: int, bands: int, share: float
) -> None:
    noise = sample_noise(seed, torch.arange(4000), 2 + bands)
    hidden = band_mask(noise, share).sum(dim=1)
    most = min(int(share * bands), bands - 1)
    assert hidden.max() == most
    assert abs((hidden == 0).float().mean() - 0.5) < 0.05
    # Every number of hidden bands is as likely, and so is every band.
    counts = torch.bincount(hidden, minlength=most + 1)[1:].float() / len(hidden)
    assert (counts - 0.5 / most).abs().max() < 0.05
    by_band = band_mask(noise, share).float().mean(dim=0)
    assert by_band.max() - by_band.min() < 0.08


def make_task(model: str, **settings: Any) -> SIGMAETask:
    batch = BatchSpec(mean=0.0, std=1.0, scale=1.0, normalize=True)
    fixed = {'masking': 'random', 'transform': nn.Identity(), 'batch': batch}
    return SIGMAETask(**{**SMALL, 'model': model, **fixed, **settings})


@pytest.mark.usefixtures('narrow_models')
@pytest.mark.parametrize('model', MODELS)
def test_hidden_bands_are_zero_in_the_input_alone(model: str) -> None:
    task = make_task(model)
    image = torch.rand(3, 10, 32, 32) + 1
    tokens = task._prepare(task.on_before_batch_transfer({'image': image}, 0))
    hidden = torch.zeros(3, 10, dtype=torch.bool)
    hidden[1, [0, 4, 9]] = True
    layout, grid = task.model.layout, task.model.grid(image)
    seen = layout.unpatchify(hide_bands(tokens, hidden), grid)
    assert torch.equal(seen, image * ~hidden[:, :, None, None])
    assert torch.equal(layout.unpatchify(tokens.patches, grid), image)


class Inputs(nn.Module):
    """Record what the model gets."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        model.register_forward_pre_hook(
            lambda module, args: self.seen.append(args[3].clone())
        )


@pytest.mark.usefixtures('narrow_models')
def test_bands_are_dropped_in_training_alone(tmp_path: Path) -> None:
    task = make_task(MODELS[0], band_dropout=0.6, seed=3)
    inputs = Inputs(task.model)
    loader = DataLoader([{'image': torch.rand(10, 32, 32) + 1} for _ in range(64)], 16)
    trainer = quiet_trainer(tmp_path, max_steps=4, num_sanity_val_steps=0)
    trainer.fit(task, loader, loader)
    dropped = [
        (seen.unflatten(-1, (10, -1)) == 0).all(dim=(1, 3)).sum(dim=1)
        for seen in inputs.seen
    ]
    training, validation = torch.cat(dropped[:4]), torch.cat(dropped[4:])
    assert 20 < (training > 0).sum() < 44
    assert training.max() == 6
    assert not validation.any()
    assert task.encoder_record['band_dropout'] == 0.6


@pytest.mark.parametrize('share', [-0.1, 1.0, 0.05])
def test_impossible_band_dropout_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r'band_dropout: .* of 10 bands'):
        make_task(MODELS[0], band_dropout=share)
