"""Your own arrays become a Minari data set that trains like any other."""

import json
import os

import minari
import numpy as np
import pytest
from minari.storage import get_dataset_path

from common.errors import UserError
from envs.data.sources import DatasetConfig, load_episodes
from envs.data.store import dataset_path, main, read_npz, store_episodes
from envs.tasks import TASKS, Reference

LENGTHS = (3, 1, 4)


def arrays(dimension=11, **changes):
    """Flat arrays in the shape of Hopper's: three episodes, the second one truncated."""
    steps = sum(LENGTHS)
    ends = np.cumsum(LENGTHS) - 1
    terminations, truncations = np.zeros((2, steps), bool)
    terminations[ends[[0, 2]]] = True
    truncations[ends[1]] = True
    return {
        "observations": np.arange(steps * dimension, dtype=np.float32).reshape(steps, dimension),
        "actions": np.linspace(-1, 1, steps * 3, dtype=np.float32).reshape(steps, 3),
        "rewards": np.arange(steps, dtype=np.float64),
        "terminations": terminations,
        "truncations": truncations,
    } | changes


def assert_are_the_arrays(episodes, given):
    np.testing.assert_array_equal(episodes.lengths, LENGTHS)
    for name in ("observations", "actions", "rewards", "terminations", "truncations"):
        np.testing.assert_array_equal(getattr(episodes, name), given[name], err_msg=name)


def test_flat_arrays_survive_the_way_to_minari_and_back():
    given = arrays()
    store_episodes(
        "mine/hopper-v0",
        given,
        environment_id="Hopper-v5",
        reference=Reference(1.0, 2.0, "my own measurement"),
        metadata={"algorithm_name": "walking", "author": {"me"}},
    )
    episodes = load_episodes(DatasetConfig("minari", "mine/hopper-v0"))
    assert_are_the_arrays(episodes, given)
    assert episodes.environment_id == "Hopper-v5"
    assert episodes.reference == Reference(1.0, 2.0, "my own measurement")
    np.testing.assert_array_equal(episodes.action_high, np.ones(3))
    dataset = minari.load_dataset("mine/hopper-v0")
    assert dataset.storage.metadata["algorithm_name"] == "walking"
    assert minari.get_normalized_score(dataset, np.array([1.5])) == pytest.approx([0.5])


def test_a_known_environment_brings_d4rls_scores_an_unknown_origin_none():
    store_episodes("mine/a-v0", arrays(), environment_id="Hopper-v5")
    episodes = load_episodes(DatasetConfig("minari", "mine/a-v0"))
    assert episodes.reference == TASKS["hopper"].reference
    store_episodes("b-v0", arrays(), action_low=[-2] * 3, action_high=[2] * 3)
    episodes = load_episodes(DatasetConfig("minari", "b-v0"))
    assert episodes.reference is None and episodes.environment_id is None
    np.testing.assert_array_equal(episodes.action_low, [-2, -2, -2])


def test_the_observation_after_the_end_is_the_given_one_or_the_last_again():
    given = arrays()
    after = given["observations"] + 0.5
    for i, more in enumerate([{"next_observations": after, "seeds": [7, 8, 9]}, {}]):
        store_episodes(f"mine/a-v{i}", given | more, environment_id="Hopper-v5")
    first, second = (list(minari.load_dataset(f"mine/a-v{i}")) for i in range(2))
    np.testing.assert_array_equal(first[0].observations[:3], given["observations"][:3])
    np.testing.assert_array_equal(first[0].observations[-1], after[2])
    np.testing.assert_array_equal(second[0].observations[-1], given["observations"][2])
    storage = minari.load_dataset("mine/a-v0").storage
    assert [m["seed"] for m in storage.get_episode_metadata(range(3))] == [7, 8, 9]


