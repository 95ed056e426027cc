"""Edits of pictures, mostly by Pillow."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageEnhance, ImageFilter, ImageOps
from pydantic import Field

from models.errors import UserError
from pipelines.base import Params, Route
from pipelines.edits.base import Edit
from pipelines.edits.colour import turn_hue
from pipelines.formats.image import MAX_PIXELS
from pipelines.media import Image

PICTURE_TO_PICTURE = (Route(("image",), "image"),)
MAX_SIDE = 4096
WHITE = (255, 255, 255)


class AdjustParams(Params):
    brightness: float = Field(1.0, ge=0, le=3, description="1 leaves it, 0 is black, 1.3 is clearly brighter.")
    contrast: float = Field(1.0, ge=0, le=3, description="1 leaves it, 0 is one grey.")
    saturation: float = Field(1.0, ge=0, le=3, description="1 leaves it, 0 is without colour.")
    hue: float = Field(0.0, ge=-180, le=180, description="Degrees to turn all colours: 120 makes red things green.")
    sharpness: float = Field(1.0, ge=0, le=5, description="1 leaves it, 0 softens, 2 is clearly sharper.")


class ImageAdjust(Edit[Image, AdjustParams]):
    name = "image-adjust"
    title = "Adjust a picture"
    summary = "Make a picture brighter or darker, greyer or more colourful, sharper, or of other colours."
    routes = PICTURE_TO_PICTURE
    params_type = AdjustParams

    def change(self, given: Image, params: AdjustParams) -> Image:
        picture = PillowImage.fromarray(turn_hue(given.pixels, params.hue) if params.hue else given.pixels)
        picture = ImageEnhance.Color(picture).enhance(params.saturation)
        picture = ImageEnhance.Brightness(picture).enhance(params.brightness)
        picture = ImageEnhance.Contrast(picture).enhance(params.contrast)
        return _picture(given, ImageEnhance.Sharpness(picture).enhance(params.sharpness))


class ResizeParams(Params):
    longest_side: int = Field(0, ge=0, le=MAX_SIDE, description="Pixels of the longer side; 0 leaves it.")
    width: int = Field(0, ge=0, le=MAX_SIDE, description="Pixels across; 0 lets it follow from the height.")
    height: int = Field(
        0, ge=0, le=MAX_SIDE, description="Pixels down. With both given, what does not fit the shape is cut off."
    )
    factor: float = Field(1.0, ge=0.1, le=10, description="Times that: 0.5 is half as wide and half as high.")


class ImageResize(Edit[Image, ResizeParams]):
    name = "image-resize"
    title = "Resize a picture"
    summary = "Make a picture larger or smaller, up to 4096 pixels a side."
    routes = PICTURE_TO_PICTURE
    params_type = ResizeParams

    def change(self, given: Image, params: ResizeParams) -> Image:
        size = _size_asked(given, params)
        if max(size) > MAX_SIDE:
            raise UserError(
                f"The picture would have {size[0]} x {size[1]} pixels, which is too large.",
                f"Choose at most {MAX_SIDE} pixels a side.",
            )
        picture = PillowImage.fromarray(given.pixels)
        return _picture(given, ImageOps.fit(picture, size, PillowImage.Resampling.LANCZOS))


class CropParams(Params):
    left: float = Field(0.0, ge=0, lt=1, description="Share to cut off at the left: 0.33 is a third.")
    top: float = Field(0.0, ge=0, lt=1, description="Share to cut off at the top.")
    right: float = Field(0.0, ge=0, lt=1, description="Share to cut off at the right.")
    bottom: float = Field(0.0, ge=0, lt=1, description="Share to cut off at the bottom.")
    square: bool = Field(False, description="Keep the square in the middle of what is left.")


class ImageCrop(Edit[Image, CropParams]):
    name = "image-crop"
    title = "Crop a picture"
    summary = "Cut off the sides of a picture, or all but the square in its middle."
    routes = PICTURE_TO_PICTURE
    params_type = CropParams

    def change(self, given: Image, params: CropParams) -> Image:
        height, width = given.pixels.shape[:2]
        left, right = round(params.left * width), width - round(params.right * width)
        top, bottom = round(params.top * height), height - round(params.bottom * height)
        if left >= right or top >= bottom:
            raise UserError("Nothing of the picture would be left.", "Cut off less.")
        if params.square:
            side = min(right - left, bottom - top)
            left += (right - left - side) // 2
            top += (bottom - top - side) // 2
            right, bottom = left + side, top + side
        return replace(given, pixels=given.pixels[top:bottom, left:right])


class ImageRotateParams(Params):
    degrees: float = Field(90.0, ge=-360, le=360, description="Degrees clockwise; less than 0 is the other way.")


class ImageRotate(Edit[Image, ImageRotateParams]):
    name = "image-rotate"
    title = "Rotate a picture"
    summary = "Turn a picture. It grows so that nothing is cut off, and its new corners are white."
    routes = PICTURE_TO_PICTURE
    params_type = ImageRotateParams

    def change(self, given: Image, params: ImageRotateParams) -> Image:
        quarters, rest = divmod(params.degrees, 90)
        if rest == 0:
            return replace(given, pixels=np.rot90(given.pixels, -int(quarters)))
        height, width = given.pixels.shape[:2]
        turn = np.deg2rad(params.degrees)
        across, down = abs(np.cos(turn)), abs(np.sin(turn))
        if (across * width + down * height) * (down * width + across * height) > MAX_PIXELS:
            raise UserError("The picture would become too large.", "Make it smaller first.")
        # A white rim, so that the edge fades into the corners instead of being cut like stairs.
        picture = ImageOps.expand(PillowImage.fromarray(given.pixels), 1, WHITE)
        return _picture(
            given, picture.rotate(-params.degrees, PillowImage.Resampling.BICUBIC, expand=True, fillcolor=WHITE)
        )


class FlipParams(Params):
    direction: Literal["horizontal", "vertical"] = Field(
        "horizontal", description="Horizontal swaps left and right, vertical swaps top and bottom."
    )


class ImageFlip(Edit[Image, FlipParams]):
    name = "image-flip"
    title = "Flip a picture"
    summary = "Mirror a picture."
    routes = PICTURE_TO_PICTURE
    params_type = FlipParams

    def change(self, given: Image, params: FlipParams) -> Image:
        return replace(given, pixels=np.flip(given.pixels, axis=1 if params.direction == "horizontal" else 0))


class BlurParams(Params):
    radius: float = Field(2.0, ge=0.1, le=100, description="Pixels over which it is blurred.")


class ImageBlur(Edit[Image, BlurParams]):
    name = "image-blur"
    title = "Blur a picture"
    summary = "Make a picture soft, as out of focus."
    routes = PICTURE_TO_PICTURE
    params_type = BlurParams

    def change(self, given: Image, params: BlurParams) -> Image:
        return _picture(given, PillowImage.fromarray(given.pixels).filter(ImageFilter.GaussianBlur(params.radius)))


class ImageInvert(Edit[Image, Params]):
    name = "image-invert"
    title = "Invert a picture"
    summary = "Turn light into dark and every colour into its opposite, as on a negative."
    routes = PICTURE_TO_PICTURE
    params_type = Params

    def change(self, given: Image, params: Params) -> Image:
        return replace(given, pixels=255 - given.pixels)


def _picture(given: Image, picture: PillowImage.Image) -> Image:
    return replace(given, pixels=np.asarray(picture))


def _size_asked(given: Image, params: ResizeParams) -> tuple[int, int]:
    """Width and height in pixels; a side that is not given follows from the other by the picture's shape."""
    height, width = given.pixels.shape[:2]
    if params.longest_side and (params.width or params.height):
        raise UserError("Both the longest side and a width or height are given.", "Set one of them to 0.")
    if params.longest_side:
        scales = (params.longest_side / max(width, height),) * 2
    elif params.width or params.height:
        across, down = params.width / width, params.height / height
        scales = (across or down, down or across)
    else:
        scales = (1.0, 1.0)
    return max(1, round(width * scales[0] * params.factor)), max(1, round(height * scales[1] * params.factor))
