"""Random crops and flips of training images."""

from __future__ import annotations

import torch
from torch import Tensor

from paperlib.errors import InputError
from paperlib.seeds import integers
from paperlib.shapes import Images


def augment(images: Images, *, crop: int, flip: bool, generator: torch.Generator) -> Images:
    """Random crops and horizontal flips of a batch (N, C, H, W), drawn for each image separately.

    Each image is padded with ``crop`` zero pixels on every side and cut back to its size at a random position; with
    ``flip`` it is then mirrored left to right with probability one half. Pixels are copied, so their range stays.
    Random numbers are drawn on the generator's device, so a CPU generator gives the same result on every device.
    Without crop and flip, the batch itself is returned and nothing is drawn.

    Raises:
        InputError: ``images`` does not have four axes, or ``crop`` is negative.
    """
    if images.ndim != 4 or crop < 0:
        raise InputError(f"augment: expected images (N, C, H, W) and crop >= 0, got {tuple(images.shape)}, crop={crop}")
    count, _, height, width = images.shape

    def draw(high: int) -> Tensor:
        return integers(high, (count,), generator, images.device)

    if crop:
        # A view (N, C, 2 crop + 1, 2 crop + 1, H, W) of all windows; indexing copies one window for each image.
        windows = torch.nn.functional.pad(images, (crop,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        top, left = draw(2 * crop + 1), draw(2 * crop + 1)
        images = windows[torch.arange(count, device=images.device), :, top, left]
    if flip:
        images = torch.where(draw(2).bool()[:, None, None, None], images.flip(3), images)
    return images
