"""What distillation bought: teacher in one and in T steps, student, student without distillation, fine-tuned student.

    python benchmarks/compare_roles.py --run runs/edge-s --lr LR_DIR --ref REF_DIR --json out.json

Every row upsamples the same LR images with the decoder that its stage was trained with, and is scored by the code of
`rsd-edge eval`. A second run folder given as --regression holds the student stage trained with distill_weight 0.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from origin import origin
from torch import Tensor

from rsd_edge.bundle import WEIGHTS_FILE
from rsd_edge.distill.diffusion import ResidualDiffusion
from rsd_edge.distill.roles import load_part
from rsd_edge.evaluate.catalogue import METRICS
from rsd_edge.evaluate.folder import evaluate_folders
from rsd_edge.frames import SCALE, DetailCompositor, Region, to_model
from rsd_edge.models.checkpoint import load_checkpoint
from rsd_edge.stream.atomic import write_json
from rsd_edge.stream.discovery import images_in
from rsd_edge.stream.images import MAX_PIXELS, read_image, write_image

Image = NDArray[np.uint8]


class Role:
    """One row: a stage's weights, and how many steps they take."""

    def __init__(self, weights: Path, part: str, steps: str) -> None:
        checkpoint = load_checkpoint(weights)
        self.network = load_part(checkpoint, part)
        self.stem, self.decoder = load_part(checkpoint, "stem"), load_part(checkpoint, "decoder")
        self.diffusion = ResidualDiffusion(checkpoint.spec.schedule)
        self.takes_eps = part == "student"
        self.all_steps = steps == "all"

    @torch.no_grad()
    def __call__(self, image: Image, seed: int) -> Image:
        """uint8 BGR (h, w, 3), even sides, to uint8 BGR (4h, 4w, 3)."""
        height, width = image.shape[:2]
        model_input = np.empty((1, 3, height, width), np.float32)
        to_model(image, model_input[0])
        lq = torch.from_numpy(model_input)
        z0_hat = self._latent(lq, torch.Generator().manual_seed(seed))
        detail = self.decoder(z0_hat, lq)[0].numpy()
        result = np.empty((SCALE * height, SCALE * width, 3), np.uint8)
        DetailCompositor(height, width, image.dtype).add(image, Region(0, height, 0, width), detail, 1.0, result)
        return result

    def _latent(self, lq: Tensor, generator: torch.Generator) -> Tensor:
        z_y = self.stem(lq)
        if self.all_steps:
            noises = [torch.randn(z_y.shape, generator=generator) for _ in range(self.diffusion.steps)]
            return self.diffusion.ancestral(self.network, z_y, lq, noises)
        z_T = self.diffusion.prior(z_y, torch.randn(z_y.shape, generator=generator))  # noqa: N806 (the paper's symbol)
        last = self.diffusion.last(1)
        eps = [torch.randn(1, 1, *lq.shape[2:], generator=generator)] if self.takes_eps else []
        return self.network(self.diffusion.scale(z_T, last), last, lq, *eps)  # type: ignore[no-any-return]


def roles(run: Path, regression: Path | None) -> Iterator[tuple[str, Role]]:
    yield "teacher, 1 step", Role(run / "teacher" / WEIGHTS_FILE, "teacher", "one")
    yield "teacher, all steps", Role(run / "teacher" / WEIGHTS_FILE, "teacher", "all")
    if regression is not None:
        yield "student without distillation, 1 step", Role(regression / "student" / WEIGHTS_FILE, "student", "one")
    yield "student, 1 step", Role(run / "student" / WEIGHTS_FILE, "student", "one")
    if (run / "finetune" / WEIGHTS_FILE).is_file():
        yield "student after the joint fine-tune, 1 step", Role(run / "finetune" / WEIGHTS_FILE, "student", "one")


@click.command()
@click.option("--run", required=True, type=click.Path(path_type=Path, exists=True), help="Folder of a finished run.")
@click.option("--regression", type=click.Path(path_type=Path, exists=True), help="The run with distill_weight 0.")
@click.option("--lr", "lq", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--ref", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--json", "json_path", required=True, type=click.Path(path_type=Path))
def main(run: Path, regression: Path | None, lq: Path, ref: Path, json_path: Path) -> None:
    """Score every role of a run on one test set."""
    rows: dict[str, Any] = {}
    for name, role in roles(run, regression):
        with tempfile.TemporaryDirectory() as folder:
            for seed, path in enumerate(images_in(lq)):
                image = role(read_image(path, MAX_PIXELS), seed)
                write_image(Path(folder) / f"{path.stem}.png", image)
            scores = evaluate_folders(Path(folder), ref, lq=lq)
        rows[name] = {metric: scores.mean(metric) for metric in METRICS}
        click.echo(f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in rows[name].items()))
    document = {**origin(), "lr": lq.name, "images": len(images_in(lq)), "rows": rows}
    write_json(json_path, document)


if __name__ == "__main__":
    main()
