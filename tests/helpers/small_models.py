# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Our encoders, two blocks deep and 16 wide: ``{sigmae,s2mae,satmae}_vit_test_patch8``.

Importing this module registers them with timm. Files of weights under
``tests/data`` are for these models.
"""

from typing import Any

from timm.models import build_model_with_cfg, register_model

from torchgeo_sigmae.models import S2MAEViT, SatMAEViT, SIGMAEViT

SMALL = {
    'patch_size': 8, 'img_size': 32, 'in_chans': 10, 'embed_dim': 16, 'depth': 2,
    'num_heads': 2, 'global_pool': 'avg', 'fc_norm': False, 'dynamic_img_size': True,
}  # fmt: skip


@register_model
def sigmae_vit_test_patch8(pretrained: bool = False, **kwargs: Any) -> SIGMAEViT:
    return build_model_with_cfg(
        SIGMAEViT, 'sigmae_vit_test_patch8', pretrained, **{**SMALL, **kwargs}
    )


@register_model
def s2mae_vit_test_patch8(pretrained: bool = False, **kwargs: Any) -> S2MAEViT:
    return build_model_with_cfg(
        S2MAEViT, 's2mae_vit_test_patch8', pretrained, **{**SMALL, **kwargs}
    )


@register_model
def satmae_vit_test_patch8(pretrained: bool = False, **kwargs: Any) -> SatMAEViT:
    return build_model_with_cfg(
        SatMAEViT, 'satmae_vit_test_patch8', pretrained, **{**SMALL, **kwargs}
    )