def test_the_command_stores_an_npz_file(tmp_path, start, capsys):
    column = {"rewards": np.arange(8)[:, None]}  # integers, (N, 1)
    given = arrays() | column
    np.savez(tmp_path / "walk.npz", **given)
    line = [f"file={tmp_path / 'walk.npz'}", "id=mine/walk-v0", "environment=Hopper-v5"]
    main(line)
    assert "mine/walk-v0: 3 episodes, 8 steps, in " in capsys.readouterr().out
    given["rewards"] = given["rewards"][:, 0]
    assert_are_the_arrays(load_episodes(DatasetConfig("minari", "mine/walk-v0")), given)
    with pytest.raises(UserError, match=r"mine/walk-v0 exists already .*overwrite=true"):
        main(line)
    main([*line, "overwrite=true"])
    with pytest.raises(UserError, match=r"unknown; give action_low.*from \[-1.0, .* to \[.*1.0\]"):
        main([*line[:2], "overwrite=true"])
    for wrong, message in (
        (["reference_min=1.0"], "give both of reference_min and reference_max, or none"),
        (
            ["reference_min=1.0", "reference_max=0.5"],
            "reference returns are 1.0 .* and 0.5 .*; both must be finite, and the second above",
        ),
        (["reference_min=1.0", "reference_max=inf"], "reference_max is inf; it must be at least"),
    ):
        with pytest.raises(UserError, match=message):
            main([*line, *wrong])
    again = {"MINARI_DATASETS_PATH": str(tmp_path / "store")}
    done = start("-m envs.data.store", *line, variables=again)
    assert done.returncode == 1 and done.stderr.startswith("error: mine/walk-v0 exists already")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": np.zeros((7, 3))}, "7 actions for 8 rewards; each step needs one of each"),
        ({"terminations": np.zeros(8, bool)}, r"neither terminations\[7\] nor truncations\[7\]"),
        ({"rewards": np.zeros(0)}, "there are 8 terminations for 0 rewards"),
        ({name: array[:0] for name, array in arrays().items()}, "there is no episode"),
        ({"rewards": np.array([0, np.nan] * 4)}, r"rewards\[1\] = nan \(episode 0\) is not finite"),
        ({"actions": np.full((8, 3), 1.5)}, r"actions\[0, 0\] = 1.5 .* outside the bounds"),
        ({"truncations": np.full(8, 2)}, r"truncations\[0\] = 2; it must be 0 or 1"),
        ({"rewards": np.zeros((8, 2))}, r"rewards has shape \(8, 2\), not \(steps,\) or"),
        ({"actions": np.zeros((8, 2))}, "actions have 2 dimensions, but those of Hopper-v5 3"),
        ({"rewards": ["a"] * 8}, "rewards are <U1; they must be real numbers or bool"),
        ({"rewards": np.ones(8) * 1j}, "rewards are complex128; they must be real numbers"),
        ({"actions": np.full((8, 3), np.inf)}, r"actions\[0, 0\] = inf .* is not finite"),
        ({"next_observations": np.zeros((8, 4))}, r"next_observations has shape \(8, 4\), not"),
        ({"seeds": [1]}, r"seeds has shape \(1,\), not \(3,\)"),
        ({"reward": np.zeros(8)}, "no array 'reward' .did you mean 'rewards'.*; the names are"),
        ({"qpos": np.zeros(8)}, "there is no array 'qpos'; the names are"),
        ({"observations": np.zeros((8, 4))}, "have 4 dimensions, but those of Hopper-v5 11"),
    ],
)
def test_bad_arrays_are_one_sentence_and_nothing_is_stored(store, change, message):
    with pytest.raises(UserError, match=message) as error:
        store_episodes(
            "mine/bad-v0",
            arrays() | change,
            environment_id="Hopper-v5",
        )
    assert "\n" not in str(error.value)
    assert not get_dataset_path("mine/bad-v0").exists() and not list(store.glob(".making-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"environment_id": "Hoper-v5"},
            "environment 'Hoper-v5' does not exist .did you mean 'Hopper-v5'",
        ),
        ({}, "the bounds of the actions are unknown; give action_low and action_high, or"),
        ({"environment_id": "CartPole-v1"}, r"the actions are Discrete\(2\), not boxes"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        store_episodes("mine/a-v0", arrays(), **arguments)


D4RL = {"terminals": [0, 0, 1, 0, 0, 0, 0, 1], "timeouts": [0, 0, 0, 1, 0, 0, 0, 0]}
# OGBench: terminals mark the last step of an episode, masks are 0 wherever the task is done.
OGBENCH = {"terminals": [0, 0, 1, 1, 0, 0, 0, 1], "masks": [1, 0, 0, 1, 0, 1, 1, 0]}


def without_ends(**ends):
    named = {name: a for name, a in arrays().items() if name not in ("terminations", "truncations")}
    return named | {name: np.array(a, np.float32) for name, a in ends.items()}


@pytest.mark.parametrize(
    "ends", [D4RL, OGBENCH, D4RL | {"masks": [1, 1, 0, 1, 1, 1, 1, 0]}], ids=["d4rl", "og", "both"]
)
def test_the_names_of_d4rl_and_ogbench_mean_the_same_episodes(tmp_path, capsys, ends):
    np.savez(tmp_path / "a.npz", qpos=np.zeros(8), **without_ends(**ends))
    main([f"file={tmp_path / 'a.npz'}", "id=a-v0", "action_low=[-1,-1,-1]", "action_high=[1,1,2]"])
    assert "left out: qpos" in capsys.readouterr().out
    episodes = load_episodes(DatasetConfig("minari", "a-v0"))
    assert_are_the_arrays(episodes, arrays())
    np.testing.assert_array_equal(episodes.action_high, [1, 1, 2])
    assert episodes.environment_id is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (without_ends(), "array 'terminations' is missing; there are: .*D4RL's terminals and"),
        (without_ends(timeouts=[0] * 8), "'timeouts' needs the array 'terminals'; there are:"),
        (without_ends(terminals=[0] * 8, masks=[1] * 7), "there are 7 masks for 8 terminals"),
        (arrays() | D4RL, "both 'terminations' and 'terminals' say where episodes end; keep"),
        (without_ends(**D4RL, masks=[1] * 8), r"masks\[2\] and terminals\[2\] contradict"),
        (without_ends(**OGBENCH, valids=[1] * 8), "OGBench's compact form, which has 'valids'"),
        (without_ends(terminals=[0.5] * 8), r"terminals\[0\] = 0.5; it must be 0 or 1"),
    ],
)
def test_names_that_are_missing_or_contradict_each_other_are_one_sentence(tmp_path, given, message):
    np.savez(tmp_path / "a.npz", **given)
    with pytest.raises(UserError, match=message):
        main([f"file={tmp_path / 'a.npz'}", "id=a-v0", "environment=Hopper-v5"])


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        ([-1], [1], r"action_low is \[-1.\], not 3 finite numbers; give .* for each dimension"),
        ([-1, 2, -1], [1, 1, 1], r"action_low\[1\] = 2.0 is above action_high\[1\] = 1.0"),
        ([-1, 1, -1], [1, 1, 1], r"actions\[0, 1\] = .* is outside the bounds"),
        ([-1, -1, -1], [1, 1, 0.5], r"actions\[6, 2\] = 0.739.* outside the bounds .*widen the"),
        ([-1, -1, -1], None, "the bounds of the actions are unknown; give action_low and"),
    ],
)
def test_bounds_that_do_not_fit_the_actions_are_one_sentence(tmp_path, low, high, message):
    np.savez(tmp_path / "a.npz", **arrays())
    given = [f"action_low={low}", *([f"action_high={high}"] if high else [])]
    with pytest.raises(UserError, match=message):
        main([f"file={tmp_path / 'a.npz'}", "id=a-v0", *given])


