"""Pictures of a judgement: images in the order of their predicted index, and heat maps."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from marginlab.data.sheet import contact_sheet, encode_picture
from marginlab.encoding import evaluating

from .protocol import Probes

SHOWN = 24  # images of the sheet
MAPPED = 12  # images with a heat map


def draw(
    folder: Path, method: Any, probes: Probes, found: dict[str, np.ndarray], variant: str
) -> None:
    """Write `sheet.png`, and `maps.png` of a network that has attention.

    The sheet shows every n-th probe in the order of the index; below each stands its number of
    rows. Maps are of the first probes at few and many rows; red is more attention.
    """
    name = "score index" if "score index" in found else "score index_first"
    order = torch.from_numpy(found[name].argsort(kind="stable"))
    chosen = order[torch.linspace(0, len(order) - 1, min(SHOWN, len(order))).long()]
    captions = [f"{int(probes.rows[k])} px" for k in chosen]
    enlarge = max(1, 48 // probes.images.shape[-1])
    sheet = contact_sheet(probes.images[chosen], captions, columns=8, enlarge=enlarge)
    (folder / "sheet.png").write_bytes(encode_picture(sheet))
    if variant == "frozen":
        return
    some = torch.linspace(0, len(probes.images) - 1, min(MAPPED, len(probes.images))).long()
    images = probes.images[some]
    with evaluating(method), torch.no_grad():
        heat = method.heat_map(images)
    low, high = (bound(heat, (1, 2), keepdim=True) for bound in (torch.amin, torch.amax))
    level = ((heat - low) / (high - low).clamp(min=1e-6))[:, None]
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    mixed = images * (1 - 0.6 * level) + 0.6 * level * red
    both = torch.stack([images, mixed], 1).flatten(0, 1)
    captions = [text for k in some for text in (f"{int(probes.rows[k])} px", "map")]
    sheet = contact_sheet(both, captions, columns=8, enlarge=enlarge)
    (folder / "maps.png").write_bytes(encode_picture(sheet))
