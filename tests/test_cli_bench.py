from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_doubles import report

from rsd_edge.bench import environment, others
from rsd_edge.bench.opening import BenchSettings
from rsd_edge.bench.report import to_markdown
from rsd_edge.bench.subjects import Wish
from rsd_edge.cli import bench, main
from rsd_edge.errors import MissingDependencyError
from rsd_edge.machine import cache_folder


class Bench:
    """The command with a run that is over at once."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.document = report()
        self.asked: list[tuple[BenchSettings, str]] = []
        self.raises: BaseException | None = None

    def measure(self, settings: BenchSettings, command: str, progress: Any, accept: Callable[..., Any]) -> Any:
        accept(self.document)
        self.asked.append((settings, command))
        progress("measuring", 1, 2)
        if self.raises:
            raise self.raises
        return self.document

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["bench", *map(str, arguments)])
        out, err = self._capsys.readouterr()
        return int(stop.value.code or 0), out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Bench:
    made = Bench(capsys)
    monkeypatch.setattr(bench, "measure", made.measure)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return made


def old(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**report(), **changes}))
    return path


def test_a_report_in_three_files(run: Bench) -> None:
    pytest.importorskip("matplotlib")
    code, out, err = run("-o", "found/here", "--sizes", "64x48", "--rounds", "3")
    assert (code, out, err) == (0, "found/here\n", "")
    assert sorted(path.name for path in Path("found/here").iterdir()) == ["report.html", "report.json", "report.md"]
    assert json.loads(Path("found/here/report.json").read_text()) == report()
    assert Path("found/here/report.md").read_text() == to_markdown(report())
    assert Path("found/here/report.html").read_text().count("<svg") == 6
    assert run.asked[0][1] == "rsd-edge bench -o found/here --sizes 64x48 --rounds 3"


def test_markdown_goes_to_stdout_and_json_if_asked_for(run: Bench) -> None:
    assert run() == (0, to_markdown(report()), "")
    code, out, err = run("--json", "-")
    assert (code, json.loads(out), err) == (0, report(), "")
    assert run("--json", "a/b.json") == (0, "", "")
    assert json.loads(Path("a/b.json").read_text()) == report()


def test_the_last_report_of_an_engine_is_kept(run: Bench) -> None:
    run()
    (path,) = cache_folder().iterdir()
    assert path.name == "bench-0f3a0f3a0f3a0f3a-onnxruntime-208-2.json"
    assert json.loads(path.read_text())["date"] == report()["date"]


def test_a_run_beside_other_programs_and_one_that_is_not_kept_are_told_of(
    run: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = report()
    here = {"machine": environment.machine(), "versions": environment.versions()}
    run.document = {**document, **here}
    assert run("--json", "x.json") == (0, "", "")
    monkeypatch.setattr(others, "usable_cores", lambda: 2)
    run.document = {**document, **here, "load": {"before": 3.0, "after": 3.0, "others": 1.5}}
    code, _, err = run("--json", "x.json", "--threads", "2")
    disturbed, stays = err.splitlines()
    assert code == 0
    assert disturbed.startswith(
        "note: other programs kept 1.5 of 2 processors busy (load average 3) while this was meas"
    )
    assert stays.startswith(
        "note: 'rsd-edge doctor' stays with the report of 2026-11-21T12:00:00+00:00 for edge-t int8 "
    )
    (path,) = cache_folder().iterdir()
    assert stays.endswith(f" on 2 threads, which no other program disturbed; remove {path} to forget it")


def test_what_is_asked_for_is_measured(run: Bench, tmp_path: Path) -> None:
    run("--no-memory", "--threads", "3,1")
    settings = run.asked[-1][0]
    assert settings.wishes == (Wish("edge-s"),)
    assert (settings.sizes, settings.threads) == (((160, 90), (320, 180), (640, 360)), (3, 1))
    assert (settings.effort.rounds, settings.memory, settings.peers) == (15, False, {})
    (tmp_path / "general.param").touch()
    (tmp_path / "general.bin").touch()
    run(
        *("--model", "a", "--model", "b", "--precision", "fp32", "--precision", "int8", "--backend", "openvino"),
        *("--tile", 64, "--sizes", "64X48, 8x8,64x48", "--seconds", 2.5, "--peer-file", "general.param"),
    )
    assert run("--peers")[2].startswith("note: realesr-general-x4v3 is not measured: give its ncnn files with --peer-f")
    settings = run.asked[-2][0]
    assert settings.wishes == tuple(
        Wish(model, precision, "openvino", None, 64) for model in "ab" for precision in ("fp32", "int8")
    )
    assert settings.sizes == ((64, 48), (8, 8))
    assert (settings.effort.seconds, settings.effort.rounds > 1000) == (2.5, True)
    assert settings.peers == {"bicubic": None, "general": Path("general.param")}
    assert settings.memory


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sizes", "160"), "'160' is not a list of WxH"),
        (("--sizes", "0x90"), "'0x90' is not a list of WxH"),
        (("--sizes", "99999x99999"), "has more than "),
        (("--sizes", "160x90,"), "is not a list of WxH"),
        (("--threads", "0"), "'0' is not a list of numbers of threads"),
        (("--threads", "1,two"), "is not a list of numbers of threads"),
        (("--rounds", "2"), "2 is not in the range x>=3"),
        (("--rounds", "5", "--seconds", "9"), "--rounds and --seconds exclude each other"),
        (("--seconds", "0"), "0.0 is not in the range x>0"),
        (("--html",), "--html has nowhere to go; add -o DIR"),
        (("--peer-file", "none.param"), "peer none.param does not exist"),
        (("--compare", "none.json"), "report none.json does not exist"),
        (("--from", "none.json"), "report none.json does not exist"),
        (("--threshold", "nan", "--compare", "old.json"), "nan is not a finite number"),
        (("--threshold", "inf", "--compare", "old.json"), "inf is not a finite number"),
        (("--seconds", "nan"), "nan is not a finite number"),
        (("--force",), "--force: for --compare, which is not given; leave it out"),
        (("--threshold", "5"), "--threshold: for --compare, which is not given; leave it out"),
        (
            ("--from", "old.json", "--engine", "a", "--sizes", "8x8", "--peers", "--no-memory"),
            "--from measures nothing, and --model, --sizes, --peers, --no-memory would; leave one or the other out",
        ),
        (("--precision", "int4"), "'int4' is not one of"),
        (("-o", "taken/report"), "is a file; choose a folder"),
        (("--json", "taken/x.json"), "is a file; choose a folder"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_measuring(run: Bench, arguments: tuple[str, ...], message: str) -> None:
    Path("taken").write_text("")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert run.asked == []


def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--model", "edge-x"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: engine 'edge-x' is neither a shipped engine")
    assert err.count("\n") == 1


def test_without_matplotlib(run: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    error = MissingDependencyError("the HTML report needs 'matplotlib'; run: pip install 'rsd-edge[bench]'")
    monkeypatch.setattr(bench, "missing_for_html", lambda: error)
    code, out, err = run("-o", "found", "--html")
    assert (code, out, run.asked) == (2, "", [])
    assert "run: pip install 'rsd-edge[bench]'" in err
    assert not Path("found").exists()
    code, out, err = run("-o", "found")
    assert (code, out) == (0, "found\n")
    assert err == f"no report.html: {error}\n"
    assert sorted(path.name for path in Path("found").iterdir()) == ["report.json", "report.md"]
    assert run("-o", "quiet", "--no-html") == (0, "quiet\n", "")


def test_ctrl_c_leaves_nothing(run: Bench, tmp_path: Path) -> None:
    run.raises = KeyboardInterrupt()
    code, out, _ = run("-o", "found", "--json", "x/y.json")
    assert (code, out) == (130, "")
    assert list(tmp_path.iterdir()) == []


def test_a_slower_run_exits_with_three(run: Bench, tmp_path: Path) -> None:
    run.document = report(1.2)
    code, out, err = run("--compare", old(tmp_path), "--json", "-")
    assert code == 3
    assert err.count("slower: edge-t int8 onnxruntime") == 5
    assert "1.200 times as long" in err
    comparison = json.loads(out)["comparison"]
    assert comparison["threshold"] == 0.05
    assert comparison["confidence"] == 0.95
    assert sum(change["slower"] for change in comparison["changes"]) == 5
    code, out, err = run("--compare", old(tmp_path), "--threshold", 30)
    assert (code, err) == (0, "")
    assert "## Comparison" in out
    run.document = report(0.7)
    assert run("--compare", old(tmp_path))[0] == 0


def test_another_machine_is_refused_before_the_measuring(run: Bench, tmp_path: Path) -> None:
    path = old(tmp_path, machine={**report()["machine"], "cpu": "B"})
    code, out, err = run("--compare", path)
    assert (code, out, run.asked) == (2, "", [])
    assert "cpu was B and is A <fast> CPU; add --force" in err
    code, out, err = run("--compare", path, "--force")
    assert (code, err) == (0, "")
    assert "FORCED, although the reports do not compare: cpu was B and is A <fast> CPU" in out


def test_an_earlier_run_is_reported_on_without_measuring(run: Bench, tmp_path: Path) -> None:
    new = tmp_path / "new.json"
    new.write_text(json.dumps(report(1.2)))
    code, out, _ = run("--from", new)
    assert (code, out, run.asked) == (0, to_markdown(report(1.2)), [])
    assert run("--from", new, "--compare", old(tmp_path), "-o", "compared", "--no-html")[0] == 3
    assert json.loads(Path("compared/report.json").read_text())["comparison"]["changes"]
    code, out, _ = run("--from", "compared/report.json", "--json", "-")
    assert (code, json.loads(out)) == (0, report(1.2))  # the comparison was of another command
    assert not (tmp_path / "cache").exists()


def test_a_comparison_that_judges_nothing_is_no_success(run: Bench, tmp_path: Path) -> None:
    code, _, err = run("--compare", old(tmp_path), "--rounds", "4")
    assert (code, run.asked) == (2, [])
    assert "give --rounds 5 at least" in err
    run.document = report()
    for kind in ("frames", "tiles"):
        run.document[kind] = [{**row, "seconds": row["seconds"][:4]} for row in run.document[kind]]
    code, out, err = run("--compare", old(tmp_path))
    assert (code, "## Comparison" in out) == (2, True)
    assert "nothing could be judged: no engine's row is in both reports with 5 runs or more" in err


@pytest.mark.parametrize(
    "change",
    [
        {"machine": {}},
        {"engines": {"edge-t int8 onnxruntime": "text"}},
        {"latency": {"edge-t int8 onnxruntime": 1}},
        {"stages": {"a": 1}},
        {"frames": [{**report()["frames"][0], "name": ["a"]}]},
    ],
)
def test_an_edited_report_is_one_line(run: Bench, tmp_path: Path, change: dict[str, Any]) -> None:
    path = old(tmp_path, **change)
    for arguments in (("--from", path), ("--compare", path, "--force")):
        code, _, err = run(*arguments)
        assert code in (0, 2)
        assert "Traceback" not in err
        assert "is damaged (" in err or code == 0
    assert 2 in (run("--from", path)[0], run("--compare", path, "--force")[0])


def test_a_toy_engine_is_measured(toy_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For once all of it, on an engine that takes no time worth mentioning."""
    path = tmp_path / "report.json"
    measured = ("--sizes", "40x24,50x50", "--tile", "64", "--threads", "1", "--rounds", "5")
    for arguments in (("--model", str(toy_bundle), *measured), ("--from", str(path), "--compare", str(path))):
        with pytest.raises(SystemExit) as stop:
            main(["bench", *arguments, "--json", str(path)])
        assert stop.value.code == 0
    assert capsys.readouterr().out == ""
    document = json.loads(path.read_text())
    assert [row["name"] for row in document["frames"]] == [
        f"toy fp32 onnxruntime {size}, 1 thread" for size in ("40x24", "50x50")
    ]
    for row in document["frames"]:
        assert len(row["seconds"]) == 5
        assert 0 < row["ms"]["fastest"] <= row["ms"]["median"] <= row["ms"]["p99"]
        assert row["share_of_peak"] > 0
        assert row["peak_mb"] is None or 20 < row["peak_mb"] < 2000
    assert {row["peak"] for row in document["peaks"]} >= {"convolution fp32", "dot product int8", "memory copy"}
    assert set(document["stages"]["toy fp32 onnxruntime 50x50, 1 thread"]) >= {"engine", "merge", "rest"}
    assert document["latency"]["toy fp32 onnxruntime"]["error"] >= 0
    assert {change["ratio"] for change in document["comparison"]["changes"]} == {1.0}
