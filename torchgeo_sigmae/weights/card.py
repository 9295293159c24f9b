# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The model card of an exported folder: facts, and how to load it."""

from collections.abc import Mapping
from typing import Any

__all__ = ('model_card',)

_METHODS = {'sigmae': 'SIGMAE', 's2mae': 'S2MAE', 'satmae': 'SatMAE'}

_CARD = """---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- timm
- torchgeo
- remote-sensing
- multispectral
- masked-autoencoder
---

# {title}

An encoder for {channels} channels of multispectral images, `{model}`, written by
[torchgeo-sigmae](https://pypi.org/project/torchgeo-sigmae/).

## Use

```python
import timm
import torchgeo_sigmae  # registers the encoder with timm

encoder = timm.create_model('local-dir:{title}', pretrained=True).eval()
features = encoder(images)  # (B, {channels}, H, W) to (B, {width})
```

On the Hugging Face Hub, the name is `hf-hub:OWNER/{title}`. `num_classes=N` adds a
head, `features_only=True` returns feature maps, and `SIGMAETask(weights='{title}')`
continues pretraining.
{inputs}
## Pretraining

{facts}

## License and limits

Not stated. Add the license, the origin of the data, and what the encoder was tested on.
"""

_INPUTS = """
## Input

`(raw - mean) / std` of each band, in this order:

{table}
"""


def model_card(info: Mapping[str, Any], title: str, width: int) -> str:
    """Write a model card in Markdown, with the metadata that the Hub reads.

    *width* is the length of a feature.
    """
    bands = info.get('bands') or []
    return _CARD.format(
        title=title,
        model=info['model'],
        channels=info.get('in_channels') or (info.get('dates') or 1) * len(bands),
        width=width,
        inputs=_inputs(info, bands) if bands else '',
        facts=_table(('', ''), _facts(info)),
    )


def _inputs(info: Mapping[str, Any], bands: list[str]) -> str:
    """The section on bands and units."""
    rows = [
        (name, *(_number(_entry(info.get(key), index)) for key in ('mean', 'std')))
        for index, name in enumerate(bands)
    ]
    text = _INPUTS.format(table=_table(('band', 'mean', 'std'), rows))
    scale, offset = info.get('scale'), info.get('offset')
    if scale is not None:
        text += f'\nReflectance is `raw * {scale:g} + {offset or 0:g}`.\n'
    return text


def _facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The section on the pretraining."""
    sensor = info.get('sensor')
    named = {
        'method': _METHODS.get(str(info.get('ssl_method'))),
        'sensor': sensor.get('name') if isinstance(sensor, dict) else sensor,
        'image size': info.get('size'),
        'patch size': info.get('patch_size'),
        'masking': info.get('masking'),
        'mask ratio': info.get('mask_ratio'),
        'target': info.get('target'),
        'norm_pix_loss': info.get('norm_pix_loss'),
    }
    rows = [(key, str(value)) for key, value in named.items() if value is not None]
    for number, stage in enumerate(info.get('trained_on') or [], 1):
        facts = [f'{key}: {value}' for key, value in stage.items() if value is not None]
        rows.append((f'stage {number}', '; '.join(facts)))
    return rows


def _entry(values: Any, index: int) -> Any:
    """A band's value of a list, or of what all bands have in common."""
    if isinstance(values, list | tuple):
        return values[index] if index < len(values) else None
    return values


def _number(value: float | None) -> str:
    """A number for a table."""
    return '' if value is None else f'{value:.6g}'


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    """A Markdown table."""
    lines = [head, ('---',) * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
