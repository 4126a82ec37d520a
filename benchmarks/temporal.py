"""How still films stay: noise fixed in the image, carried by flow, or drawn anew, beside bicubic and a published model.

    python benchmarks/temporal.py --films ../shared/data/video --json benchmarks/reports/temporal.json \
        --peer realesr-general-x4v3.ncnn.param realesr-general-x4v3.ncnn.bin

Each film is reduced to `--width` and enlarged again, frame by frame; *pan* is a window that moves over a photograph,
*creep* one that moves by a quarter of an input pixel in each frame, *still* one that does not.
Figures of steadiness, in grey levels of luma:

- *warped error*: each result is moved to the next one by the optical flow of the inputs (DIS, medium, bicubically
  enlarged) and compared where the inputs agree after the same motion to within four levels. Lower is steadier.
- *held error*: the same, but nothing is moved where the input has not changed around a pixel. Flow claims motion there
  as well, next to what moves or is noisy, and holds against a result that it stands still, as far as it has texture
  there.
- *still variance*: the variance over time where the input never changes by more than two levels. Lower is stiller.

Bicubic is steadiest, because it shows no texture at all; *texture* says how much there is to flicker: the standard
deviation of what a result has and the bicubic one has not. The *original* is what the film was reduced from: no result
that is as sharp can be expected to be steadier. LPIPS and PSNR-Y are of every fourth frame, against the original.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray
from origin import begun_report, origin

from rsd_edge import SuperResolver
from rsd_edge.bench.peer import NcnnPeer, peer_name
from rsd_edge.bundle import resolve_engine
from rsd_edge.evaluate.lpips import LpipsMetric
from rsd_edge.evaluate.metrics import psnr_y
from rsd_edge.frames import SCALE, bicubic_x4
from rsd_edge.opencv import cv2
from rsd_edge.specs import Precision
from rsd_edge.stream.atomic import write_json
from rsd_edge.stream.images import read_image

Image = NDArray[np.uint8]
Plane = NDArray[np.float32]
FILMS = ("bbb_480p_30s", "intel_bottle", "intel_car", "intel_one-by-one-person")
PHOTO = Path(__file__).parents[1] / "assets" / "reference" / "foliage.jpg"
PAN = (128, 90)
STEPS = {"pan": 6, "creep": 1, "still": 0}
"""Pixels of the photograph by which the window moves in each frame."""
_COMPARED = slice(None, None, 4)
_AGREE = 4.0
_STILL = 2


def read_film(path: Path, width: int, start: int, most: int) -> list[Image]:
    """Frames `start` to `start + most - 1`, reduced to what a result with `width` before enlarging would be."""
    frames: list[Image] = []
    with av.open(str(path)) as container:
        for frame in islice(container.decode(video=0), start, start + most):
            height = round(width * frame.height / frame.width / 2) * 2
            image = np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)
            frames.append(reduced(image, SCALE * width, SCALE * height))
    return frames


def reduced(image: Image, width: int, height: int) -> Image:
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def window(width: int, height: int, most: int, step: int) -> list[Image]:
    """Of a photograph; it moves to the right and a little up and down, unless `step` is 0."""
    photo = read_image(PHOTO)
    frames = []
    for index in range(most):
        x = step * index % (photo.shape[1] - SCALE * width)
        y = round(20 + 20 * np.sin(index / 9)) if step else 20
        frames.append(photo[y : y + SCALE * height, x : x + SCALE * width])
    return frames


def luma(image: Image) -> Plane:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.float32)


class Motion:
    """Where each pixel of an enlarged frame was in the one before, and where that can be told."""

    def __init__(self, film: list[Image]) -> None:
        gray = [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in film]
        height, width = gray[0].shape
        y, x = np.mgrid[: SCALE * height, : SCALE * width].astype(np.float32)
        small_y, small_x = np.mgrid[:height, :width].astype(np.float32)
        dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.maps: list[tuple[Plane, Plane, NDArray[np.bool_]]] = []
        self.unchanged: list[NDArray[np.bool_]] = []
        for before, after in pairwise(film):
            changed = cv2.dilate(cv2.absdiff(before, after).max(axis=2), np.ones((3, 3), np.uint8))
            self.unchanged.append(_enlarged(changed) == 0)
        for last, now in pairwise(gray):
            flow = dis.calc(now, last, np.zeros((height, width, 2), np.float32))
            there = small_x + flow[..., 0], small_y + flow[..., 1]
            matched = cv2.remap(last, *there, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=255)
            agree = (cv2.absdiff(now, matched) <= _AGREE).astype(np.uint8)
            large = cv2.resize(flow, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC) * SCALE
            self.maps.append((x + large[..., 0], y + large[..., 1], _enlarged(agree) > 0))
        stack = np.stack(gray)
        still = (stack.max(axis=0) - stack.min(axis=0) <= _STILL).astype(np.uint8)
        # A network looks further than a pixel: what moves nearby is not held against it.
        still = cv2.erode(still, np.ones((9, 9), np.uint8))
        self.still = _enlarged(still) > 0

    def measure(self, results: list[Image], base: list[Image]) -> dict[str, float | None]:
        """The figures of one method."""
        planes = [luma(image) for image in results]
        errors, held = [], []
        for (last, now), (x, y, agree), unchanged in zip(pairwise(planes), self.maps, self.unchanged, strict=True):
            moved = cv2.remap(last, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            errors.append(float(np.abs(now - moved)[agree].mean()))
            held.append(float(np.abs(now - np.where(unchanged, last, moved))[agree].mean()))
        texture = np.mean([np.std(plane - luma(image)) for plane, image in zip(planes, base, strict=True)])
        still = np.stack(planes)[:, self.still]
        return {
            "warped_error": round(float(np.mean(errors)), 3),
            "held_error": round(float(np.mean(held)), 3),
            "still_variance": round(float(still.var(axis=0).mean()), 3) if self.still.sum() > 100 else None,
            "texture": round(float(texture), 3),
        }


def _enlarged(mask: NDArray[Any]) -> Image:
    return np.asarray(cv2.resize(mask, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST), np.uint8)


def closeness(results: list[Image], originals: list[Image], lpips: LpipsMetric) -> dict[str, float | None]:
    """To what the film was reduced from; None of the original itself. Frames that are equal have no PSNR."""
    if results is originals:
        return {"lpips_squeeze": None, "psnr_y": None}
    pairs = list(zip(results[_COMPARED], originals[_COMPARED], strict=True))
    finite = [value for value in (psnr_y(*pair) for pair in pairs) if math.isfinite(value)]
    return {
        "lpips_squeeze": round(float(np.mean([lpips(*pair) for pair in pairs])), 4),
        "psnr_y": round(float(np.mean(finite)), 3) if finite else None,
    }


def bicubic(image: Image) -> Image:
    out = np.empty((SCALE * image.shape[0], SCALE * image.shape[1], 3), np.uint8)
    bicubic_x4(image, out)
    return out


def originals_of(name: str, films: Path, width: int, start: int, most: int) -> list[Image]:
    """What a film of this name is reduced from."""
    if name in STEPS:
        return window(*PAN, most, STEPS[name])
    return read_film(films / f"{name}.mp4", width, start, most)


def check_same(path: Path, known: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise ClickException where rows that a report has were made with other settings."""
    for name, value in settings.items():
        if known and known.get(name) != value:
            old = known.get(name)
            raise click.ClickException(f"{path} has rows of {name} {old}, not {value}; delete it or take another file")


