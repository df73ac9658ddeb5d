"""Colour pictures of a scan with its relevance overlaid, for viewers that show only pictures.

Slices are axial in radiological convention: seen from the feet, the patient's right at the left of the picture. Note
and scale are in a strip below the image; only the letters R and L are drawn on it.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from datxai.imaging.dicom.volumes import LPS_TO_RAS
from datxai.volume import Volume

MIN_COLUMNS = 256  # pixels; smaller pictures are enlarged, so that letters are legible
BRIGHT_PERCENTILE = 99.9  # the voxels above it have about the volume of the striata
HEADROOM = 1.3  # black is this many times that value, so that relevance can be seen on the striata
NOTE = "RESEARCH USE, NOT DIAGNOSTIC"
FONT_SIZE, STRIP_ROWS = 11, 34


def lay_out(data: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A RAS+ array (X, Y, Z) as axial frames in radiological convention.

    Returns the frames (slices, rows, columns), from the feet upwards, rows towards the back, columns to the patient's
    left, and the affine from (column, row, slice) to DICOM's LPS+ mm.
    """
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = np.array(data.shape[:2]) - 1
    return np.ascontiguousarray(data[::-1, ::-1].transpose(2, 1, 0)), LPS_TO_RAS @ affine @ flip


def blend(scan: Volume, relevance: Volume, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scan in inverse grey, overlaid with the relevance in colour, more opaque the further it is from zero.

    Parameters
    ----------
    scan, relevance : Volume
        On one grid.
    colours : uint8 array (256, 3)
        RGB from the most negative relevance to the most positive; the scale is symmetric about zero.

    Returns
    -------
    frames : uint8 array (slices, rows, columns, 3)
    affine : array (4, 4)
        From (column, row, slice) to LPS+ mm.
    """
    assert scan.grid.same_as(relevance.grid), "scan and relevance lie on one grid"
    assert colours.shape == (256, 3) and colours.dtype == np.uint8, (colours.shape, colours.dtype)
    (grey, affine), (signal, _) = (lay_out(volume.data, volume.affine) for volume in (scan, relevance))
    factor = -(-MIN_COLUMNS // grey.shape[2])
    grey, signal = (
        np.asarray(ndimage.zoom(image, (1, factor, factor), order=1, mode="nearest", grid_mode=True))
        for image in (grey, signal)
    )
    finer = np.diag([1.0 / factor, 1.0 / factor, 1.0, 1.0])
    finer[:2, 3] = (1.0 / factor - 1.0) / 2.0  # centre of the first of the finer pixels
    limit = float(np.abs(relevance.data).max()) or 1.0
    black = HEADROOM * float(np.percentile(scan.data, BRIGHT_PERCENTILE))
    background = 255.0 * (1.0 - np.clip(grey / (black if black > 0 else 1.0), 0.0, 1.0))
    relative = np.clip(signal / limit, -1.0, 1.0)
    foreground = colours[np.rint((relative + 1.0) * 127.5).astype(np.uint8)]
    opacity = np.sqrt(np.abs(relative))[..., None]
    frames = np.rint(opacity * foreground + (1.0 - opacity) * background[..., None]).astype(np.uint8)
    return _mark(frames, colours, limit), affine @ finer


def _mark(frames: np.ndarray, colours: np.ndarray, limit: float) -> np.ndarray:
    """Draw R and L at the sides and, in separate rows below, the intended use and the colour scale."""
    from PIL import Image, ImageDraw, ImageFont

    _, rows, columns, _ = frames.shape
    font, large = (ImageFont.load_default(size) for size in (FONT_SIZE, 1.5 * FONT_SIZE))
    strip = Image.new("RGB", (columns, STRIP_ROWS), "white")
    draw = ImageDraw.Draw(strip)
    draw.text((columns / 2, 2), NOTE, "black", font, anchor="ma")
    line = STRIP_ROWS - 9
    low, high = columns * 3 // 8, columns * 5 // 8
    bar = colours[np.linspace(0, 255, high - low).astype(np.uint8)]
    strip.paste(Image.fromarray(np.broadcast_to(bar, (8, *bar.shape)).copy()), (low, line - 4))
    draw.text((low - 4, line), f"relevance {-limit:.2g}", "black", font, anchor="rm")
    draw.text((high + 4, line), f"{limit:+.2g}", "black", font, anchor="lm")
    letters = Image.new("L", (columns, rows), 0)
    draw = ImageDraw.Draw(letters)
    for x, side, anchor in ((4, "R", "lm"), (columns - 4, "L", "rm")):
        draw.text((x, rows / 2), side, 255, large, anchor=anchor)
    ink = 1.0 - np.asarray(letters, np.float32)[..., None] / 255.0
    below = np.broadcast_to(np.asarray(strip), (len(frames), STRIP_ROWS, columns, 3))
    return np.concatenate([np.rint(frames * ink).astype(np.uint8), below], axis=1)
