"""What `rsd-edge eval` writes once everything is known: JSON, CSV and the sheet of the worst."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsd_edge.cli.reports import STDOUT, check_report, write_report
from rsd_edge.errors import InputError, OutputError
from rsd_edge.evaluate.catalogue import FID
from rsd_edge.evaluate.folder import Results
from rsd_edge.evaluate.image_sets import TestSet
from rsd_edge.evaluate.report import Evaluation, comparison, worst_stems, write_csv
from rsd_edge.evaluate.sheet import draw_sheet
from rsd_edge.stream.atomic import check_target
from rsd_edge.stream.images import write_image
from rsd_edge.stream.results import check_suffix

WORST_BY = ("lpips_squeeze", "psnr_y", "niqe")
"""What the sheet goes by if nothing is said: the first of these that was measured."""


def folder_names(models: Sequence[str]) -> list[str]:
    """A folder for the results of each of several models, called by the end of its path: by as many parts of that as
    tell all of them apart.

    Raises InputError if nothing does.
    """
    # The end of .. is no name.
    named = [os.path.abspath(model) if os.path.normpath(model).startswith(".") else model for model in models]
    parts = [Path(path.lstrip("/")).parts for path in named]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["-".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError("two models would share a folder of --save; score them apart, each with a --save of its own")


@dataclass(frozen=True)
class Outputs:
    """As they are asked for; None for what is not."""

    json: Path | None
    csv: Path | None
    sheet: Path | None
    worst: int
    """How many images are on the sheet."""
    worst_by: str | None

    @property
    def files(self) -> list[Path]:
        """Without stdout, which `json` may be."""
        return [path for path in (self.json, self.csv, self.sheet) if path is not None and path != STDOUT]

    @property
    def takes_stdout(self) -> bool:
        """Nothing else belongs there then."""
        return self.json == STDOUT

    def check(self, metrics: Sequence[str]) -> None:
        """Before the work: names, places, and what the sheet goes by. Raises InputError and OutputError."""
        if self.csv == STDOUT:
            raise InputError("--csv has no - for stdout; give it the name of a file, or take --json -")
        if len({path.resolve() for path in self.files}) < len(self.files):
            raise InputError("two of --json, --csv and --sheet are the same file; give each a name of its own")
        for path, kind in ((self.json, "JSON"), (self.csv, "CSV")):
            if path is not None:
                check_report(path, kind=kind)
        if self.sheet is None and self.worst_by is not None:
            raise InputError("--worst-by is for --sheet, and there is none; leave it out")
        if self.sheet is not None:
            check_target(self.sheet)
            check_suffix(self.sheet)
            self._sheet_metric(metrics)

    def check_apart(self, images: Iterable[Path]) -> None:
        """Raises OutputError if one of these images would be replaced."""
        taken = {image.resolve() for image in images}
        for path in self.files:
            if path.resolve() in taken:
                raise OutputError(f"cannot write {path}: it is one of the images that are scored; choose another name")

    def write(
        self,
        results: Sequence[Results],
        evaluations: Sequence[Evaluation],
        test_set: TestSet,
        described: Mapping[str, Any],
    ) -> None:
        """All of them. described: the test set, for JSON. Raises OutputError, and InputError as `check` does."""
        document = {**comparison(evaluations), "test_set": described}
        if self.json is not None:
            write_report(self.json, document)
        if self.csv is not None:
            write_csv(self.csv, evaluations)
        if self.sheet is not None:
            metric = self._sheet_metric([name for name in evaluations[0].metrics if evaluations[0].values(name)])
            stems = worst_stems(evaluations[0], metric, self.worst)
            write_image(self.sheet, draw_sheet(stems, results, evaluations, test_set, metric))

    def _sheet_metric(self, metrics: Sequence[str]) -> str:
        """Of those measured. Raises InputError if single images have none, or not the one asked for."""
        single = [metric for metric in metrics if metric != FID]
        if not single:
            raise InputError(
                "--sheet goes by a metric of single images, and they have none; name others with --metrics"
            )
        if self.worst_by is None:
            return next(metric for metric in (*WORST_BY, *single) if metric in single)
        if self.worst_by not in single:
            raise InputError(f"--worst-by is '{self.worst_by}', which is not measured; use one of {', '.join(single)}")
        return self.worst_by
