# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Progressive pretraining: the next stage goes on from the last, decoder included.

S2MAE's slides pretrain on one dataset and then on another, with other images. Nothing
that was learned is thrown away: positions are interpolated to the new image size and
the new bands, never started anew.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torchvision.models._api import WeightsEnum

from ..bands import Sensor, get_sensor
from .adapt import adapt_state
from .checkpoint import decoder_of, encoder_of, read_content
from .layout import TokenLayout, layout_of_state
from .mae import MaskedAutoencoder
from .matching import BandReport
from .spectral import S2MAEViT
from .spectrum import BandsOf
from .weights import PackagedWeights, resolve_weights

__all__ = ('Stage', 'load_stage', 'parse_stage')


@dataclass(frozen=True)
class Stage:
    """What a stage of pretraining leaves to the next.

    Attributes:
        encoder: Its encoder, under plain timm keys.
        decoder: Its decoder.
        known: What is known about it, as in an encoder file.
        layout: What a token was when it was trained.
        report: What was done for other bands, if anything.
    """

    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    known: dict[str, Any]
    layout: TokenLayout
    report: BandReport | None = None

    @property
    def bands(self) -> BandsOf:
        """The bands it was trained on, and their sensor."""
        sensor = get_sensor(self.known['sensor'])
        return sensor.spell(self.known['bands']), sensor

    def for_bands(self, bands: tuple[str, ...], sensor: Sensor) -> 'Stage':
        """Bring encoder and positions to other bands.

        Args:
            bands: Canonical names of the next stage's bands.
            sensor: Their sensor.

        Returns:
            The stage itself where the bands are the same.

        Raises:
            ValueError: If cubes of bands cannot be made of the new bands.
        """
        source, target = self.bands, (bands, sensor)
        if source[0] == bands and source[1].name == sensor.name:
            return self
        encoder, report = adapt_state(self.encoder, source, target)
        decoder = dict(self.decoder)
        if 'spectral_embed' in decoder:
            spectrum = {**self.encoder, 'spectral_embed': decoder['spectral_embed']}
            adapted, _ = adapt_state(spectrum, source, target)
            decoder['spectral_embed'] = adapted['spectral_embed']
        return replace(self, encoder=encoder, decoder=decoder, report=report)


def parse_stage(source: WeightsEnum | str | Path, model: str) -> Stage:
    """Read what a stage of pretraining left.

    Args:
        source: A training checkpoint of the task, the folder of a run with
            ``resume: true``, an encoder exported with its decoder, or a weight enum of
            ours or its string.
        model: Name of the next stage's encoder.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: If there is no such file, or no checkpoint in the folder.
        ValueError: If it holds no decoder, or the encoder is another one.
        RuntimeError: If the file of an enum was altered or damaged.
    """
    name = str(source)
    content = _read(source, name)
    encoder, decoder = encoder_of(content, name), decoder_of(content)
    known = encoder.hyper_parameters
    # A training checkpoint from before its first batch does not know its data.
    if not decoder or not {'sensor', 'patch_size'} <= known.keys():
        raise ValueError(
            f'previous: {name!r} has no decoder, or does not tell what it was '
            'trained on. Pass a training checkpoint of SIGMAETask, or what its '
            'export(path, decoder=True) wrote; an encoder alone goes to weights.'
        )
    if known['model'] != model:
        raise ValueError(
            f'previous: it pretrained model={known["model"]!r}, this stage has '
            f'{model!r}. Use the same model; other sizes and bands are no obstacle.'
        )
    layout = layout_of_state(encoder.state_dict, known['patch_size'])
    return Stage(encoder.state_dict, decoder, known, layout)


