# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The encoder: a timm VisionTransformer.

What is exported, probed and fine-tuned is a timm model with timm's keys. Only
pretraining treats it differently: it embeds and encodes the visible tokens alone, see
:func:`.encode_visible`.
"""

import difflib
import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor, nn

from .._compiled import plain_key
from .layout import TokenLayout
from .positions import sincos_2d
from .rotary import RotaryBlock, rotation

__all__ = (
    'ENCODER_POSITIONS',
    'SIGMAEViT',
    'build_encoder',
    'patch_positions',
    'prefix_tokens',
    'resample_positions',
)

#: Kinds of positions of encoders with one token per patch position.
ENCODER_POSITIONS = ('rotary', 'learnable')


class SIGMAEViT(VisionTransformer):
    """A timm VisionTransformer with rotary positions that takes weights safely.

    It differs from timm's in three ways: positions turn queries and keys instead of
    being added to the tokens, so that features tell what is there, not where; learnable
    positions start as 2-D sines and cosines instead of noise, and those of another grid
    are resampled when a state dict is loaded; and a state dict of another kind of
    encoder is refused, strict or not, so that no loader can lose weights in silence.
    """

    def __init__(self, *args: Any, positions: str = 'rotary', **kwargs: Any) -> None:
        """Initialize a new SIGMAEViT instance.

        Args:
            *args: Passed to :class:`timm.models.VisionTransformer`.
            positions: ``'rotary'``, or ``'learnable'`` as in MAE: added to the tokens.
                Weights that are loaded decide anew.
            **kwargs: Passed to :class:`timm.models.VisionTransformer`.

        Raises:
            ValueError: If *positions* is unknown, or patches are to be dropped, which
                rotary positions do not know of.
        """
        if positions not in ENCODER_POSITIONS:
            raise ValueError(
                f'positions: {positions!r} is unknown. Use one of {ENCODER_POSITIONS}.'
            )
        if positions == 'rotary' and kwargs.get('patch_drop_rate'):
            raise ValueError(
                f'patch_drop_rate: {kwargs["patch_drop_rate"]} is not possible with '
                "rotary positions. Pass positions='learnable', or leave it out."
            )
        super().__init__(*args, block_fn=RotaryBlock, **kwargs)
        if positions == 'rotary':
            self._set_positions(positions)
        self.register_load_state_dict_pre_hook(_adapt_state_dict)

    @property
    def positions(self) -> str:
        """The kind of its positions, those of the weights it has loaded."""
        return 'rotary' if self.pos_embed is None else 'learnable'

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass, which saves memory."""
        super().set_grad_checkpointing(enable)
        for block in self.blocks:
            block.checkpointing = enable

    def _set_positions(self, positions: str) -> None:
        """Drop learnable positions, or make new ones."""
        weight = self.patch_embed.proj.weight
        if positions == 'rotary':
            self.pos_embed = None
            # In the state dict, because the encoder is wrong without it.
            mark = torch.ones((), dtype=torch.bool, device=weight.device)
            self.register_buffer('rotary_positions', mark)
            return
        del self.rotary_positions
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        count = prefix + self.patch_embed.num_patches
        self.pos_embed = nn.Parameter(weight.new_zeros(1, count, self.embed_dim))

    def adopt(self, state_dict: Mapping[str, Tensor], prefix: str = '') -> None:
        """Take over the kind of positions of a state dict."""
        rotary = f'{prefix}rotary_positions' in state_dict
        learnable = f'{prefix}pos_embed' in state_dict
        positions = 'rotary' if rotary else 'learnable'
        if rotary != learnable and positions != self.positions:
            self._set_positions(positions)

    def rotation(
        self, grid: tuple[int, int], keep: Tensor | None = None
    ) -> Tensor | None:
        """By how much tokens are turned.

        Args:
            grid: Patches per column and per row.
            keep: Indices of the patches, ``(B, V)``; None for all of the grid.

        Returns:
            The rotation for all blocks; None for other positions.
        """
        if self.pos_embed is not None:
            return None
        if keep is None:
            keep = torch.arange(
                grid[0] * grid[1], device=self.patch_embed.proj.weight.device
            )
        head_dim = self.embed_dim // self.blocks[0].attn.num_heads
        return rotation(
            keep // grid[1], keep % grid[1], head_dim, self.num_prefix_tokens
        )

    def forward_features(
        self, x: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Compute the normalized tokens of whole images, ``(B, prefix + N, D)``."""
        mask = self._rotation_of(x, attn_mask)
        return super().forward_features(x, attn_mask=mask, **kwargs)

    def forward_intermediates(
        self, x: Tensor, *args: Any, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Compute the features after several blocks as timm does."""
        mask = self._rotation_of(x, attn_mask)
        return super().forward_intermediates(x, *args, attn_mask=mask, **kwargs)

    def _rotation_of(self, x: Tensor, attn_mask: Tensor | None) -> Tensor | None:
        """The rotation of whole images ``(B, C, H, W)``; masks are refused."""
        if attn_mask is not None:
            raise ValueError(
                'attn_mask: our encoders take none. Pass the visible tokens to '
                'torchgeo_sigmae.models.mae.encode_visible instead.'
            )
        height, width = x.shape[-2:]
        return self.rotation(self.patch_embed.dynamic_feat_size((height, width)))

    @property
    def layout(self) -> TokenLayout:
        """Layout of its tokens."""
        embed = self.patch_embed
        return TokenLayout.whole(embed.patch_size[0], embed.proj.in_channels)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Load weights, also those that TorchGeo finds in a fine-tuned checkpoint.

        A head is left out where this encoder has none, and so are the parts of a
        segmentation model beside its encoder, whose keys start with ``encoder.``.
        """
        state = {plain_key(key): value for key, value in state_dict.items()}
        first = 'patch_embed.proj.weight'
        if first not in state and f'encoder.{first}' in state:
            state = {
                key.removeprefix('encoder.'): value
                for key, value in state.items()
                if key.startswith('encoder.')
            }
        if isinstance(self.head, nn.Identity):
            state.pop('head.weight', None)
            state.pop('head.bias', None)
        return super().load_state_dict(state, *args, **kwargs)

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Take another number of bands: a new, random first layer.

        *pretrained* is ignored: TorchGeo loads weights after smp's call of this method.
        """
        old = self.patch_embed.proj
        if in_channels != old.in_channels:
            self.patch_embed.proj = nn.Conv2d(
                in_channels, old.out_channels, old.kernel_size, old.stride
            ).to(old.weight)
            self.in_chans = in_channels

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """Initialize as timm does, with sine-cosine positions."""
        super().init_weights(*args, **kwargs)
        if self.pos_embed is None:
            return
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        grid = self.patch_embed.grid_size
        table = sincos_2d(grid, self.embed_dim)
        with torch.no_grad():
            self.pos_embed[:, prefix:] = table
            self.pos_embed[:, :prefix] = 0


def _adapt_state_dict(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object
) -> None:
    """Before a state dict loads: resample positions, refuse another encoder's."""
    assert isinstance(model, SIGMAEViT)
    key = f'{prefix}patch_embed.proj.weight'
    expected = model.patch_embed.proj.weight.shape
    shape = state_dict[key].shape if key in state_dict else None
    if shape != expected:
        seen = 'has none' if shape is None else f'has one of shape {tuple(shape)}'
        raise ValueError(
            f'weights: this encoder takes a first layer ({key}) of shape '
            f'{tuple(expected)} = (width, bands, patch, patch), but the state dict '
            f'{seen}. {_remedy(shape, expected)}'
        )
    key = f'{prefix}spectral_embed'
    if (key in state_dict) != hasattr(model, 'spectral_embed'):
        # SatMAE's first layer has the shape of a plain ViT's.
        has, seen = ('has', 'has none') if key not in state_dict else ('has no', 'has')
        raise ValueError(
            f'weights: this encoder {has} positions in the spectrum ({key}), but the '
            f'state dict {seen}. Use the model name (model or backbone) the weights '
            'were made with.'
        )
    model.adopt(state_dict, prefix)
    key = f'{prefix}pos_embed'
    if key in state_dict and model.pos_embed is not None:
        state_dict[key] = resample_positions(model, state_dict[key])


def _remedy(shape: torch.Size | None, expected: torch.Size) -> str:
    """Say what to change where weights of one first layer meet another."""
    if shape is None or len(shape) != len(expected):
        return (
            'Use the model name and the bands (in_channels) the weights were made '
            'with, or weights of adapt_bands for yours. TorchGeo drops the first layer '
            'of weights whose band count differs from in_channels, which would lose '
            "what was learned about bands. Its 'dpt' takes no weights at all: use "
            "'upernet', for example."
        )
    remedies = []
    if shape[0] != expected[0] or shape[2:] != expected[2:]:
        remedies.append(
            'Use the model name (model or backbone) the weights were made with, which '
            f'has width {shape[0]} and patch size {shape[-1]}.'
        )
    if shape[1] != expected[1]:
        remedies.append(
            f'Pass in_channels={shape[1]} and data with the bands of the weights, or '
            'bring the weights to other bands with adapt_bands.'
        )
    if 2 * shape[1] == expected[1]:
        remedies.append(
            "Or is this change detection? Only 'fcsiamdiff', 'fcsiamconc' and "
            "'changevit' look at one date at a time; other models of TorchGeo stack "
            'both dates as bands, which takes weights of adapt_bands(..., dates=2).'
        )
    return ' '.join(remedies)


def resample_positions(model: VisionTransformer, positions: Tensor) -> Tensor:
    """Bring position embeddings of a square grid to a model's grid.

    They are ``(1, prefix + n * n, D)``, prefix tokens first.
    """
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    count = positions.shape[1] - prefix
    side = math.isqrt(max(count, 0))
    if side * side != count:
        raise ValueError(
            f'weights: {count} position embeddings do not form a square grid, so they '
            f'cannot be resampled to {model.patch_embed.grid_size}. Pass the image '
            'size the weights were made with.'
        )
    # A file in half precision is not to be interpolated in half precision.
    return resample_abs_pos_embed(
        positions.to(model.pos_embed.dtype),
        list(model.patch_embed.grid_size),
        [side, side],
        prefix,
    )


def patch_positions(encoder: VisionTransformer, grid: tuple[int, int]) -> Tensor:
    """Position embeddings of the patches of a grid, ``(N, D)``."""
    prefix = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    positions = resample_abs_pos_embed(
        encoder.pos_embed, list(grid), list(encoder.patch_embed.grid_size), prefix
    )
    return positions[0, prefix:]


def prefix_tokens(encoder: VisionTransformer) -> Tensor:
    """Class and register tokens of a ViT, with their positions, ``(1, prefix, D)``."""
    tokens = [t for t in (encoder.cls_token, encoder.reg_token) if t is not None]
    if not tokens:
        return encoder.norm.weight.new_zeros(1, 0, encoder.embed_dim)
    head = torch.cat(tokens, dim=1)
    if encoder.pos_embed is not None and not encoder.no_embed_class:
        head = head + encoder.pos_embed[:, : encoder.num_prefix_tokens]
    return head


def build_encoder(
    model: str, in_channels: int, size: int | None = None, **kwargs: Any
) -> VisionTransformer:
    """Build an encoder for pretraining from a timm name.

    Args:
        model: One of our names (``sigmae_vit_{tiny,small,base,large}_patch{8,16}``,
            ``s2mae_vit_..._patch{8,16}``, ``satmae_vit_..._patch8``) or any timm
            ``VisionTransformer`` with a plain patch embedding.
        in_channels: Number of input bands.
        size: Side of the images in pixels; None for the model's own default.
        **kwargs: What S2MAE's and SatMAE's encoders take beside: ``cube_bands``,
            ``groups``, ``positions``.

    Returns:
        The encoder, without a head, for any image size its patches divide.

    Raises:
        ValueError: If the name is unknown or is not such a VisionTransformer, or its
            patch size does not divide *size*.
    """
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=3)
        raise ValueError(
            f'model: {model!r} is not a timm model. Did you mean one of {close}?'
            if close
            else f'model: {model!r} is not a timm model. Use for example '
            "'sigmae_vit_small_patch8'; timm.list_models('*vit*') lists more."
        )
    if size is not None and size < 1:
        raise ValueError(f'size: {size} must be a positive number of pixels.')
    image = {} if size is None else {'img_size': size}
    try:
        encoder = timm.create_model(
            model,
            in_chans=in_channels,
            num_classes=0,
            dynamic_img_size=True,
            global_pool='avg',
            fc_norm=False,
            **image,
            **kwargs,
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(_not_a_vit(model)) from error
    ours = isinstance(encoder, SIGMAEViT)
    plain = type(encoder) is VisionTransformer
    if not ours and not (plain and type(encoder.patch_embed) is PatchEmbed):
        raise ValueError(_not_a_vit(model))
    patch = encoder.patch_embed.patch_size
    if size is not None and (patch[0] != patch[1] or size % patch[0]):
        raise ValueError(
            f'size: {size} is not a multiple of the patch size {patch[0]} of {model}. '
            f'Use for example size={max(size // patch[0], 1) * patch[0]}.'
        )
    if encoder.patch_embed.num_patches < 2:
        raise ValueError(
            f'size: {size} is a single patch of {model}, which cannot be split into '
            f'visible and masked. Use at least size={2 * patch[0]}.'
        )
    return encoder


def _not_a_vit(model: str) -> str:
    """Message for timm models that cannot be masked."""
    return (
        f'model: {model!r} is not a plain timm VisionTransformer, so its tokens cannot '
        "be masked. Use for example 'sigmae_vit_small_patch8' or "
        "'vit_base_patch16_224'."
    )
