import json
import sys
import threading
import urllib.request
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from minari.storage import get_dataset_path
from minari.storage.remotes.cloud_storage import CloudStorage

from common.errors import UserError
from envs.data.sources import DatasetConfig, load_episodes
from envs.data.sources.minari import load_minari
from envs.tasks import TASKS, Reference

LENGTHS = (3, 1, 4)


def write(
    dataset_id="test/line-v0",
    *,
    lengths=LENGTHS,
    change=lambda i, episode: None,
    observation_space=None,
    action_space=None,
    **arguments,
):
    """A data set as any user of Minari makes it; `change` may spoil an episode."""
    buffers, row = [], 0
    for i, length in enumerate(lengths):
        episode = {
            "observations": 10.0 * i + np.arange(2.0 * (length + 1)).reshape(length + 1, 2),
            "actions": np.full((length, 1), 0.1 * i, np.float32),
            "rewards": np.arange(row, row + length, dtype=np.float64),
            "terminations": np.arange(length) == length - 1,
            "truncations": np.zeros(length, bool),
        }
        row += length
        change(i, episode)
        buffers.append(EpisodeBuffer(**episode))
    if "env" not in arguments:
        arguments["observation_space"] = observation_space or gym.spaces.Box(-np.inf, np.inf, (2,))
        arguments["action_space"] = action_space or gym.spaces.Box(-1, 1, (1,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(dataset_id, buffers, data_format="hdf5", **arguments)
    return dataset_id


def load(dataset_id, source="minari"):
    return load_episodes(DatasetConfig(source, dataset_id))


def test_reads_every_step_and_drops_the_last_observation():
    episodes = load(write())
    assert (episodes.n_steps, episodes.n_episodes) == (8, 3)
    np.testing.assert_array_equal(episodes.lengths, [3, 1, 4])
    np.testing.assert_array_equal(episodes.observations[:, 0], [0, 2, 4, 10, 20, 22, 24, 26])
    np.testing.assert_allclose(episodes.actions[:, 0], [0] * 3 + [0.1] + [0.2] * 4)
    np.testing.assert_array_equal(episodes.rewards, np.arange(8))
    np.testing.assert_array_equal(np.flatnonzero(episodes.terminations), [2, 3, 7])
    assert not episodes.truncations.any()
    np.testing.assert_array_equal(episodes.action_low, [-1])
    assert episodes.dataset_id == "test/line-v0"
    assert episodes.reference is None and episodes.environment_id is None


def hopper_episode(i, episode):
    length = len(episode["rewards"])
    episode["observations"] = np.zeros((length + 1, 11))
    episode["actions"] = np.zeros((length, 3), np.float32)


def test_reference_scores_of_the_metadata_come_first():
    dataset_id = write(
        "test/hopper-v0",
        env="Hopper-v5",
        change=hopper_episode,
        ref_min_score=5.0,
        ref_max_score=50.0,
    )
    episodes = load(dataset_id)
    assert episodes.environment_id == "Hopper-v5"
    assert episodes.reference == Reference(5.0, 50.0, "metadata of test/hopper-v0")


@pytest.mark.parametrize(
    ("environment_id", "observation_dim", "action_dim", "task"),
    [("Hopper-v5", 11, 3, "hopper"), ("Ant-v5", 105, 8, "ant"), ("Swimmer-v5", 8, 2, None)],
)
def test_reference_scores_of_a_known_environment_are_d4rls_and_of_another_none(
    environment_id, observation_dim, action_dim, task
):
    def change(i, episode):
        length = len(episode["rewards"])
        episode["observations"] = np.zeros((length + 1, observation_dim))
        episode["actions"] = np.zeros((length, action_dim), np.float32)

    episodes = load(write("test/zeros-v0", env=environment_id, change=change))
    assert episodes.environment_id == environment_id
    assert episodes.reference == (TASKS[task].reference if task else None)


@pytest.mark.parametrize("pair", [(np.nan, 5.0), ("x", 5.0), (5.0, 1.0), (0.0, np.inf)])
def test_reference_scores_out_of_order_are_one_sentence(pair):
    dataset_id = write()
    path = get_dataset_path(dataset_id) / "data" / "metadata.json"
    scores = {"ref_min_score": pair[0], "ref_max_score": pair[1]}
    path.write_text(json.dumps(json.loads(path.read_text()) | scores))
    with pytest.raises(UserError, match=r"ref_max_score .*; both must be finite numbers, and the"):
        load(dataset_id)


def spoil(name, index, value):
    def change(i, episode):
        if i == 2:
            episode[name] = episode[name].copy()
            episode[name][index] = value

    return change


def drop_last_observation(i, episode):
    episode["observations"] = episode["observations"][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("observations", (1, 1), np.nan), r"observations\[5, 1\] = nan \(episode 2\) is not"),
        (spoil("rewards", 3, np.inf), r"rewards\[7\] = inf \(episode 2\) is not finite"),
        (spoil("actions", (0, 0), 1.5), r"actions\[4, 0\] = 1.5 \(episode 2\) is outside the"),
        (drop_last_observation, "episode 0 has 3 observations for 3 rewards; Minari keeps one"),
    ],
)
def test_spoilt_data_are_one_sentence(change, message):
    with pytest.raises(UserError, match="test/line-v0: " + message) as error:
        load(write(change=change))
    assert "\n" not in str(error.value)


