# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""terratorch's factory builds our encoders; it needs TorchGeo below 0.10, see nox."""

from pathlib import Path

import pytest
import torch

from helpers.training import small_task


@pytest.mark.parametrize('family', ['sigmae', 's2mae', 'satmae'])
def test_the_factory_takes_an_exported_folder(family: str, tmp_path: Path) -> None:
    registry = pytest.importorskip('terratorch.registry')
    task = small_task(family, mean=[1000.0] * 10, std=[500.0] * 10)
    task.export(tmp_path / 'encoder')
    factory = registry.MODEL_FACTORY_REGISTRY.build('EncoderDecoderFactory')
    model = factory.build_model(
        task='segmentation',
        backbone=f'timm_local-dir:{tmp_path / "encoder"}',
        backbone_pretrained=True,
        backbone_in_chans=10,
        decoder='FCNDecoder',
        num_classes=3,
    )
    image = torch.randn(2, 10, 32, 32)
    assert model.eval()(image).output.shape == (2, 3, 32, 32)
    backbone = model.encoder.state_dict()
    expected = task.model.encoder.state_dict()['blocks.0.mlp.fc1.weight']
    (key,) = [key for key in backbone if key.endswith('blocks.0.mlp.fc1.weight')]
    assert torch.equal(backbone[key], expected)
