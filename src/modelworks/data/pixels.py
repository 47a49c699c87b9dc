"""Images to tensors: read with pillow, resized, cut out, scaled and normalised as a preprocessor_config.json says.

Resampling is pillow's on 8-bit values, as in the processors of `transformers` that need no torchvision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from modelworks.base.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done to an image, in this order; None leaves a step out.

    `resize` to (height, width), or the shorter side to an int; `crop` (height, width) from the middle, black where
    the image is smaller; times `scale`, less `mean`, by `std`, a colour each. `channels` 1 is grey, 3 is RGB.
    """

    resize: tuple[int, int] | int | None
    resample: int
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3

    def __call__(self, images: Sequence[Image | str | Path]) -> Tensor:
        """-> float32 [N, channels, height, width]. Raises UserError for a file that is no image."""
        return torch.stack([self._one(read(image)) for image in images])

    def _one(self, image: Image) -> Tensor:
        image = image.convert("RGB" if self.channels == 3 else "L")
        if self.resize is not None:
            image = image.resize(self._size(image)[::-1], self.resample)
        pixels = np.asarray(image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if self.crop is not None:
            pixels = _middle(pixels, self.crop)
        x = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) * self.scale
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (x - mean) / std

    def _size(self, image: Image) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        assert self.resize is not None
        wide, high = image.size
        long = int(self.resize * max(wide, high) / min(wide, high))
        return (self.resize, long) if high <= wide else (long, self.resize)


def _middle(pixels: Any, size: tuple[int, int]) -> Any:
    """[height, width, channels] cut to `size` from the middle, with black around where there is less."""
    grown = [max(wanted, there) for wanted, there in zip(size, pixels.shape[:2], strict=True)]
    if tuple(grown) != pixels.shape[:2]:
        around = [-(-(g - there) // 2) for g, there in zip(grown, pixels.shape[:2], strict=True)]
        canvas = np.zeros((*grown, pixels.shape[2]), pixels.dtype)
        canvas[around[0] : around[0] + pixels.shape[0], around[1] : around[1] + pixels.shape[1]] = pixels
        pixels = canvas
    top, left = ((there - wanted) // 2 for wanted, there in zip(size, pixels.shape[:2], strict=True))
    return pixels[top : top + size[0], left : left + size[1]]


def preparation(settings: Mapping[str, Any], image_size: int, channels: int = 3) -> Preparation:
    """What a preprocessor_config.json asks for. Without one (`{}`): ViT's way, bilinear to `image_size` squared, mean
    and deviation 0.5. Raises UserError for what we do not do.
    """
    if settings.get("do_pad") is True:
        raise UserError(f"{FILE}: 'do_pad' is not done; this model's images cannot be made ready exactly.")
    try:
        resize: Any = None
        if settings.get("do_resize", True):
            resize = _sides(
                settings.get("size", image_size),
                "CLIP" in str(settings.get("image_processor_type", settings.get("feature_extractor_type"))),
            )
        crop = settings.get("crop_size") if settings.get("do_center_crop", "crop_size" in settings) else None
        normal = settings.get("do_normalize", True)
        return Preparation(
            resize,
            int(settings.get("resample", 2)),
            None if crop is None else _sides(crop, False),
            float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0,
            _colours(settings.get("image_mean", 0.5) if normal else 0.0, channels),
            _colours(settings.get("image_std", 0.5) if normal else 1.0, channels),
            channels,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{FILE}: cannot be followed ({type(error).__name__}: {error}); mend it.") from None


def _sides(size: Any, shorter: bool) -> Any:
    """(height, width), or the shorter side as an int."""
    if isinstance(size, int):
        return size if shorter else (size, size)
    if set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"])
    return int(size["height"]), int(size["width"])


def _colours(value: Any, channels: int) -> tuple[float, ...]:
    values = [value] * channels if isinstance(value, int | float) else value
    if len(values) != channels:
        raise ValueError(f"{len(values)} numbers for {channels} colours")
    return tuple(float(number) for number in values)


def read(image: Image | str | Path) -> Image:
    """An image as it is, or read from a file and turned upright. Raises UserError."""
    try:
        from PIL import Image as pillow
        from PIL import ImageOps
    except ImportError:
        raise UserError("images need pillow; pip install 'modelworks[data]'.") from None
    if isinstance(image, pillow.Image):
        return image
    if not isinstance(image, str | Path):
        raise UserError(f"an image is a pillow image or a path, not {type(image).__name__}.")
    if not Path(image).is_file():
        raise UserError(f"{image}: there is no such file; check the path.")
    try:
        with pillow.open(image) as opened:
            opened.load()
            return ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise UserError(f"{image}: is no image that can be read ({str(error)[:100]}); give another file.") from None
