"""`rsd-edge eval`: results of any tool, of a model or of an engine, against their references."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TextColumn

from rsd_edge.arguments import check_threads
from rsd_edge.cli.evaluate_outputs import WORST_BY, Outputs, folder_names
from rsd_edge.cli.evaluate_tables import console_for_tables, print_evaluations, print_published
from rsd_edge.cli.paths import GivenPath
from rsd_edge.cli.run import load_resolver
from rsd_edge.errors import InputError, OutputError
from rsd_edge.evaluate.catalogue import CATALOGUE, FID, PAPER_GROUP, choose_metrics
from rsd_edge.evaluate.checks import check_sources
from rsd_edge.evaluate.folder import Progress, Results, check_results, evaluate
from rsd_edge.evaluate.image_sets import Images, TestSet, check_same, folder_images
from rsd_edge.evaluate.presets import PRESETS, open_preset
from rsd_edge.evaluate.protocol import PLAIN, RESIZES, ROUNDINGS, Protocol
from rsd_edge.evaluate.pyiqa_metrics import check_fid, pyiqa_version
from rsd_edge.evaluate.report import UNKNOWN_METHOD, Evaluation
from rsd_edge.evaluate.scoring import EvaluationSettings, Scorer
from rsd_edge.evaluate.upscaling import BICUBIC, result_path, upscale_with
from rsd_edge.resolver import CHECKPOINT_SUFFIX
from rsd_edge.specs import Backend
from rsd_edge.stream.atomic import folder_for, make_folder
from rsd_edge.stream.batch import RunSettings

_PATH = GivenPath(path_type=Path)
_MODEL_OPTIONS = ("save", "precision", "backend", "steps", "tile")


@click.command("eval")
@click.option(
    "--pred", "folders", multiple=True, metavar="DIR", type=_PATH, help="Results of any tool; may be repeated."
)
@click.option("--ending", metavar="TEXT", help="What stems of --pred and --lr end with besides, as _out or x4.")
@click.option(
    "--model",
    "--engine",
    "models",
    multiple=True,
    metavar="NAME|BUNDLE|FILE",
    help=f"Upscale the LR images with this first, as `run` does, or with '{BICUBIC}'; may be repeated.",
)
@click.option(
    "--save", metavar="DIR", type=_PATH, help="Keep the results of --model here; of several, in a folder each."
)
@click.option("--ref", metavar="DIR", type=_PATH, help="References of the same stems and sizes.")
@click.option(
    "--lr", metavar="DIR", type=_PATH, help="Images that were upscaled: for --model, --sheet and the lattice."
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="A test set of the literature, looked for in --data.")
@click.option("--data", metavar="DIR", type=_PATH, help="Folder of the preset.")
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="The first N images only, to try things out.")
@click.option("--no-reference", is_flag=True, help="Leave the references alone.")
@click.option("--metrics", metavar="NAME,...", help="Metrics; 'default' and 'paper' are groups. See below.")
@click.option("--border", type=int, help="Pixels to cut off at each side before measuring; 0 if not given.")
@click.option("--resize", type=click.Choice(list(RESIZES)), help="For results of another size, which none refuses.")
@click.option("--rounding", type=click.Choice(ROUNDINGS), help="Of luma: whole levels, as MATLAB; or as pyiqa has it.")
@click.option("--force-fid", is_flag=True, help="FID of sets that are too small for it.")
@click.option("--json", "json_path", metavar="FILE", type=_PATH, help="Scores, protocol and versions; - for stdout.")
@click.option("--csv", "csv_path", metavar="FILE", type=_PATH, help="Write the scores of each image here.")
@click.option("--sheet", "sheet_path", metavar="FILE", type=_PATH, help="Draw the worst images here.")
@click.option("--worst", default=4, show_default=True, type=click.IntRange(min=1), help="How many are on the sheet.")
@click.option("--worst-by", metavar="METRIC", help=f"What the worst are bad at; of {', '.join(WORST_BY)} the first.")
@click.option("--published", is_flag=True, help="Print the paper's table of the preset beside this; alone, all tables.")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16", "int8"]), help="Of --model.")
@click.option("--backend", type=click.Choice([backend.value for backend in Backend]), help="Of --model.")
@click.option("--steps", type=int, help="Of a checkpoint.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Of a checkpoint and of pyiqa; cpu if not given.")
@click.option("--tile", type=int, help="Side of the tiles of --model in LR pixels, which papers call chop.")
@click.option("--batch", default=1, show_default=True, type=int, help="Tiles at once.")
@click.option("--seed", default=0, show_default=True, type=int, help="Of the noise of --model.")
@click.option("--threads", type=int, help="CPU threads; all cores if not given.")
def command(
    folders: tuple[Path, ...],
    models: tuple[str, ...],
    json_path: Path | None,
    csv_path: Path | None,
    sheet_path: Path | None,
    worst: int,
    worst_by: str | None,
    published: bool,
    **options: Any,
) -> None:
    """Score results of any tool (--pred), or of a model or an engine (--model), on a test set.

    Files are matched by stem. With several methods, the differences to the first are told, image by image, with 95 %
    bootstrap intervals. The JSON file states the protocol.

    Metrics: psnr_y, ssim_y, psnr_rgb, ssim_rgb, lpips_squeeze, lattice_spread, lattice_mean, niqe, spectrum_db,
    spectrum_bias_db; with the extra pyiqa, which downloads weights: lpips_alex, dists, fid, niqe_pyiqa, musiq, clipiqa,
    maniqa. 'default' are those of this package, 'paper' those that the paper measured on the preset.
    """
    if published and not folders and not models:
        print_published(console_for_tables(), [], options["preset"])
        return
    _check(folders, models, options)
    given = _test_set(options)
    test_set = replace(given, references=None) if options["no_reference"] else given
    outputs = Outputs(json_path, csv_path, sheet_path, worst, worst_by)
    settings = _settings(test_set, options)
    _check_device(models, settings.metrics, options["device"])
    outputs.check(settings.metrics)
    with ExitStack() as stack:
        for path in outputs.files:
            stack.enter_context(folder_for(path))
        results = [_folder_results(folder, options) for folder in folders]
        _check_results(results, test_set, settings)
        scorer = _scorer(settings)
        read = [*given.files(), *(path for one in results for path in one.images.paths.values())]
        outputs.check_apart(read)
        if models:
            sources = check_sources(test_set, settings)
            targets = _targets(models, options["save"], stack, read, sources)
            outputs.check_apart(result_path(folder, stem) for folder in targets.values() for stem in sources.paths)
            results += [_upscaled(model, target, sources, options) for model, target in targets.items()]
        evaluations = [_evaluate(result, test_set, scorer) for result in results]
        try:
            outputs.write(results, evaluations, test_set, _described(options))
        finally:  # what took hours is told, whatever cannot be written
            console = console_for_tables(stderr=outputs.takes_stdout)
            print_evaluations(console, evaluations)
            if published:
                print_published(console, evaluations, options["preset"])


def _check(folders: Sequence[Path], models: Sequence[str], options: dict[str, Any]) -> None:
    """Raises InputError for options that contradict each other or do nothing."""
    if not folders and not models:
        raise InputError("there is nothing to score; give results with --pred, or a model with --model")
    if len({*map(str, folders), *models}) < len(folders) + len(models):
        raise InputError("the same --pred or --model is given twice; leave one of them out")
    check_threads(options["threads"])
    if (options["preset"] is None) != (options["data"] is None):
        raise InputError("--preset and --data belong together: the test set, and the folder that holds it")
    if options["preset"] is not None and options["ref"] is not None:
        raise InputError("--preset brings its references; leave --ref out")
    if options["ending"] and not folders and options["lr"] is None:
        raise InputError("--ending is for --pred and --lr, and there is neither; leave it out")
    idle = [f"--{name}" for name in _MODEL_OPTIONS if options[name] is not None]
    if idle and not models:
        raise InputError(f"{', '.join(idle)}: for --model, and there is none; leave it out")


def _test_set(options: dict[str, Any]) -> TestSet:
    """References and LR images, as far as they are given."""
    lr = None if options["lr"] is None else folder_images(options["lr"], _endings(options))
    if options["preset"] is not None:
        test_set = open_preset(options["preset"], options["data"], sources=lr, limit=options["limit"])
    else:
        references = None if options["ref"] is None else folder_images(options["ref"])
        test_set = TestSet(references, lr).first(options["limit"])
    if options["limit"] is not None and test_set.anything is None:
        raise InputError("--limit counts references or LR images, and there are none; give --ref, --lr or a --preset")
    return test_set


def _settings(test_set: TestSet, options: dict[str, Any]) -> EvaluationSettings:
    preset = PRESETS[options["preset"]] if options["preset"] is not None else None
    usual = preset.protocol if preset is not None else PLAIN
    border = usual.border if options["border"] is None else options["border"]
    protocol = Protocol(border, options["resize"] or usual.resize, options["rounding"] or usual.rounding)
    names = [name.strip() for name in (options["metrics"] or "").split(",") if name.strip()]
    paper = preset.metrics if preset is not None else ()
    if PAPER_GROUP in names and not paper:
        raise InputError("--metrics paper needs a --preset that the paper measured; name the metrics instead")
    metrics = choose_metrics(
        names, reference=test_set.references is not None, source=test_set.sources is not None, paper=paper
    )
    if FID in metrics and test_set.references is not None:
        check_fid(len(test_set.references.paths), force=options["force_fid"])
    device = options["device"] or "cpu"
    return EvaluationSettings(
        metrics, protocol, options["threads"], device, options["force_fid"], subset=options["limit"] is not None
    )


def _check_device(models: Sequence[str], metrics: Sequence[str], device: str | None) -> None:
    """Raises InputError for a device that nothing would run on: graphs have that of their backend."""
    checkpoints = any(model.endswith(CHECKPOINT_SUFFIX) for model in models)
    if device is not None and not checkpoints and not any(CATALOGUE[name].pyiqa for name in metrics):
        raise InputError(
            f"--device {device}: for checkpoints ({CHECKPOINT_SUFFIX}) and metrics of pyiqa, and there is neither; "
            "leave it out"
        )


def _folder_results(folder: Path, options: dict[str, Any]) -> Results:
    return Results(str(folder), folder_images(folder, _endings(options)), dict(UNKNOWN_METHOD))


def _endings(options: dict[str, Any]) -> tuple[str, ...]:
    """What is no part of an image's name: tools add endings of their own behind those of the test set."""
    own = (options["ending"],) if options["ending"] else ()
    return (*own, *(PRESETS[options["preset"]].endings() if options["preset"] is not None else ()))


