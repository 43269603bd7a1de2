"""Scores against figures worked out by hand, their table as a person reads it, and their file."""

import io
import json
import os
from dataclasses import asdict, dataclass, replace

import gymnasium
import numpy as np
import pytest
from rich.console import Console

from common import files as atomic
from common.errors import UserError
from envs.simulation.rollout import RolloutResult
from envs.tasks import TASKS
from reports.scores import (
    make_score,
    normalized_score,
    print_scores,
    read_published,
    read_scores,
    write_scores,
)


@dataclass
class Run:
    rollout: str
    dataset: dict


REFERENCE = {
    "reference_min": -100.0,
    "reference_max": 300.0,
    "reference_source": "Somebody, measured in the v2 environments",
}
RESULT = RolloutResult(
    engine="gymnasium",
    episode_returns=np.array([100.0, 300.0, 200.0, 0.0]),
    episode_lengths=np.array([10, 1000, 20, 30]),
    environment_id="Hopper-v5",
    mujoco_version="3.3.1",
    seed=7,
    seconds=2.0,
    policy_seconds=1.0,
)


@pytest.fixture
def score():
    return make_score(RESULT, Run("carried", {"id": "some/data-v0", **REFERENCE}), 250, 1500)


def printed(scores, width, mean=50.0, top10=300.0):
    text = io.StringIO()
    print_scores(
        scores,
        dataset_return_mean=mean,
        dataset_return_top10=top10,
        console=Console(file=text, width=width),
    )
    return text.getvalue()


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_normalized_score_by_hand():
    assert normalized_score(100.0, -100.0, 300.0) == 50
    assert normalized_score(np.array([-100.0, 300.0, 700.0]), -100.0, 300.0).tolist() == [
        0,
        100,
        200,
    ]
    hopper = TASKS["hopper"]
    # The third is the middle between a random policy and an expert.
    for value, expected in ((3234.3, 100.0), (-20.272305, 0.0), (1607.0138475, 50.0)):
        found = normalized_score(value, hopper.reference.minimum, hopper.reference.maximum)
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("pair", [(1.0, 1.0), (2.0, 1.0), (0.0, float("nan"))])
def test_a_reference_pair_out_of_order_is_refused(pair):
    with pytest.raises(UserError, match=r"must be above.*metadata"):
        normalized_score(1.0, *pair)


def test_summary_by_hand(score):
    assert (score.return_mean, score.length_mean, score.episodes) == (150, 265, 4)
    assert score.return_std == pytest.approx(np.sqrt((50**2 + 150**2 + 50**2 + 150**2) / 4))
    assert score.normalized_score_mean == pytest.approx(62.5)
    assert score.normalized_score_std == pytest.approx(score.return_std / 4)
    assert (score.seed, score.checkpoint_step, score.target_return) == (7, 1500, 250)
    assert score.gymnasium_version == gymnasium.__version__
    assert score.scalars()["eval/normalized_score_mean"] == score.normalized_score_mean


@pytest.mark.parametrize("width", [80, 100])
def test_table_reads_whole_at_the_width_of_a_terminal(score, width):
    other = replace(
        score, target_return=12000.0, rollout="rolling", return_mean=11234.5, return_std=1234.5
    )
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
        "Hopper-v5, MuJoCo 3.3.1",
        "over 4 episodes, seed 7",
        "0 is a return of -100.0, 100 is 300.0",
        "source: Somebody, measured in the v2 environments.",
        "This environment is v5: scores compare with those of v2 only approximately.",
    ):
        assert words in flowing
    assert "\x1b" not in text  # a file or a pipe gets plain text


def test_another_engine_is_named(score):
    assert "stepped by envpool" in " ".join(printed([replace(score, engine="envpool")], 80).split())
    assert "stepped by" not in printed([score], 80)


def test_no_warning_where_the_versions_agree(score):
    here = replace(score, reference_source="measured in v5")
    assert "approximately" not in printed([here], 80)
    assert "approximately" not in printed([replace(score, environment_id="Hopper-v2")], 80)


def test_without_a_reference_the_table_has_raw_returns_only():
    score = make_score(RESULT, Run("window", {"id": "mine", "reference_min": None}), 250, 1500)
    assert score.normalized_score_mean is None
    assert "eval/normalized_score_mean" not in score.scalars()
    text = printed([score], 80, top10=None)
    assert rows(text) == [
        ["250", "window", "150.0 ± 111.8", "265.0"],
        ["data, mean", "", "50.0", ""],
    ]
    assert "normalised" not in text
    assert "raw returns only" in text


def test_file_round_trip(score, tmp_path):
    path = tmp_path / "scores.json"
    bare = make_score(RESULT, Run("window", {"id": "mine"}), 1.5, 0)
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
        ('[{"dataset_id": "a"', "are not JSON"),
        ("\udcff", "are not JSON"),
        ('[{"dataset_id": "a"}]', "checkpoint_step"),
        ("3", "do not have the expected keys"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, text, words):
    path = tmp_path / "scores.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=words):
        read_scores(path)


def test_an_unknown_key_is_named(score, tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps([{**asdict(score), "retrun_mean": 1.0}]))
    with pytest.raises(UserError, match="retrun_mean"):
        read_scores(path)


def test_published_scores_are_whole():
    published = read_published()
    assert len({row.method for row in published}) == len(published)
    tasks = {
        f"{task}-{kind}" for task in TASKS for kind in ("medium", "medium-replay", "medium-expert")
    }
    for row in published:
        assert set(row.normalized_scores) == tasks
        assert row.paper
        assert row.protocol
        assert row.evidence
        # Cells and average are published with one decimal: a slip of a digit shows here.
        mean = sum(row.normalized_scores.values()) / len(tasks)
        assert row.average == pytest.approx(mean, abs=0.1), row.method
