"""Build `rsd_edge/evaluate/niqe_model.npz` from a folder of photographs.

    python -P -m rsd_edge.export.fit_niqe --images DIR -o niqe_model.npz

As in the paper (see rsd_edge.evaluate.niqe): of each photograph the patches count that are sharper than 0.75 of its
sharpest one; the model is the mean and the covariance of the features of all of them. The file also says how many
photographs and patches it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from rsd_edge.errors import InputError
from rsd_edge.evaluate.metrics import Plane
from rsd_edge.evaluate.niqe import FEATURES, PATCH, NiqeModel, patch_features
from rsd_edge.stream.atomic import atomic_file
from rsd_edge.stream.discovery import images_in
from rsd_edge.stream.images import read_image

SHARP = 0.75
"""Part of the sharpness of an image's sharpest patch from which on a patch counts."""


def sharp_features(path: Path) -> Plane:
    """Features (n, 36) of the sharp patches of one photograph; flat patches have none and are left out.

    Raises InputError for an image that is smaller than a patch, ImageReadError for a file that cannot be read.
    """
    features, sharpness = patch_features(read_image(path))
    if not len(features):
        raise InputError(f"{path} is smaller than {PATCH}x{PATCH}; remove it")
    kept = (sharpness > SHARP * sharpness.max()) & np.isfinite(features).all(axis=1)
    return np.asarray(features[kept], np.float64)


def fit(paths: Sequence[Path]) -> tuple[NiqeModel, int]:
    """The model of the sharp patches of photographs, and their number.

    Raises InputError if they are too few for a covariance of full rank.
    """
    features = np.concatenate([sharp_features(path) for path in paths])
    if len(features) <= FEATURES:
        raise InputError(f"{len(features)} sharp patches do not make a model of {FEATURES} features; add photographs")
    return NiqeModel(features.mean(axis=0), np.cov(features, rowvar=False)), len(features)


@click.command()
@click.option("--images", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of photographs.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path))
def main(images: Path, output: Path) -> None:
    """Fit the statistics of photographs that NIQE measures the distance to."""
    paths = images_in(images)
    model, patches = fit(paths)
    with atomic_file(output) as file:
        np.savez(file, mean=model.mean, covariance=model.covariance, images=len(paths), patches=patches)
    click.echo(f"{output}: {patches} patches of {len(paths)} images")


if __name__ == "__main__":
    main()
