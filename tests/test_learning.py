"""The whole way at a size that learns; run it with `pytest -m slow`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["min_gru", "min_lstm"])
def test_a_minute_of_training_beats_the_mean_of_its_data(backbone, tmp_path):
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "train.py"),
            f"backbone={backbone}",
            "backbone.d_model=64",
            "dataset.steps=30000",
            "steps=600",
            "evaluation.every=0",
            "evaluation.episodes=20",
            "run_dir=run",
        ],
        cwd=tmp_path,
        env={**os.environ, "MINARI_DATASETS_PATH": str(tmp_path / "data")},
        check=True,
    )
    (score,) = json.loads((tmp_path / "run" / "scores.json").read_text())
    data = json.loads((tmp_path / "run" / "config.json").read_text())["dataset"]
    standard_error = score["return_std"] / score["episodes"] ** 0.5
    assert score["return_mean"] - 2 * standard_error > data["return_mean"]
