"""What `python -m envs.data.inspect` says of data whose contents are known."""

import json

import numpy as np
import pytest
from rich.console import Console

from common.errors import UserError
from envs.data.episodes import TYPES, Episodes
from envs.data.inspect import main, print_summary, summarize
from envs.data.sources import load_named
from envs.data.store import store_episodes
from envs.tasks import Reference


def trajectory(i, steps, *, truncated=False, seed=None):
    generator = np.random.default_rng(i if seed is None else seed)
    observations = generator.standard_normal((steps, 11))
    observations[:, 4] = 2.5
    actions = generator.uniform(-0.5, 0.5, (steps, 3))
    actions[0] = [1.0, -1.0, 0.9999]
    actions[:, 2] = np.maximum(actions[:, 2], 0.9995)
    ends = np.arange(steps) == steps - 1
    return observations, actions, np.full(steps, float(i + 1)), ends & ~truncated, ends & truncated


def flat(*trajectories):
    return {
        name: np.concatenate(parts)
        for name, parts in zip(TYPES, zip(*trajectories, strict=True), strict=True)
    }


@pytest.fixture
def dataset():
    store_episodes(
        "mine/hopper-v0",
        flat(
            trajectory(0, 4),
            trajectory(1, 10),
            trajectory(2, 1000, truncated=True),
            trajectory(3, 30, truncated=True),
            trajectory(1, 10),
            trajectory(5, 1),
            trajectory(1, 10, seed=9),  # the rewards of another one only
        ),
        environment_id="Hopper-v5",
        reference=Reference(0.0, 3000.0, "counting"),
    )
    return "mine/hopper-v0"


def test_the_summary_says_what_is_in_the_data(dataset):
    summary = summarize(load_named(dataset))
    assert (summary["episodes"], summary["steps"], summary["horizon"]) == (7, 1065, 1000)
    assert (summary["observation_dim"], summary["action_dim"]) == (11, 3)
    returns = np.array([4, 20, 3000, 120, 20, 6.0, 20])
    assert summary["return"]["mean"] == pytest.approx(returns.mean())
    assert summary["return"]["std"] == pytest.approx(returns.std())
    assert summary["return"]["q50"] == 20.0 and summary["return"]["q100"] == 3000.0
    assert summary["return"]["top10_mean"] == 3000.0
    assert summary["normalized_score"]["q100"] == 100.0
    assert summary["normalized_score"]["mean"] == pytest.approx(returns.mean() / 30)
    assert (summary["length"]["q0"], summary["length"]["q100"]) == (1, 1000)
    assert summary["ends"] == {
        "terminated": 5,
        "truncated": 2,
        "neither": 0,
        "truncated_before_horizon": 1,
    }
    assert not summary["best_episodes_cut_short"]  # the best one reached the time limit
    actions = summary["actions"]
    assert (actions["min"][1], actions["max"][0]) == (-1.0, 1.0)
    np.testing.assert_allclose(actions["saturated_share"], [7 / 1065, 7 / 1065, 1.0])
    assert summary["constant_observations"] == [4]
    assert summary["constant_actions"] == [] and not summary["constant_rewards"]
    assert summary["duplicate_episodes"] == 1


def test_the_page_fits_a_terminal_and_the_json_is_json(dataset, capsys):
    main([f"dataset={dataset}"])
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    for words in ("episodes 7 steps 1,065", "environment Hopper-v5", "horizon 1,000",
                  "minimum 0, maximum 3,000, source counting",
                  "terminated 5, truncated 2, neither 0, truncated before horizon 1",
                  "constant observations 4", "constant actions none", "constant rewards no",
                  "greatest (return: the default target) 3,000.0 100.0"):  # fmt: skip
        assert words in " ".join(page.split()), words
    main([f"dataset={dataset}", "json=true"])
    assert json.loads(capsys.readouterr().out) == summarize(load_named(dataset))


def test_data_without_scores_or_environment_have_a_page_too(capsys):
    arrays = flat(trajectory(0, 1)) | {"terminations": [False]}
    bounds = {"action_low": [-1] * 3, "action_high": [1] * 3}
    summary = summarize(Episodes(**arrays, **bounds, lengths=[1], dataset_id="b-v0"))
    assert summary["normalized_score"] is None and summary["horizon"] is None
    assert summary["constant_actions"] == [0, 1, 2] and summary["constant_rewards"]
    print_summary(summary, Console())
    page = " ".join(capsys.readouterr().out.split())
    assert "reference unknown" in page and "neither 1" in page and "environment unknown" in page


def test_the_command_takes_mixes_and_explains_mistakes(dataset, start, capsys):
    main([f"dataset={dataset}+{dataset}", "json=true"])
    summary = json.loads(capsys.readouterr().out)
    assert (summary["episodes"], summary["duplicate_episodes"]) == (14, 8)
    with pytest.raises(UserError, match="there is no key 'data'; the keys are: dataset"):
        main(["data=a"])
    done = start("-m envs.data.inspect", "dataset=nothing.hdf5", "environment=Hopper-v4")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip().startswith("error: there is no file nothing.hdf5")