def _check_results(results: Sequence[Results], test_set: TestSet, settings: EvaluationSettings) -> None:
    """Before anything is upscaled or scored, since either takes long.

    Without references and LR images, the first results tell which images there are.
    """
    for one in results:
        check_results(one, test_set, settings)
        if test_set.anything is None:
            check_same(results[0].images, one.images)


def _targets(
    models: Sequence[str], save: Path | None, stack: ExitStack, read: Sequence[Path], sources: Images
) -> dict[str, Path]:
    """A folder for the results of each model, below --save or gone when the stack closes; none that files are read of,
    or that has such results already: they may be of another model.

    Raises InputError and OutputError.
    """
    if save is None:
        return {
            model: Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rsd-edge-eval-"))) for model in models
        }
    names = [""] if len(models) == 1 else folder_names(models)
    targets = {model: save / name for model, name in zip(models, names, strict=True)}
    origins = {folder.resolve() for path in read for folder in (path.parent, path.resolve().parent)}
    for target in targets.values():
        if target.resolve() in origins:
            raise OutputError(f"{target} holds images that are read and might be replaced; choose another --save")
        for result in (result_path(target, stem) for stem in sources.paths):
            if result.exists():
                raise OutputError(
                    f"{result} is there already, perhaps of another model; choose another --save, delete it, or score "
                    "it with --pred"
                )
    return targets


