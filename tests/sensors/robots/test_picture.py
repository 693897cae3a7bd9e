"""Pictures and films of a simulation, without OpenGL."""

import resource
from pathlib import Path

import av
import matplotlib.image
import numpy as np
import pytest

from sensors.robots.picture import Camera, Film, save_picture
from sensors.robots.simulated import Simulation


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return Simulation("breakfast")


def test_things_are_seen_where_they_are_in_their_colours(simulation):
    above = Camera(120, 120, eye=(0.4, -0.001, 2.0), target=(0.4, 0, 0), field_deg=40)
    image = above.take(simulation).astype(float)

    def colour(x: float, y: float) -> np.ndarray:
        """At a place on the table: the picture's right is the base's x, its top the base's y."""
        metre = 60 / (2 * np.tan(np.radians(20)))
        pixel = image[round(59.5 - y * metre), round(59.5 + (x - 0.4) * metre)]
        return pixel / pixel.sum()

    for name, place in (("plate", (0.36, 0.36)), ("coaster", (0.62, -0.1)), ("bread", (0.42, -0.34))):
        body = simulation.model.body(name)
        painted = simulation.model.geom_rgba[body.geomadr[0], :3]
        assert colour(*place) == pytest.approx(painted / painted.sum(), abs=0.02), name


def test_what_is_in_the_shade_is_darker(simulation):
    image = Camera(80, 60).take(simulation).astype(float).sum(2)
    table = simulation.model.geom("table").rgba[:3]
    shares = Camera(80, 60).take(simulation) / image[..., None].clip(1)
    wood = np.abs(shares - table / table.sum()).max(2) < 0.01
    assert image[wood].min() < 0.7 * np.median(image[wood])


def test_a_picture_changes_when_the_arm_moves(simulation):
    other = Simulation("breakfast")
    for _ in range(50):
        other.step(np.array([0.2, 0, 0.1, 0, 0, 0]))
    camera = Camera(80, 60)
    assert (camera.take(other) != camera.take(simulation)).any()


def test_a_picture_is_saved_as_png(simulation, tmp_path: Path):
    image = Camera(40, 30).take(simulation)
    save_picture(image, tmp_path / "new" / "a.png")
    read = matplotlib.image.imread(tmp_path / "new" / "a.png")[..., :3]
    assert (np.round(read * 255) == image).all()


def test_a_film_holds_its_images_in_order(tmp_path: Path):
    levels = [20, 120, 220]
    with Film(tmp_path / "a.mp4", rate=25) as film:
        for level in levels:
            film.add(np.full((48, 64, 3), level, np.uint8))
    with av.open(str(tmp_path / "a.mp4")) as file:
        images = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert file.streams.video[0].average_rate == 25
    assert [image.mean() for image in images] == pytest.approx(levels, abs=5)
    assert images[0].shape == (48, 64, 3)


def test_a_film_that_failed_leaves_no_file(tmp_path: Path):
    def stumble() -> None:
        with Film(tmp_path / "a.mp4") as film:
            film.add(np.zeros((48, 64, 3), np.uint8))
            raise RuntimeError("stumbled")

    with pytest.raises(RuntimeError, match="stumbled"):
        stumble()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_leaves_the_film_of_before(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        with Film(tmp_path / "a.mp4") as film:
            film.add(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # bytes, of any file

    try:
        with pytest.raises(OSError, match="too large"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "a.mp4").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_two_films_of_one_name_are_each_whole(tmp_path: Path):
    with Film(tmp_path / "a.mp4") as first, Film(tmp_path / "a.mp4") as second:
        for film, count in ((first, 3), (second, 5)):
            for _ in range(count):
                film.add(np.zeros((48, 64, 3), np.uint8))
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert len(list(file.decode(video=0))) == 3  # of who was ready last
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_picture_takes_the_place_of_another_and_is_not_written_over_it(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"before")
    (tmp_path / "other name").hardlink_to(tmp_path / "a.png")
    save_picture(np.zeros((4, 6, 3), np.uint8), tmp_path / "a.png")
    assert (tmp_path / "other name").read_bytes() == b"before"
    assert matplotlib.image.imread(tmp_path / "a.png").shape[:2] == (4, 6)
