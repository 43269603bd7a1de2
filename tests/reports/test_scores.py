"""Scores against figures worked out by hand, their table as a person reads it, and their file."""

import io
import json
import os
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console

from common import files as atomic
from common.errors import UserError
from envs.tasks import DatasetInfo, Evaluation, Reference, RolloutResult
from reports.scores import (
    make_scores,
    print_scores,
    read_scores,
    scores_file,
    write_scores,
)
from reports.tables import read_published

REFERENCE = Reference(-100.0, 300.0, "Somebody, measured in the v2 environments")
DATASET = DatasetInfo(
    id="some/data-v0",
    environment_id="Hopper-v5",
    environment_kwargs={},
    reference=REFERENCE,
    episodes=9,
    steps=999,
    return_mean=50.0,
    return_top10=300.0,
    return_max=400.0,
    sha256="0" * 64,
)
OWN = Evaluation("Hopper-v5", "carried", 20, (250.0,), episodes=4, seed=7)
RESULT = RolloutResult(
    episode_returns=np.array([[100.0, 300.0, 200.0, 0.0]]),
    episode_lengths=np.array([[10, 1000, 20, 30]]),
    successes=None,
    environment_id="Hopper-v5",
    engine_version="1.2.0",
    mujoco_version="3.3.1",
    seconds=2.0,
)


@pytest.fixture
def score():
    return make_scores(RESULT, OWN, DATASET, 1500)[0]


def printed(scores, width, dataset=DATASET):
    text = io.StringIO()
    print_scores(scores, dataset, Console(file=text, width=width))
    return text.getvalue()


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_summary_by_hand(score):
    assert (score.return_mean, score.length_mean) == (150, 265)
    assert score.return_std == pytest.approx(np.sqrt((50**2 + 150**2 + 50**2 + 150**2) / 4))
    assert score.normalized_score_mean == pytest.approx(62.5)
    assert score.normalized_score_std == pytest.approx(score.return_std / 4)
    assert (score.checkpoint_step, score.target_return) == (1500, 250)
    assert score.success_rate is None and "eval/success_rate" not in score.scalars()
    assert score.scalars()["eval/normalized_score_mean"] == score.normalized_score_mean


def test_each_target_return_has_its_row_of_the_rollout():
    both = replace(
        RESULT,
        episode_returns=np.array([[1.0, 3.0], [5.0, 7.0]]),
        episode_lengths=np.array([[10, 20], [30, 40]]),
        successes=np.array([[True, False], [True, True]]),
        environment_id="Hopper-v6",
    )
    asked = replace(OWN, environment_id="Hopper", target_returns=(2.0, 8.0), episodes=2)
    first, second = make_scores(both, asked, DATASET, 0)
    assert (first.target_return, second.target_return) == (2.0, 8.0)
    assert (first.return_mean, second.return_mean, second.length_mean) == (2.0, 6.0, 35.0)
    assert (first.success_rate, second.success_rate) == (0.5, 1.0)
    assert second.evaluation == replace(asked, environment_id="Hopper-v6", target_returns=(8.0,))
    assert ["8", "carried", "6.0 ± 1.0", "26.5 ± 0.2", "100 %", "35.0"] in rows(
        printed([first, second], 80)
    )


def test_the_file_of_an_evaluation_is_named_after_what_differs_from_the_runs_own():
    assert scores_file(replace(OWN, n_envs=3), OWN) == "scores.json"
    other = replace(OWN, seed=0, engine="envpool", horizon=5000)
    assert scores_file(other, OWN) == "scores-seed-0-horizon-5000-engine-envpool.json"
    other = replace(OWN, environment_id="Walker2d-v5", target_returns=(1800.0, 0.5))
    assert scores_file(other, replace(OWN, environment_kwargs={"a": [1]})) == (
        "scores-environment-Walker2d-v5-target_return-1800-0.5.json"
    )
    many = [
        scores_file(replace(OWN, target_returns=tuple(map(float, range(n)))), OWN) for n in (99, 98)
    ]
    assert many[0] != many[1] and all(len(name) < 150 for name in many)


def test_hidden_observations_are_named_beside_the_score(tmp_path, score):
    for hidden, words in (([5, 6, 7, 8, 9, 10], "velocities"), ([10, 2], "10, 2"), ([], "")):
        (hiding,) = make_scores(RESULT, OWN, DATASET, 0, hidden)
        assert hiding.hidden_observations == words
        line = f"Observations that the policy does not see: {words}."
        assert (line in printed([hiding], 80).splitlines()) == bool(words)
        write_scores(tmp_path / "scores.json", [hiding])
        assert read_scores(tmp_path / "scores.json") == [hiding]
    (row,) = json.loads((tmp_path / "scores.json").read_text())
    del row["hidden"]  # as files of before
    (tmp_path / "scores.json").write_text(json.dumps([row]))
    assert read_scores(tmp_path / "scores.json") == [hiding]