def test_an_empty_episode_is_one_sentence():
    """Minari does not write one, other programs do."""
    with h5py.File(get_dataset_path(write()) / "data" / "main_data.hdf5", "a") as file:
        for name, dataset in file["episode_1"].items():
            values = dataset[: 1 if name == "observations" else 0]
            del file["episode_1"][name]
            file["episode_1"][name] = values
    with pytest.raises(UserError, match=r"^test/line-v0: episode 1 is empty; remove it$"):
        load("test/line-v0")


def test_a_missing_array_and_an_empty_set_are_one_sentence():
    directory = get_dataset_path(write()) / "data"
    with h5py.File(directory / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
    with pytest.raises(UserError, match=r"test/line-v0 is damaged .*object 'rewards' doesn't"):
        load("test/line-v0")
    with h5py.File(directory / "main_data.hdf5", "a") as file:
        for i in range(len(LENGTHS)):
            del file[f"episode_{i}"]
    metadata = json.loads((directory / "metadata.json").read_text())
    none = {"total_episodes": 0, "total_steps": 0}
    (directory / "metadata.json").write_text(json.dumps(metadata | none))
    with pytest.raises(UserError, match="test/line-v0: there is no episode; at least one is"):
        load("test/line-v0")


def test_spaces_of_another_kind_are_one_sentence():
    def discrete(i, episode):
        episode["actions"] = np.zeros(len(episode["rewards"]), np.int64)

    dataset_id = write(action_space=gym.spaces.Discrete(3), change=discrete)
    with pytest.raises(UserError, match=r"the actions are Discrete\(3\), not boxes of"):
        load(dataset_id)
    dataset_id = write("test/unbounded-v0", action_space=gym.spaces.Box(-np.inf, np.inf, (1,)))
    with pytest.raises(UserError, match=r"action_low is \[-inf\], not 1 finite numbers"):
        load(dataset_id)


def test_a_damaged_file_is_one_sentence():
    data = get_dataset_path(write()) / "data"
    file = data / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"test/line-v0 is damaged in .*delete that directory"):
        load("test/line-v0")
    metadata = data / "metadata.json"
    metadata.write_text(metadata.read_text()[:-20])
    with pytest.raises(UserError, match=r"test/line-v0 cannot be read from .*make or download"):
        load("test/line-v0")


