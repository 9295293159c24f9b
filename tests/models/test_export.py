# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders leave PyTorch with a free batch size, by torch.export and ONNX."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import torchgeo_sigmae.models  # noqa: F401

MODELS = [
    ('sigmae_vit_tiny_patch8', 10),
    ('s2mae_vit_tiny_patch8', 10),
    ('s2mae_vit_tiny_patch8', 6),
    ('satmae_vit_tiny_patch8', 10),
]


def model(name: str, channels: int, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    # Further blocks are the same graph again, and take seconds each to export.
    small = {'img_size': 32, 'num_classes': 3, 'depth': 2}
    return timm.create_model(name, in_chans=channels, **{**small, **kwargs}).eval()


@pytest.mark.parametrize(('name', 'channels'), MODELS)
@pytest.mark.parametrize('size', [32, 48])
def test_torch_export(name: str, channels: int, size: int) -> None:
    encoder = model(name, channels)
    free = {0: torch.export.Dim('batch', min=1, max=64)}
    image = torch.randn(2, channels, size, size)
    program = torch.export.export(encoder, (image,), dynamic_shapes=(free,)).module()
    for batch in (1, 2, 5):
        image = torch.randn(batch, channels, size, size)
        with torch.no_grad():
            torch.testing.assert_close(
                program(image), encoder(image), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize(('name', 'channels'), MODELS)
def test_onnx(name: str, channels: int, tmp_path: Path) -> None:
    pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    encoder = model(name, channels)
    image = torch.randn(2, channels, 32, 32)
    free = {0: torch.export.Dim('batch', min=1, max=64)}
    path = str(tmp_path / 'encoder.onnx')
    torch.onnx.export(
        encoder, (image,), path, input_names=['image'], dynamic_shapes=(free,)
    )
    session = runtime.InferenceSession(path)
    for batch in (1, 2, 5):
        image = torch.randn(batch, channels, 32, 32)
        (actual,) = session.run(None, {'image': image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(actual), encoder(image), rtol=1e-4, atol=1e-4
            )
