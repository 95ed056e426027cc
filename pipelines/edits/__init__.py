"""Plain edits: louder, shorter, turned, smaller, and objects shown in other media. Pipelines without models."""

from __future__ import annotations

from pipelines.base import Pipeline
from pipelines.edits.audio import AudioFade, AudioGain, AudioReverse, AudioSpeed, AudioTrim
from pipelines.edits.image import ImageAdjust, ImageBlur, ImageCrop, ImageFlip, ImageInvert, ImageResize, ImageRotate
from pipelines.edits.mesh import MeshRecolour, MeshRotate, MeshScale, MeshSimplify, MeshSmooth
from pipelines.edits.showing import MeshTurntable, MeshViewSheet
from pipelines.edits.video import VideoAddSound, VideoMute, VideoReverse, VideoRotate, VideoSpeed, VideoTrim

EDITS: tuple[type[Pipeline], ...] = (
    *(ImageAdjust, ImageResize, ImageCrop, ImageRotate, ImageFlip, ImageBlur, ImageInvert),
    *(AudioGain, AudioTrim, AudioFade, AudioSpeed, AudioReverse),
    *(VideoTrim, VideoSpeed, VideoReverse, VideoRotate, VideoMute, VideoAddSound),
    *(MeshRotate, MeshScale, MeshSimplify, MeshSmooth, MeshRecolour, MeshViewSheet, MeshTurntable),
)