def test_bad_ids_and_missing_arrays_are_one_sentence():
    for name in ("mine/hopper", "mine hopper-v0", "../away-v0", "mine/../../away-v0", "/tmp/a-v0"):
        with pytest.raises(UserError, match="is not a Minari id, which is like mine/hopper-v0"):
            store_episodes(name, arrays(), environment_id="Hopper-v5")
    with pytest.raises(UserError, match="the array 'truncations' is missing"):
        given = arrays()
        del given["truncations"]
        store_episodes("mine/a-v0", given, environment_id="Hopper-v5")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "MINARI_DATASETS_PATH is empty; set it to a directory, or unset it"),
        ("/dev/null", "store of data sets /dev/null cannot be made .*set MINARI_DATASETS_PATH to"),
        ("/dev/null/a", "cannot be made .Not a directory.; set MINARI_DATASETS_PATH to a dir"),
    ],
)
def test_a_store_that_cannot_be_made_is_one_sentence(monkeypatch, value, message):
    monkeypatch.setenv("MINARI_DATASETS_PATH", value)
    for config in (DatasetConfig("minari", "mine/a-v0"), DatasetConfig("builtin", "hopper-medium")):
        with pytest.raises(UserError, match=message):
            load_episodes(config)
    with pytest.raises(UserError, match=message):
        store_episodes("mine/a-v0", arrays(), environment_id="Hopper-v5")


def test_reading_does_not_leave_the_store_either(store):
    store_episodes("mine/a-v0", arrays(), environment_id="Hopper-v5")
    dataset_path("mine/a-v0").rename(store.parent / "outside-v0")
    with pytest.raises(UserError, match=r"'mine/\.\./\.\./outside-v0' is not a Minari id"):
        load_episodes(DatasetConfig("minari", "mine/../../outside-v0"))


def test_files_that_are_no_npz_of_plain_arrays_are_one_sentence(tmp_path):
    path = tmp_path / "walk.npz"
    with pytest.raises(UserError, match="No such file"):
        read_npz(path)
    path.write_text("not an archive")
    with pytest.raises(UserError, match=f"{path} "):
        read_npz(path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"cannot be read as an \.npz file"):
        read_npz(tmp_path / "single.npy")
    given = arrays()
    np.savez(path, **{name: array for name, array in given.items() if name != "actions"})
    with pytest.raises(UserError, match="array 'actions' is missing; there are: observations, rew"):
        main([f"file={path}", "id=mine/a-v0", "environment=Hopper-v5"])
    np.savez(path, **given)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read"):
        read_npz(path)


def test_pickles_are_never_loaded(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    np.savez(tmp_path / "walk.npz", **arrays(rewards=np.array([Attack()] * 8, dtype=object)))
    with pytest.raises(UserError, match=r"cannot be read .*arrays of plain numbers"):
        read_npz(tmp_path / "walk.npz")
    assert not (tmp_path / "attacked").exists()


def test_the_metadata_is_plain_json():
    store_episodes("mine/a-v0", arrays(), environment_id="Hopper-v5")
    metadata = json.loads((get_dataset_path("mine/a-v0") / "data" / "metadata.json").read_text())
    assert metadata["ref_max_score"] == 3234.3 and "D4RL" in metadata["reference_source"]
