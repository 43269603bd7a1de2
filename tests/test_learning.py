"""The whole way at a size that learns; run it with `pytest -m slow`."""

import json

import pytest

from reports.scores import read_scores


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["min_gru", "min_lstm"])
def test_two_minutes_of_training_beat_the_mean_of_their_data(backbone, start, tmp_path):
    arguments = [f"backbone={backbone}", "dataset.steps=100000", "steps=1000", "run_dir=run"]
    arguments += ["evaluation.every=0", "evaluation.episodes=20"]
    store = {"MINARI_DATASETS_PATH": str(tmp_path / "data")}  # of another size than the others'
    assert start("train.py", *arguments, variables=store, stderr=None).returncode == 0
    (score,) = read_scores(tmp_path / "run" / "scores.json")
    data = json.loads((tmp_path / "run" / "config.json").read_text())["dataset"]
    # Fewer updates are not enough to count on: the first policies fall over, all at the same step.
    standard_error = score.return_std / score.evaluation.episodes**0.5
    assert score.return_mean - 2 * standard_error > data["return_mean"]
