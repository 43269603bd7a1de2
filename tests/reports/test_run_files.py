"""Runs as tables: nothing that compare.py shows is lost, and tables and folders go together."""

import dataclasses
import re
from pathlib import Path

import pytest
from run_folders import damage, make_run

from common.errors import UserError
from reports.run_files import read_runs, write_tables

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "locomotion"


def make_runs(folder):
    """Two runs with curves, targets, other conditions, names and values that look like numbers."""
    make_run(
        folder / "hopper-medium" / "20-seed0",
        curve=(10, 30.25, 1e-7),
        targets=(100.0, 3000.0),
        sha256="1e5" + "0" * 61,
        updates_per_second=12.5,
        others={
            "scores-horizon-5000": [(99, 3000.0, {"horizon": 5000})],
            "scores-rollout-window": [(48, 100.0, {"rollout": "window"})],
        },
    )
    make_run(folder / "walker2d-medium" / "ünï, 'x'-seed1", "walker2d-medium", referenced=False)
    return folder


def content(run):
    """All that a run holds, but the episodes, which the tables round."""
    return (
        run.name,
        {key: value for key, value in run.config.items() if key != "run_dir"},
        run.data,
        *(
            (stem, [dataclasses.replace(s, episode_returns=[], episode_lengths=[]) for s in scores])
            for stem, scores in {"scores": run.scores, **run.evaluations}.items()
        ),
        run.log,
    )


def every_score(run):
    return [score for scores in (run.scores, *run.evaluations.values()) for score in scores]


def test_tables_hold_what_the_folders_hold(tmp_path):
    runs, problems = read_runs([make_runs(tmp_path / "runs")])
    assert not problems
    write_tables(tmp_path / "table", runs)
    again, problems = read_runs([tmp_path / "table"])
    assert not problems
    assert [content(run) for run in again] == [content(run) for run in runs]
    for one, other in zip(runs, again, strict=True):
        pairs = zip(every_score(one), every_score(other), strict=True)
        assert all(b.episode_returns == pytest.approx(a.episode_returns) for a, b in pairs)
        assert other.scores[0].episode_lengths == one.scores[0].episode_lengths
    write_tables(tmp_path / "second", again)
    for file in (tmp_path / "table").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_tables_and_run_folders_are_read_together(tmp_path):
    runs, _ = read_runs([make_runs(tmp_path / "runs")])
    write_tables(tmp_path / "table", runs)
    make_run(tmp_path / "more" / "x-seed2", seed=2)
    found, _ = read_runs([tmp_path / "more", tmp_path / "table"])
    assert [run.name for run in found] == ["x-seed2", *(run.name for run in runs)]
    with pytest.raises(UserError, match=r"20-seed0 and .*20-seed0 would both be called hopper"):
        write_tables(tmp_path / "both", read_runs([tmp_path / "runs", tmp_path / "table"])[0])


# What is replaced in the first row of runs.csv, by what, and the reason that is given.
ROWS = [
    ("eN", "!!", "damaged"),  # the packed returns
    ("\nhopper-medium/20-seed0,", "\nhopper-medium/20-seed0,,", "more cells than .* columns"),
    ("\nhopper-medium/20-seed0,", "\nhopper-medium/20-seed0,x", "return_mean is 'x"),
    (",min_gru,", ",,", "the key 'backbone.name' is missing"),
]


def test_a_damaged_row_is_named_and_the_others_are_read(tmp_path):
    runs, _ = read_runs([make_runs(tmp_path / "runs")])
    table = tmp_path / "table"
    write_tables(table, runs)
    whole = (table / "runs.csv").read_text()
    for old, new, reason in ROWS:
        (table / "runs.csv").write_text(whole.replace(old, new, 1))
        found, (problem,) = read_runs([table])
        assert [run.name for run in found] == ["walker2d-medium/ünï, 'x'-seed1"]
        assert re.search(f"the row hopper-medium/20-seed0 of .*{reason}", str(problem)), problem


def test_a_damaged_table_is_named_and_the_others_are_read(tmp_path):
    runs, _ = read_runs([make_runs(tmp_path / "runs")])
    for name in ("good", "bad"):
        write_tables(tmp_path / name, runs)
    damage(tmp_path / "bad", "evaluations.csv", lambda text: text.replace("run,file", "ran,file"))
    found, (problem,) = read_runs([tmp_path / "bad", tmp_path / "good"])
    assert len(found) == 2
    assert re.search(r"bad.evaluations\.csv is damaged .*the key 'run' is missing", str(problem))
    (tmp_path / "bad" / "curves.csv").unlink()
    (tmp_path / "bad" / "evaluations.csv").write_bytes(
        (tmp_path / "good" / "evaluations.csv").read_bytes()
    )
    found, (problem,) = read_runs([tmp_path / "bad", tmp_path / "good"])
    assert len(found) == 2
    assert re.search(r"bad.curves\.csv is damaged .*No such file", str(problem))


def test_the_committed_results_are_whole():
    others = [RESULTS.with_name(f"locomotion_{name}") for name in ("v0", "1500")]
    runs, problems = read_runs([RESULTS, *others])
    assert not problems and len(runs) >= 51 + 306
    for run in runs:
        (mean,) = {score.return_mean for score in run.scores}
        episodes = run.score.episode_returns
        assert len(episodes) == run.score.evaluation.episodes == len(run.score.episode_lengths)
        assert sum(episodes) / len(episodes) == pytest.approx(mean, rel=1e-6, abs=1e-3)
        assert run.facts["data hash"] != "-"
        assert run.curve or not run.config["evaluation.every"]
