"""Runs as tables: nothing that compare.py shows is lost, and tables and folders go together."""

import dataclasses
from pathlib import Path

import pytest
from run_folders import damage, make_run

from common.errors import UserError
from reports.records import read_records, read_tables, write_tables
from reports.runs import make_run as understand

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "locomotion"


def make_runs(folder):
    """Two runs with curves, targets, other conditions, names and values that look like numbers."""
    make_run(
        folder / "hopper-medium" / "20-seed0",
        curve=(10, 30.25, 1e-7),
        targets=(100.0, 3000.0),
        sha256="1e5" + "0" * 61,
        others={
            "scores-horizon-5000": [(99, 3000.0, {"horizon": 5000})],
            "scores-rollout-window": [(48, 100.0, {"rollout": "window"})],
        },
    )
    make_run(folder / "walker2d-medium" / "ünï, 'x'-seed1", "walker2d-medium", referenced=False)
    return folder


def content(record):
    """All that a record holds, but the episodes, which the tables round and only keep once."""
    return (
        record.name,
        {key: value for key, value in record.config.items() if key != "run_dir"},
        record.data,
        *(
            (stem, [dataclasses.replace(s, episode_returns=[], episode_lengths=[]) for s in scores])
            for stem, scores in {"scores": record.scores, **record.evaluations}.items()
        ),
        record.curve,
    )


def test_tables_hold_what_the_folders_hold(tmp_path):
    records, problems = read_records([make_runs(tmp_path / "runs")])
    assert not problems
    write_tables(tmp_path / "table", records)
    again, problems = read_tables(tmp_path / "table")
    assert not problems
    assert [content(record) for record in again] == [content(record) for record in records]
    for one, other in zip(records, again, strict=True):
        assert other.scores[0].episode_returns == pytest.approx(one.scores[0].episode_returns)
        assert other.scores[0].episode_lengths == one.scores[0].episode_lengths
    write_tables(tmp_path / "second", again)
    for file in (tmp_path / "table").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


def test_tables_and_run_folders_are_read_together(tmp_path):
    records, _ = read_records([make_runs(tmp_path / "runs")])
    write_tables(tmp_path / "table", records)
    make_run(tmp_path / "more" / "x-seed2", seed=2)
    found, _ = read_records([tmp_path / "more", tmp_path / "table"])
    assert [record.name for record in found] == ["x-seed2", *(record.name for record in records)]
    with pytest.raises(UserError, match=r"20-seed0 and .*20-seed0 would both be called hopper"):
        write_tables(tmp_path / "both", read_records([tmp_path / "runs", tmp_path / "table"])[0])


def test_a_damaged_row_is_named_and_the_others_are_read(tmp_path):
    records, _ = read_records([make_runs(tmp_path / "runs")])
    write_tables(tmp_path, records)
    damage(tmp_path, "runs.csv", lambda text: text.replace("eN", "!!", 1))
    found, (problem,) = read_tables(tmp_path)
    assert [record.name for record in found] == ["walker2d-medium/ünï, 'x'-seed1"]
    assert "the row hopper-medium/20-seed0 of" in str(problem)
    (tmp_path / "curves.csv").unlink()
    with pytest.raises(UserError, match=r"cannot be read .*curves\.csv.*restore runs\.csv"):
        read_tables(tmp_path)


def test_the_committed_results_are_whole():
    records, problems = read_tables(RESULTS)
    assert not problems and len(records) >= 306
    for record in records:
        run = understand(record)
        (mean,) = {score.return_mean for score in record.scores}
        episodes = run.score.episode_returns
        assert len(episodes) == run.score.evaluation.episodes == len(run.score.episode_lengths)
        assert sum(episodes) / len(episodes) == pytest.approx(mean, rel=1e-6, abs=1e-3)
        assert run.curve and run.facts["data hash"] != "-"
