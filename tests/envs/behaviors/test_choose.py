"""Choosing the snapshots of a training for its data sets."""

import re
import shutil
from types import SimpleNamespace

import pytest

from common.errors import UserError
from envs.behaviors import SNAPSHOTS, load_snapshots, snapshot_path
from envs.behaviors.choose import choose, main


def table(returns, whole=None):
    """Measurements that agree with the curve, apart from the shares of whole episodes."""
    curve = {100 * (i + 1): value for i, value in enumerate(returns)}

    def measured(step):
        share = 1.0 if whole is None else whole.get(step, 1.0)
        return SimpleNamespace(training_steps=step, sampled_return=curve[step], sampled_whole=share)

    return curve, measured


def test_the_expert_is_the_best_of_those_that_stay_up():
    curve, measured = table(range(0, 1200, 100))  # 100 to 1,200 steps
    assert choose(curve, measured).expert == 1200
    whole = {1200: 0.8, 1100: 0.95, 1000: 1.0}
    assert choose(*table(range(0, 1200, 100), whole)).expert == 1100
    whole = dict.fromkeys(curve, 0.5) | {900: 0.7}
    assert choose(*table(range(0, 1200, 100), whole)).expert == 900


def test_an_early_peak_is_no_expert():
    curve, measured = table([0, 5000, *range(100, 1100, 100)])
    assert choose(curve, measured).expert == 1200


def test_medium_is_the_earliest_in_the_window_and_replay_covers_the_training_up_to_it():
    chosen = choose(*table(range(10, 1210, 10)))  # a return of a tenth of the steps
    assert (chosen.medium, chosen.expert) == (4000, 12000)
    assert list(chosen.replay) == [500 * i for i in range(1, 9)]
    assert set(chosen.replay.values()) == {500}
    assert chosen.version == 1
    few = choose(*table([10, 40, 60, 80, 90, 100]))
    assert (few.medium, few.replay) == (200, {100: 100, 200: 100})


def test_medium_is_the_nearest_where_the_training_jumps_over_the_window():
    chosen = choose(*table([0, 30, 70, 80, 90, 100]))
    assert chosen.medium == 200
    for returns in ([100], [-3, -2, -1]):
        with pytest.raises(UserError, match=r"the expert is the snapshot after .*train longer"):
            choose(*table(returns))


def test_the_command_replaces_the_folder_of_the_task(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    training, target = tmp_path / "training", tmp_path / "target"
    training.mkdir()
    (target / "hopper").mkdir(parents=True)
    (target / "hopper" / "step_0000007.safetensors").write_bytes(b"of an older recipe")
    steps = SNAPSHOTS["hopper"].steps()
    for step in steps:
        shutil.copy(snapshot_path("hopper", step), training)
    rows = [f"hopper,{step},{step / 100}" for step in steps]
    (training / "returns.csv").write_text("\n".join(["task,training_steps,sampled_return", *rows]))
    main([f"training={training}", f"directory={target}", "episodes=2"])
    output = capsys.readouterr().out
    assert "hopper: expert" in output
    chosen = load_snapshots(target / "hopper" / "recipe.json")
    assert chosen.medium in chosen.replay
    files = {path.name for path in (target / "hopper").iterdir()}
    assert files == {"recipe.json", "returns.csv"} | {
        f"step_{step:07d}.safetensors" for step in chosen.steps()
    }
    names = {path.name for path in target.iterdir()} - {".choosing.lock"}
    assert names == {"hopper", "learning_curves.png"}
    share = re.search(r"([0-9.]+) of the expert's return; replay", output)[1]
    outside_of_the_window = not 0.333 < float(share) <= 0.5
    assert outside_of_the_window == (
        "no snapshot that was measured has a third to a half" in output
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a table of one training"),
        ("task,training_steps\nhopper,5\n", "is not a table of one training"),
        ("task,training_steps,sampled_return\n", "is not a table of one training"),
        ("task,training_steps,sampled_return\nhopper,5,1\n", r"are missing: .*step_0000005\.safe"),
        ("task,training_steps,sampled_return\nant,5,1\n", "names the task ant"),
    ],
)
def test_a_folder_that_is_no_training_is_one_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "returns.csv").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        main([f"training={tmp_path}", f"directory={tmp_path}"])
    assert "\n" not in str(caught.value)


def test_the_shipped_recipes_have_one_version():
    assert len({chosen.version for chosen in SNAPSHOTS.values()}) == 1
