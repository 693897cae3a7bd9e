"""Pictures and films of a simulation, drawn by casting rays.

MuJoCo's own renderer needs OpenGL, which a machine without a screen often lacks. Its ray caster needs nothing, and
simple shapes are few: every pixel's ray says which shape it meets and how that is turned to the light; a ray from the
light says whether it is in the shade.

Shapes: H pixels high, W wide.
"""

from __future__ import annotations

import contextlib
import io
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import matplotlib.image
import mujoco
import numpy as np
from numpy.typing import NDArray

from forecasting.bundle import write_atomic
from forecasting.writing import replacing
from sensors.robots.simulated import Simulation

Image = NDArray[np.uint8]
Array = NDArray[np.float64]

LIGHT = np.array([0.3, -1.2, 2.5])  # m, where it is
SKY, GROUND = np.array([0.80, 0.88, 0.96]), np.array([0.97, 0.97, 0.97])
AMBIENT = 0.45  # the light that is everywhere
FAR_M = 20.0


class Camera:
    """Looks at a point from a point."""

    def __init__(
        self,
        width: int = 640,
        height: int = 480,
        eye: tuple[float, float, float] = (1.5, -1.0, 1.15),
        target: tuple[float, float, float] = (0.38, 0.02, 0.2),
        field_deg: float = 37.0,
    ) -> None:
        """field_deg: from the lower to the upper edge."""
        self.size = (height, width)
        self._eye = np.array(eye)
        ahead = _unit(np.array(target) - self._eye)
        right = _unit(np.cross(ahead, [0, 0, 1]))
        up = np.cross(right, ahead)
        reach = np.tan(np.radians(field_deg / 2))
        across = (2 * np.arange(width) + 1 - width) / height * reach
        upwards = (height - 1 - 2 * np.arange(height)) / height * reach
        rays = ahead + across[None, :, None] * right + upwards[:, None, None] * up
        self._rays = np.ascontiguousarray(_unit(rays).reshape(-1, 3))  # (H W, 3)
        self._background = _mix(GROUND, SKY, (self._rays[:, 2:] + 0.6) / 0.8)

    def take(self, simulation: Simulation) -> Image:
        """(H, W, 3)."""
        model, data = simulation.model, simulation.data
        shape, distance, normal = _cast(model, data, self._eye, self._rays)
        colour = self._background.copy()
        hit = np.flatnonzero(shape >= 0)
        points = self._eye + distance[hit, None] * self._rays[hit]
        from_light = points - LIGHT
        way = np.linalg.norm(from_light, axis=1)
        rays = np.ascontiguousarray(from_light / way[:, None])
        _, free, _ = _cast(model, data, LIGHT, rays)
        lit = (free > way - 0.003) | (free < 0)
        facing = np.abs((normal[hit] * rays).sum(1))
        strength = AMBIENT + (1 - AMBIENT) * facing * np.where(lit, 1.0, 0.25)
        colour[hit] = model.geom_rgba[shape[hit], :3] * strength[:, None]
        return (255 * colour.clip(0, 1)).astype(np.uint8).reshape(*self.size, 3)


class Film:
    """An MP4 file: `with Film(path) as film: film.add(image)`; at its name only when it is whole."""

    def __init__(self, path: Path, rate: int = 25) -> None:
        """rate: images a second."""
        self._path, self._rate = path, rate
        self._open = contextlib.ExitStack()
        self._file: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def add(self, image: Image) -> None:
        """image: (H, W, 3), of even height and width, the same for all."""
        assert self._file is not None
        if self._stream is None:
            self._stream = self._file.add_stream("libx264", rate=Fraction(self._rate))
            self._stream.height, self._stream.width = image.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "23"}
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        for packet in self._stream.encode(frame):
            self._file.mux(packet)

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            part = opened.enter_context(replacing(self._path))
            self._file = opened.enter_context(av.open(str(part), "w", format="mp4"))
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            if error is not None:
                raise error
            if self._stream is not None and self._file is not None:
                self._file.mux(self._stream.encode())


def save_picture(image: Image, path: Path) -> None:
    """As PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    matplotlib.image.imsave(png, image, format="png")
    write_atomic(path, png.getvalue())


def _cast(
    model: mujoco.MjModel, data: mujoco.MjData, origin: Array, rays: Array
) -> tuple[NDArray[np.int32], Array, Array]:
    """The shape that each ray (N, 3) meets, -1 for none; how far away, in m, -1 for none; its normal there (N, 3)."""
    count = len(rays)
    shape, distance, normal = np.empty(count, np.int32), np.empty(count), np.empty((count, 3))
    mujoco.mj_multiRay(model, data, origin, rays.ravel(), None, True, -1, shape, distance, normal.ravel(), count, FAR_M)
    return shape, distance, normal


def _unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _mix(low: Array, high: Array, share: Array) -> Array:
    return low + (high - low) * share.clip(0, 1)