def test_episodes_that_claim_more_than_the_file_holds_are_refused_unread():
    directory = get_dataset_path(write()) / "data"
    with h5py.File(directory / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
        file["episode_1"].create_dataset("rewards", (10**11,), np.float64, chunks=(10,))
    with pytest.raises(UserError, match=r"damaged .*rewards claims 800,000,000,000 bytes and 0"):
        load("test/line-v0")
    metadata = json.loads((directory / "metadata.json").read_text()) | {"total_episodes": 10**10}
    (directory / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"cannot be read .*10,000,000,000 episodes are claimed in"):
        load("test/line-v0")


def test_a_data_set_of_a_newer_minari_is_one_sentence():
    path = get_dataset_path(write()) / "data" / "metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps(metadata | {"minari_version": "99.0.0"}))
    with pytest.raises(
        UserError, match=r"cannot be read .*does not support .*99\.0\.0.*update Min"
    ):
        load("test/line-v0")


def test_what_does_not_exist_is_one_sentence_that_says_what_does(monkeypatch):
    monkeypatch.setenv("MINARI_REMOTE", "hf://no-such-place")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write()
    with pytest.raises(UserError, match=r"'test/nothing-v0' is not in .*: test/line-v0$"):
        load("test/nothing-v0")
    with pytest.raises(UserError, match="'test/line' is not a Minari id, which is like"):
        load("test/line")
    with pytest.raises(UserError, match=r"no built-in data set 'ant-medium'; .*walker2d/medium"):
        load("ant-medium", source="builtin")
    with pytest.raises(UserError, match=r"dataset.source 'hdf6' does not exist.*builtin, minari"):
        load("hopper-medium", source="hdf6")


def test_a_built_in_data_set_is_made_once_and_then_loaded(capfd, caplog):
    config = DatasetConfig("builtin", "hopper-medium", steps=300)
    made = load_episodes(config)
    assert "hopper-medium" in capfd.readouterr().err  # the progress bar
    loaded = load_episodes(config)
    assert capfd.readouterr() == ("", "") and not caplog.records
    np.testing.assert_array_equal(loaded.observations, made.observations)
    assert made.dataset_id == "builtin/hopper/medium-v1"
    assert made.environment_id == "Hopper-v5"
    assert made.reference == TASKS["hopper"].reference
    same = load_minari("builtin/hopper/medium-v1")
    np.testing.assert_array_equal(same.rewards, made.rewards)

    load_episodes(DatasetConfig("builtin", "hopper-medium", steps=500, seed=7))
    assert "steps=500 seed=7 overwrite=true" in caplog.text


DICT = gym.spaces.Dict(
    {
        "velocity": gym.spaces.Box(-np.inf, np.inf, (2,)),
        "arm": gym.spaces.Dict({"joint": gym.spaces.Box(-3, 3, (1,), np.float32)}),
        "grid": gym.spaces.Box(-1, 1, (2, 2), np.float64),
    }
)


def dict_observations(i, episode):
    steps = len(episode["observations"])
    numbers = 100.0 * i + np.arange(7.0 * steps).reshape(steps, 7)
    episode["observations"] = {
        "velocity": numbers[:, :2].astype(np.float32),
        "arm": {"joint": numbers[:, 2:3].astype(np.float32)},
        "grid": numbers[:, 3:].reshape(steps, 2, 2),
    }


@pytest.fixture(params=["hdf5", "arrow"])
def storage(request, monkeypatch):
    if request.param == "arrow":
        pytest.importorskip("pyarrow")
    create = minari.create_dataset_from_buffers
    monkeypatch.setattr(
        "minari.create_dataset_from_buffers",
        lambda *arguments, data_format, **others: create(
            *arguments, data_format=request.param, **others
        ),
    )
    return request.param


def test_a_dict_of_boxes_is_flattened_as_gymnasium_does(storage):
    dataset_id = write(observation_space=DICT, change=dict_observations)
    episodes = load(dataset_id)
    expected = []
    for episode in minari.load_dataset(dataset_id):
        for t in range(len(episode.rewards)):
            step = {
                "velocity": episode.observations["velocity"][t],
                "arm": {"joint": episode.observations["arm"]["joint"][t]},
                "grid": episode.observations["grid"][t],
            }
            expected.append(gym.spaces.flatten(DICT, step))
    np.testing.assert_array_equal(episodes.observations, np.float32(expected))
    # By name: arm, grid, velocity.
    np.testing.assert_array_equal(episodes.observations[0], [2, 3, 4, 5, 6, 0, 1])


def test_both_storages_are_read_to_the_last_step(storage):
    write(observation_space=gym.spaces.Box(-np.inf, np.inf, (2,), np.float64))
    assert storage == minari.load_dataset("test/line-v0").storage.FORMAT
    episodes = load("test/line-v0")
    np.testing.assert_array_equal(episodes.lengths, [3, 1, 4])
    np.testing.assert_array_equal(episodes.observations[:, 0], [0, 2, 4, 10, 20, 22, 24, 26])
    np.testing.assert_allclose(episodes.actions[:, 0], [0] * 3 + [0.1] + [0.2] * 4)
    np.testing.assert_array_equal(episodes.rewards, np.arange(8))
    np.testing.assert_array_equal(np.flatnonzero(episodes.terminations), [2, 3, 7])


def test_images_are_refused():
    def images(i, episode):
        episode["observations"] = np.zeros((len(episode["observations"]), 40, 40), np.uint8)

    space = gym.spaces.Box(0, 255, (40, 40), np.uint8)
    dataset_id = write(observation_space=space, change=images)
    with pytest.raises(UserError, match=r"the observations hold images .* no encoder for images"):
        load(dataset_id)


def test_integer_rewards_and_an_episode_of_one_step_are_data():
    def integers(i, episode):
        episode["rewards"] = np.array([3])

    episodes = load(write(lengths=(1,), change=integers))
    assert (episodes.n_steps, episodes.returns.tolist()) == (1, [3.0])


def test_the_environment_is_the_one_for_evaluation():
    dataset_id = write("test/a-v0", env="Hopper-v5", eval_env="Hopper-v4", change=hopper_episode)
    assert load(dataset_id).environment_id == "Hopper-v4"
    spec = gym.make("Hopper-v5", healthy_reward=2.0).spec
    dataset_id = write("test/b-v0", env=spec, change=hopper_episode)
    episodes = load(dataset_id)
    assert episodes.environment_id == "Hopper-v5"
    assert episodes.environment_kwargs == {"healthy_reward": 2.0}
    assert load_minari(dataset_id, "Hopper-v5").environment_kwargs == {"healthy_reward": 2.0}
    assert load_minari(dataset_id, "Hopper-v4").environment_kwargs == {}


def test_a_data_set_does_not_choose_what_is_imported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "chosen_by_the_data.py").write_text("")
    path = get_dataset_path(write("test/c-v0", env="Hopper-v5", change=hopper_episode))
    path = path / "data" / "metadata.json"
    path.write_text(path.read_text().replace("Hopper-v5", "chosen_by_the_data:Hopper-v5"))
    with pytest.raises(UserError, match="names the environment chosen_by_the_data:Hopper-v5, and"):
        load("test/c-v0")
    assert "chosen_by_the_data" not in sys.modules
    typed = "chosen_by_the_data:Hopper-v5"
    assert load_minari("test/c-v0", typed).environment_id == typed
    assert "chosen_by_the_data" in sys.modules