def _upscaled(model: str, folder: Path, sources: Images, options: dict[str, Any]) -> Results:
    with ExitStack() as stack:
        resolver = None
        if model != BICUBIC:
            resolver = stack.enter_context(load_resolver(_run_settings(model, options)))
        make_folder(folder)
        progress = stack.enter_context(_bar(f"upscaling with {model}"))
        return upscale_with(resolver, sources, folder, name=model, seed=options["seed"], progress=progress)


def _scorer(settings: EvaluationSettings) -> Scorer:
    """Before anything is upscaled, since pyiqa or its weights may be missing."""
    downloading = [metric for metric in settings.metrics if CATALOGUE[metric].pyiqa]
    if downloading:
        version = pyiqa_version(downloading[0])
        click.echo(f"{', '.join(downloading)}: pyiqa {version} downloads the weights that it does not have", err=True)
    return Scorer(settings)


def _evaluate(results: Results, test_set: TestSet, scorer: Scorer) -> Evaluation:
    with _bar(f"scoring {results.name}") as progress:
        return evaluate(results, test_set, scorer, progress)


def _described(options: dict[str, Any]) -> dict[str, Any]:
    """The test set, for the JSON file."""
    given: dict[str, Any] = {name: options[name] for name in ("preset", "limit", "no_reference")}
    given |= {name: None if options[name] is None else str(options[name]) for name in ("data", "ref", "lr")}
    if options["preset"] is not None:
        preset = PRESETS[options["preset"]]
        given |= {"title": preset.title, "paper_measures": preset.metrics, "paper_notes": preset.notes}
    return given


def _run_settings(model: str, options: dict[str, Any]) -> RunSettings:
    names = ("precision", "backend", "steps", "tile", "batch", "threads")
    device = options["device"] if model.endswith(CHECKPOINT_SUFFIX) else None  # elsewhere it is of pyiqa alone
    return RunSettings(engine=model, device=device, **{name: options[name] for name in names})


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A progress bar on a terminal; what it yields takes (done, total)."""
    columns = (TextColumn("{task.description}", markup=False), *Bar.get_default_columns()[1:])
    with Bar(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