@pytest.mark.parametrize("width", [80, 100])
def test_table_reads_whole_at_the_width_of_a_terminal(score, width):
    rolling = replace(score.evaluation, target_returns=(12000.0,), rollout="rolling")
    other = replace(score, evaluation=rolling, return_mean=11234.5, return_std=1234.5)
    text = printed([score, other], width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text  # nothing is cut off
    assert rows(text) == [
        ["250", "carried", "150.0 ± 111.8", "62.5 ± 28.0", "265.0"],
        ["12,000", "rolling", "11,234.5 ± 1,234.5", "62.5 ± 28.0", "265.0"],
        ["data, mean", "", "50.0", "37.5", ""],
        ["data, top 10 %", "", "300.0", "100.0", ""],
    ]
    flowing = " ".join(text.split())
    for words in (
        "some/data-v0, update 1,500",
        "Hopper-v5, Gymnasium 1.2.0, MuJoCo 3.3.1;",
        "over 4 episodes, seed 7",
        "0 is a return of -100.0, 100 is 300.0",
        "source: Somebody, measured in the v2 environments.",
        "This environment is v5: scores compare with those of v2 only approximately.",
    ):
        assert words in flowing
    assert "\x1b" not in text  # a file or a pipe gets plain text


def test_another_engine_is_named(score):
    other = replace(
        score,
        evaluation=replace(score.evaluation, engine="envpool"),
        engine_version="1.2.5",
        mujoco_version=None,
    )
    text = " ".join(printed([other], 80).split())
    assert "Hopper-v5, EnvPool 1.2.5; mean" in text and "MuJoCo" not in text


def test_no_warning_where_the_versions_agree(score):
    here = replace(score, reference=replace(REFERENCE, source="measured in v5"))
    assert "approximately" not in printed([here], 80)
    older = replace(score.evaluation, environment_id="Hopper-v2")
    assert "approximately" not in printed([replace(score, evaluation=older)], 80)


def test_without_a_reference_the_table_has_raw_returns_only():
    bare = replace(DATASET, reference=None)
    (score,) = make_scores(RESULT, replace(OWN, rollout="window"), bare, 1500)
    assert score.normalized_score_mean is None
    assert "eval/normalized_score_mean" not in score.scalars()
    text = printed([score], 80, bare)
    assert rows(text) == [
        ["250", "window", "150.0 ± 111.8", "265.0"],
        ["data, mean", "", "50.0", ""],
        ["data, top 10 %", "", "300.0", ""],
    ]
    assert "normalised" not in text
    assert "raw returns only" in text


def test_file_round_trip(score, tmp_path):
    path = tmp_path / "scores.json"
    kwargs = {"maze_map": [[1, 0], [0, 1]], "reward_type": "sparse"}
    other = replace(OWN, environment_kwargs=kwargs, start_noise=0.5)
    (bare,) = make_scores(RESULT, other, replace(DATASET, reference=None), 0)
    write_scores(path, [score])
    write_scores(path, [score, bare])
    assert read_scores(path) == [score, bare]
    assert json.loads(path.read_text())[0]["episode_returns"] == [100, 300, 200, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_file(score, tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_scores(path, [score])

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(UserError, match=r"scores\.json cannot be written \(No space left"):
        write_scores(path, [score, score])
    assert read_scores(path) == [score]
    assert os.listdir(tmp_path) == ["scores.json"]


def test_a_place_that_cannot_be_written_or_read_is_one_sentence(score, tmp_path):
    with pytest.raises(UserError, match=r"cannot be written \(No such file"):
        write_scores(tmp_path / "missing" / "scores.json", [score])
    with pytest.raises(UserError, match=r"cannot be read: No such file"):
        read_scores(tmp_path / "scores.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"dataset_id": "a"', "are damaged or of another version .*delimiter"),
        ("\udcff", "are damaged or of another version .*can't decode byte"),
        ("[" * 100_000, "are damaged or of another version .*recursion"),
        ('[{"dataset_id": "a"}]', "are damaged or of another version .*checkpoint_step"),
        ("3", "are damaged or of another version .*there is 3 where the keys of a Score"),
        ("[]", "are an empty list"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "scores.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=words):
        read_scores(path)


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (["retrun_mean"], 1.0, "missing or unknown: retrun_mean"),
        (["return_mean"], "x", "return_mean is 'x'"),
        (["return_mean"], float("nan"), "return_mean is nan"),
        (["checkpoint_step"], 2.5, "checkpoint_step is 2.5"),
        (["checkpoint_step"], True, "checkpoint_step is True"),
        (["reference"], [], r"reference is \[\]"),
        (["reference", "minimum"], 300, "both must be finite, and the second above"),
        (["evaluation", "episodes"], 0, "episodes is 0; it must be at least 1"),
        (["evaluation", "target_returns"], [], "target_returns is an empty list"),
        (["episode_returns"], [1, None], "episode_returns is None"),
    ],
)
def test_a_wrong_value_in_a_file_is_named(score, tmp_path, keys, value, words):
    path = tmp_path / "scores.json"
    row = asdict(score)
    place = row
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps([row]))
    with pytest.raises(UserError, match=words):
        read_scores(path)


def test_published_scores_are_whole():
    published = read_published()
    assert len({row["method"] for row in published}) == len(published)
    tasks = {
        f"{task}-{kind}"
        for task in ("hopper", "halfcheetah", "walker2d")
        for kind in ("medium", "medium-replay", "medium-expert")
    }
    for row in published:
        words = {"method", "source", "protocol", "evidence"}
        assert row.keys() == tasks | words | {"average"}
        assert all(row[key] for key in words)
        # Cells and average are published with one decimal: a slip of a digit shows here.
        mean = sum(float(row[task]) for task in tasks) / len(tasks)
        assert float(row["average"]) == pytest.approx(mean, abs=0.1), row["method"]