class LoopbackStorage(CloudStorage):
    """A remote of Minari that is a directory listing and files over HTTP."""

    def __init__(self, name, token=None):
        self.url = f"http://{name}/"

    def _get(self, path):
        with urllib.request.urlopen(self.url + path) as response:
            return response.read()

    def list_datasets(self, prefix=None):
        yield from json.loads(self._get("index.json"))

    def get_dataset_metadata(self, dataset_id):
        return json.loads(self._get(f"{dataset_id}/data/metadata.json"))

    def download_dataset(self, dataset_id, path):
        for name in ("metadata.json", "main_data.hdf5"):
            target = path / dataset_id / "data" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self._get(f"{dataset_id}/data/{name}"))

    def list_namespaces(self):
        yield "test"

    def download_namespace_metadata(self, namespace, path):
        (path / namespace).mkdir(parents=True, exist_ok=True)
        (path / namespace / "namespace_metadata.json").write_text("{}")

    def upload_dataset(self, dataset_id): ...

    def upload_namespace(self, namespace): ...


@pytest.fixture
def remote(store, monkeypatch):
    """The data set test/line-v0 on a server on loopback, and an empty local store."""
    write()
    (store / "index.json").write_text(json.dumps(["test/line-v0"]))
    handler = partial(SimpleHTTPRequestHandler, directory=str(store))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setitem(minari.storage.remotes._registry, "loopback", lambda: LoopbackStorage)
    monkeypatch.setenv("MINARI_REMOTE", f"loopback://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store.parent / "here"))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_data_set_that_is_not_here_is_downloaded(remote, store):
    episodes = load("test/line-v0")
    assert episodes.n_steps == 8
    assert (store.parent / "here" / "test" / "line-v0" / "data" / "main_data.hdf5").exists()
    with pytest.raises(UserError, match=r"line-v1' is not in .* download the latest compatible"):
        load("test/line-v1")
    with pytest.raises(UserError, match=r"could not be downloaded .*ValueError"):
        load("test/other-v0")
