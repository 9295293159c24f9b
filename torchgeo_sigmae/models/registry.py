# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Our encoders under their names: importing this module registers them with timm."""

from typing import Any

from timm.models import VisionTransformer, build_model_with_cfg, register_model
from timm.models.vision_transformer import checkpoint_filter_fn

from .encoder import SIGMAEViT

# A list, because timm's register_model appends the names to it.
__all__: list[str] = []

#: Default image side by patch size: 12 x 12 and 14 x 14 tokens.
_IMAGE_SIZE = {8: 96, 16: 224}

_WIDTHS: dict[str, dict[str, int]] = {
    'tiny': {'embed_dim': 192, 'depth': 12, 'num_heads': 3},
    'small': {'embed_dim': 384, 'depth': 12, 'num_heads': 6},
    'base': {'embed_dim': 768, 'depth': 12, 'num_heads': 12},
    'large': {'embed_dim': 1024, 'depth': 24, 'num_heads': 16},
}


def vit_arguments(variant: str, patch_size: int) -> dict[str, Any]:
    """Arguments of :class:`~.encoder.SIGMAEViT` behind one of our names.

    Args:
        variant: ``tiny``, ``small``, ``base`` or ``large``.
        patch_size: Side of a patch in pixels, 8 or 16.

    Returns:
        The arguments, for ten bands.
    """
    return {
        'patch_size': patch_size,
        'img_size': _IMAGE_SIZE[patch_size],
        'in_chans': 10,
        # The feature that is probed is the one that is fine-tuned: the mean of the
        # normalised patch tokens, with no second norm in front of the head.
        'global_pool': 'avg',
        'fc_norm': False,
        'dynamic_img_size': True,
        **_WIDTHS[variant],
    }


def _create(
    variant: str, patch_size: int, pretrained: bool, **kwargs: Any
) -> VisionTransformer:
    """Build one of our registered models through timm's builder; *kwargs* override."""
    model: VisionTransformer = build_model_with_cfg(
        SIGMAEViT,
        f'sigmae_vit_{variant}_patch{patch_size}',
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={'out_indices': 3, 'feature_cls': 'getter'},
        **{**vit_arguments(variant, patch_size), **kwargs},
    )
    return model


def _config(patch_size: int) -> dict[str, Any]:
    """Write timm's default configuration of one of our models."""
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


#: Our names, each with its variant and its patch size.
NAMES: dict[str, tuple[str, int]] = {
    f'sigmae_vit_{variant}_patch{patch_size}': (variant, patch_size)
    for variant in _WIDTHS
    for patch_size in _IMAGE_SIZE
}

default_cfgs = {name: _config(patch_size) for name, (_, patch_size) in NAMES.items()}


@register_model
def sigmae_vit_tiny_patch8(pretrained: bool = False, **kwargs: Any) -> Any:
    """ViT-Ti/8, 10 bands, 96 px by default."""
    return _create('tiny', 8, pretrained, **kwargs)


@register_model
def sigmae_vit_tiny_patch16(pretrained: bool = False, **kwargs: Any) -> Any:
    """ViT-Ti/16, 10 bands, 224 px by default."""
    return _create('tiny', 16, pretrained, **kwargs)


@register_model
def sigmae_vit_small_patch8(pretrained: bool = False, **kwargs: Any) -> Any:
    """ViT-S/8, 10 bands, 96 px by default."""
    return _create('small', 8, pretrained, **kwargs)


@register_model
def sigmae_vit_small_patch16(pretrained: bool = False, **kwargs: Any) -> Any:
    """ViT-S/16, 10 bands, 224 px by default."""
    return _create('small', 16, pretrained, **kwargs)


@register_model
def sigmae_vit_base_patch8(pretrained: bool = False, **kwargs: Any) -> Any:
    """ViT-B/8, 10 bands, 96 px by default."""
    return _create('base', 8, pretrained, **kwargs)


@register_model
def sigmae_vit_base_patch16(pretrained: bool = False, **kwargs: Any) -> Any:
    """ViT-B/16, 10 bands, 224 px by default."""
    return _create('base', 16, pretrained, **kwargs)


@register_model
def sigmae_vit_large_patch8(pretrained: bool = False, **kwargs: Any) -> Any:
    """ViT-L/8, 10 bands, 96 px by default."""
    return _create('large', 8, pretrained, **kwargs)


@register_model
def sigmae_vit_large_patch16(pretrained: bool = False, **kwargs: Any) -> Any:
    """ViT-L/16, 10 bands, 224 px by default."""
    return _create('large', 16, pretrained, **kwargs)
