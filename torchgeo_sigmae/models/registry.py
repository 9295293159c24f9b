# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Our encoders under their names: importing this module registers them with timm."""

from typing import Any, NamedTuple

from timm.models import build_model_with_cfg, register_model

from .encoder import SIGMAEViT
from .spectral import S2MAEViT, SatMAEViT

#: Default image side by patch size: 12 x 12 and 14 x 14 tokens.
_IMAGE_SIZE = {8: 96, 16: 224}

_WIDTHS: dict[str, dict[str, int]] = {
    'tiny': {'embed_dim': 192, 'depth': 12, 'num_heads': 3},
    'small': {'embed_dim': 384, 'depth': 12, 'num_heads': 6},
    'base': {'embed_dim': 768, 'depth': 12, 'num_heads': 12},
    'large': {'embed_dim': 1024, 'depth': 24, 'num_heads': 16},
}


class Architecture(NamedTuple):
    """The encoder behind one of our names: class, variant, patch size in pixels."""

    encoder: type[SIGMAEViT]
    variant: str
    patch_size: int

    def arguments(self) -> dict[str, Any]:
        """Arguments of the class, for ten bands."""
        return {
            'patch_size': self.patch_size,
            'img_size': _IMAGE_SIZE[self.patch_size],
            'in_chans': 10,
            # Probing and fine-tuning read one feature: the mean of the normalized
            # patch tokens, without a second norm in front of the head.
            'global_pool': 'avg',
            'fc_norm': False,
            'dynamic_img_size': True,
            **_WIDTHS[self.variant],
        }


def _config(patch_size: int) -> dict[str, Any]:
    """Default configuration of one of our models, for timm."""
    size = _IMAGE_SIZE[patch_size]
    return {
        'url': '',
        'num_classes': 1000,
        'input_size': (10, size, size),
        'pool_size': None,
        'crop_pct': 1.0,
        'interpolation': 'bicubic',
        'mean': (0.0,) * 10,
        'std': (1.0,) * 10,
        'first_conv': 'patch_embed.proj',
        'classifier': 'head',
        'license': 'mit',
    }


#: Our names and their encoders.
NAMES: dict[str, Architecture] = {
    f'{family}_vit_{variant}_patch{patch_size}': Architecture(
        encoder, variant, patch_size
    )
    for family, encoder, patch_sizes in (
        ('sigmae', SIGMAEViT, (8, 16)),
        # S2MAE's slides compare both patch sizes.
        ('s2mae', S2MAEViT, (8, 16)),
        ('satmae', SatMAEViT, (8,)),
    )
    for variant in _WIDTHS
    for patch_size in patch_sizes
}

default_cfgs = {
    name: _config(architecture.patch_size) for name, architecture in NAMES.items()
}


def _register(name: str, architecture: Architecture) -> None:
    """Register a name with timm, whose builders are functions of that name."""

    def build(pretrained: bool = False, **kwargs: Any) -> SIGMAEViT:
        return build_model_with_cfg(
            architecture.encoder,
            name,
            pretrained,
            feature_cfg={'out_indices': 3, 'feature_cls': 'getter'},
            **{**architecture.arguments(), **kwargs},
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = (
        f'{architecture.encoder.__name__}, {architecture.variant}, patches of '
        f'{architecture.patch_size} pixels, 10 bands.'
    )
    register_model(build)


for _name, _architecture in NAMES.items():
    _register(_name, _architecture)

# Down here, because timm appends the names of builders to the list of their module.
__all__ = ('NAMES', 'Architecture')