def all_methods(
    resolver: SuperResolver, network: NcnnPeer | None, film: list[Image], base: list[Image], originals: list[Image]
) -> dict[str, Callable[[], list[Image]]]:
    """What is compared, by name."""
    methods: dict[str, Callable[[], list[Image]]] = {
        "fixed noise": lambda: list(resolver.stream(film)),
        "noise moved by flow": lambda: list(resolver.stream(film, temporal="flow")),
        "fixed noise, detail blended": lambda: list(resolver.stream(film, temporal="blend")),
        "noise anew": lambda: [resolver(image, seed=i) for i, image in enumerate(film)],
        "bicubic": lambda: base,
        "original": lambda: originals,
    }
    if network is not None:
        methods["peer"] = lambda: [network(image) for image in film]
    return methods


@click.command()
@click.option("--films", required=True, type=click.Path(path_type=Path, exists=True), help="The folder of the films.")
@click.option("--engine", default="edge-n", show_default=True)
@click.option("--precision", default="int8", show_default=True)
@click.option("--peer", nargs=2, type=click.Path(path_type=Path, exists=True), help="An ncnn .param and .bin.")
@click.option("--film", "chosen", multiple=True, type=click.Choice([*FILMS, *STEPS]), help="Several; all if not given.")
@click.option("--method", "wanted", multiple=True, help="To measure anew; others keep their rows. All if not given.")
@click.option("--width", default=160, show_default=True)
@click.option("--start", default=200, show_default=True, help="First frame of each film.")
@click.option("--frames", default=40, show_default=True)
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(
    films: Path,
    engine: str,
    precision: str,
    peer: tuple[Path, Path] | None,
    chosen: tuple[str, ...],
    wanted: tuple[str, ...],
    width: int,
    start: int,
    frames: int,
    json_path: Path,
) -> None:
    """Measure, print and store."""
    known = begun_report(json_path)
    settings = {
        "engine": f"{engine} {precision} onnxruntime",
        "digest": resolve_engine(engine, Precision(precision)).digest,
        "width": width,
        "start": start,
        "frames": frames,
    }
    network_name = peer_name(peer[0]) if peer else known.get("peer")
    if known.get("peer") is not None:  # one may join rows that were made without
        settings["peer"] = network_name
    check_same(json_path, known, settings)
    document: dict[str, Any] = {
        **origin(),
        **settings,
        "peer": network_name,
        "films": known.get("films", {}),
    }
    network, lpips = NcnnPeer(*peer, 2) if peer else None, LpipsMetric(threads=2)
    with SuperResolver.load(engine, precision=precision, backend="onnxruntime", threads=2) as resolver:
        for name in chosen or (*FILMS, *STEPS):
            originals = originals_of(name, films, width, start, frames)
            film = [reduced(image, image.shape[1] // SCALE, image.shape[0] // SCALE) for image in originals]
            motion, base = Motion(film), [bicubic(image) for image in film]
            methods = all_methods(resolver, network, film, base, originals)
            rows = document["films"].get(name, {}).get("methods", {})
            for method, make in methods.items():
                if wanted and method not in wanted:
                    continue
                results = make()
                rows[method] = motion.measure(results, base) | closeness(results, originals, lpips)
            document["films"][name] = {"still_share": round(float(motion.still.mean()), 3), "methods": rows}
            click.echo(f"{name} {json.dumps(document['films'][name], indent=1)}")
            write_json(json_path, document)  # what there is so far


if __name__ == "__main__":
    main()