def _read(source: WeightsEnum | str | Path, name: str) -> Any:
    """Read the file of a stage, whatever names it."""
    # A string that names no weights may as well be a misspelled path.
    with suppress(FileNotFoundError):
        source = resolve_weights(source)
    if isinstance(source, PackagedWeights):
        return source.read_content()
    if isinstance(source, WeightsEnum):
        raise ValueError(
            f'previous: {name} comes without a decoder, so pretraining cannot go on '
            'from it. Pass it to weights, which starts from an encoder alone.'
        )
    path = Path(source)
    if path.is_dir():
        # Their names tell the step, with leading zeros.
        files = sorted((path / 'resume').glob('*.ckpt'))
        if not files:
            raise FileNotFoundError(
                f'previous: {name!r} holds no resume/*.ckpt. Pass the '
                'default_root_dir of a finished run, or the path of a checkpoint.'
            )
        path = files[-1]
    if not path.is_file():
        raise FileNotFoundError(
            f'previous: {name!r} is neither a file nor a weight enum of ours. Pass a '
            'training checkpoint of SIGMAETask, or the default_root_dir of a finished '
            'run.'
        )
    return read_content(path, name)


def load_stage(model: MaskedAutoencoder, stage: Stage) -> None:
    """Continue from a stage: its encoder and decoder, at this image size.

    Args:
        model: The model of the next stage, built with the
            :func:`~torchgeo_sigmae.models.encoder_arguments` of the stage's encoder.
        stage: The stage before, brought to the bands of the model.

    Raises:
        ValueError: If the stage had another decoder.
    """
    decoder = dict(stage.decoder)
    model.encoder.load_state_dict(stage.encoder)
    if stage.report is not None:
        _adapt_head(model, decoder, stage)
    if 'pos_embed' in decoder and model.decoder.pos_embed is not None:
        side = math.isqrt(decoder['pos_embed'].shape[1])
        decoder['pos_embed'] = resample_abs_pos_embed(
            decoder['pos_embed'],
            list(model.decoder.grid),
            [side, side],
            num_prefix_tokens=0,
        )
    _check_decoder(model, decoder)
    model.decoder.load_state_dict(decoder)


def _adapt_head(
    model: MaskedAutoencoder, decoder: dict[str, Tensor], stage: Stage
) -> None:
    """Give every band's outputs to the bands that stand in for it.

    The last layer is linear, so a band that is the mean of others is predicted by the
    mean of their rows. Bands without counterpart start as a new layer does.
    """
    assert stage.report is not None
    if isinstance(model.encoder, S2MAEViT):
        return  # one head for all cubes
    source, new = stage.bands[0], model.layout
    for key, own in model.decoder.head.state_dict().items():
        known = _by_channel(decoder[f'head.{key}'], stage.layout)
        rows = own.clone().unflatten(0, (new.num_groups, new.group_size, -1))
        for place, band in zip(new.places(), stage.report.bands, strict=True):
            total = sum(band.sources.values())
            parts = [
                known[source.index(name)] * (share / total)
                for name, share in band.sources.items()
            ]
            if parts:
                rows[place] = torch.stack(parts).sum(dim=0)
        decoder[f'head.{key}'] = rows.flatten(0, 2)


def _by_channel(rows: Tensor, layout: TokenLayout) -> Tensor:
    """Sort the rows of a head by band, ``(C, p * p, ...)``."""
    rows = rows.unflatten(0, (layout.num_groups, layout.group_size, -1))
    return torch.stack([rows[place] for place in layout.places()])


def _check_decoder(model: MaskedAutoencoder, decoder: dict[str, Tensor]) -> None:
    """Refuse the decoder of another architecture in one readable message."""
    own = {key: tuple(value.shape) for key, value in model.decoder.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in decoder.items()}
    # Positions that are not learned leave nothing in a state dict.
    joint = getattr(model.encoder, 'joint', False) != model.decoder.joint
    if own != found or joint:
        odd = sorted(key for key in own.keys() ^ found.keys())
        odd += [key for key in own if key in found and own[key] != found[key]]
        odd += ['positions']
        raise ValueError(
            f'previous: its decoder does not fit this one, for example {odd[0]}. Use '
            'the same decoder, decoder_dim, decoder_depth and positions in every '
            'stage, or pass the encoder alone to weights.'
        )
