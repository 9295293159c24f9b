# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Write timm's ImageNet ViT-S/16 as an encoder of red, green and blue, patch 8.

timm resizes the patch embedding as in FlexiViT (arXiv 2212.08013); our encoder resizes
the positions. Needs: the network. Takes: seconds.

    python examples/comparison/imagenet_vit.py OUTPUT.pth
"""

import argparse
from pathlib import Path

import timm
from timm.layers import resample_patch_embed

from torchgeo_sigmae.models import build_encoder
from torchgeo_sigmae.weights import Weights, write_weights

NAME = 'sigmae_vit_small_patch8'


def main(output: Path) -> None:
    """Download the weights and write the file.

    Args:
        output: The encoder file.
    """
    vit = timm.create_model('vit_small_patch16_224.augreg_in1k', pretrained=True)
    state = {k: v for k, v in vit.state_dict().items() if not k.startswith('head.')}
    projection = 'patch_embed.proj.weight'
    state[projection] = resample_patch_embed(state[projection], [8, 8])
    encoder = build_encoder(NAME, 3)
    encoder.load_state_dict(state)
    info = {
        'model': NAME,
        'in_channels': 3,
        'bands': ['B04', 'B03', 'B02'],
        'sensor': 'sentinel2',
        'size': encoder.patch_embed.img_size[0],
        'ssl_method': 'supervised, ImageNet-1k (vit_small_patch16_224.augreg_in1k)',
    }
    write_weights(Weights(encoder.state_dict(), info=info), output)
    print(f'Wrote {output}.')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('output', type=Path)
    main(parser.parse_args().output)
