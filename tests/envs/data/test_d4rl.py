"""D4RL's files, read with h5py alone and downloaded with resumption."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from envs.data.episodes import (
    OBSERVATION_STD_FLOOR,
)
from envs.data.sources import DatasetConfig, load_episodes
from envs.data.sources.d4rl import download_d4rl, load_d4rl


def hopper(steps=10, ends=(4, 5, 9), timeouts=(5,)):
    """The arrays of a file: episodes of 5, 1 and 4 steps, the second one ended by time."""
    generator = np.random.default_rng(0)
    terminals, times = np.zeros((2, steps), bool)
    terminals[[end for end in ends if end not in timeouts]] = True
    times[list(timeouts)] = True
    return {
        "observations": generator.standard_normal((steps, 11), np.float32),
        "actions": generator.uniform(-1, 1, (steps, 3)).astype(np.float32),
        "rewards": generator.standard_normal(steps).astype(np.float32),
        "terminals": terminals,
        "timeouts": times,
    }


def write(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is not None:
                file[name] = array
        file["infos/qpos"] = np.full((3, 6), np.nan)
        file["metadata/algorithm"] = "SAC"
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "hopper_medium-v2.hdf5"


def test_a_file_becomes_episodes_with_the_environment_and_scores_of_d4rl(path):
    arrays = hopper()
    config = DatasetConfig("d4rl", path=str(write(path, arrays)))
    episodes = load_episodes(config)
    np.testing.assert_array_equal(episodes.lengths, [5, 1, 4])
    for name, ours in (
        ("observations", "observations"),
        ("actions", "actions"),
        ("rewards", "rewards"),
        ("terminals", "terminations"),
        ("timeouts", "truncations"),
    ):
        np.testing.assert_array_equal(getattr(episodes, ours), arrays[name])
    assert episodes.dataset_id == "d4rl/hopper-medium-v2"
    assert config.label == "d4rl-hopper_medium-v2"
    assert episodes.environment_id == "Hopper-v4"
    assert (episodes.reference.minimum, episodes.reference.maximum) == (-20.272305, 3234.3)
    assert "v2 environments" in episodes.reference.source
    np.testing.assert_array_equal(episodes.action_low, [-1, -1, -1])


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        ("halfcheetah-medium-v2.hdf5", "HalfCheetah-v4"),
        ("walker2d_full_replay-v2.hdf5", "Walker2d-v4"),
    ],
)
def test_the_task_is_that_of_the_file_name(tmp_path, name, environment):
    arrays = hopper() | {"observations": np.zeros((10, 17)), "actions": np.zeros((10, 6))}
    assert load_d4rl(write(tmp_path / name, arrays)).environment_id == environment


def test_the_environment_can_be_given(tmp_path):
    path = write(tmp_path / "mine.hdf5", hopper())
    with pytest.raises(UserError, match=r"mine\.hdf5 does not begin with hopper, .*Hopper-v4"):
        load_d4rl(path)
    episodes = load_d4rl(path, "Hopper-v5")
    assert episodes.environment_id == "Hopper-v5" and episodes.reference.maximum == 3234.3
    with pytest.raises(UserError, match="have 11 dimensions, but those of Walker2d-v4 17"):
        load_d4rl(path, "Walker2d-v4")


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_columns_and_other_types_are_read_too(path, kind):
    arrays = hopper()
    arrays["rewards"] = np.arange(10).astype(kind)[:, None]
    arrays["observations"] = arrays["observations"].astype(np.float64)
    arrays["terminals"] = arrays["terminals"].astype(np.uint8)[:, None]
    arrays["timeouts"] = arrays["timeouts"][:, None]
    arrays["next_observations"] = np.zeros((10, 11))
    episodes = load_d4rl(write(path, arrays))
    np.testing.assert_array_equal(episodes.rewards, np.arange(10))
    np.testing.assert_array_equal(episodes.lengths, [5, 1, 4])
    assert episodes.rewards.dtype == episodes.observations.dtype == np.float32


def test_without_timeouts_an_episode_is_cut_at_the_horizon(path):
    arrays = hopper(steps=4600, ends=(1499, 2499, 4599), timeouts=()) | {"timeouts": None}
    episodes = load_d4rl(write(path, arrays))
    np.testing.assert_array_equal(episodes.lengths, [1000, 500, 1000, 1000, 1000, 100])
    # An episode that terminates in its last possible step is not truncated.
    np.testing.assert_array_equal(np.flatnonzero(episodes.truncations), [999, 3499, 4499])
    np.testing.assert_array_equal(np.flatnonzero(episodes.terminations), [1499, 2499, 4599])


def test_an_unfinished_tail_is_dropped_and_counted_in_every_run(path, caplog):
    write(path, hopper(ends=(4, 5)))
    for _ in range(2):  # read, and from the cache
        caplog.clear()
        episodes = load_d4rl(path)
        np.testing.assert_array_equal(episodes.lengths, [5, 1])
        assert "hopper_medium-v2.hdf5: the last 4 of 10 steps are dropped" in caplog.text


def test_one_episode_of_one_step_and_constant_dimensions(path):
    arrays = {name: array[:1] for name, array in hopper(ends=(0,), timeouts=()).items()}
    episodes = load_d4rl(write(path, arrays))
    assert (episodes.n_episodes, episodes.n_steps) == (1, 1)
    np.testing.assert_array_equal(episodes.observation_std, np.float32(OBSERVATION_STD_FLOOR))
    np.testing.assert_array_equal(episodes.returns_to_go, arrays["rewards"])


def spoil(name, index, value):
    array = hopper()[name].copy()
    array[index] = value
    return {name: array}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": None}, r"hdf5 has no array 'rewards'; it has actions, infos, metadata, obs"),
        ({"actions": np.zeros((9, 3))}, "has 9 actions for 10 rewards; each step needs one of"),
        ({"timeouts": np.zeros(8)}, "has 8 timeouts for 10 rewards"),
        ({"rewards": np.zeros((10, 2))}, r"rewards has shape \(\d+, 2\), not \(steps,\) or"),
        ({"observations": np.zeros(10)}, r"observations has shape \(10,\), not \(steps, dimen"),
        ({"terminals": np.zeros(10), "timeouts": np.zeros(10)}, "none of its 10 steps ends an ep"),
        (spoil("observations", (6, 2), np.nan), r"observations\[6, 2\] = nan \(episode 2\) is not"),
        ({"terminals": np.full(10, np.nan)}, r"terminals\[0\] = nan; it must be 0 or 1"),
        (spoil("rewards", 5, -np.inf), r"rewards\[5\] = -inf \(episode 1\) is not finite"),
        (spoil("actions", (4, 1), 1.1), r"actions\[4, 1\] = 1.1\d* \(episode 0\) is outside"),
        ({"actions": np.zeros((10, 6))}, "actions have 6 dimensions, but those of Hopper-v4 3"),
        ({name: array[:0] for name, array in hopper().items()}, r"hdf5 is empty; at least one"),
    ],
)
def test_bad_files_are_one_sentence_and_leave_nothing(path, store, change, message):
    write(path, hopper() | change)
    with pytest.raises(UserError, match=message) as error:
        load_d4rl(path)
    assert "\n" not in str(error.value)
    assert not list(store.rglob("*.npy"))


def test_what_is_no_hdf5_file_or_half_of_one_is_one_sentence(path):
    with pytest.raises(UserError, match=f"there is no file {path}"):
        load_d4rl(path)
    path.write_text("<html>")
    with pytest.raises(UserError, match=r"v2\.hdf5 is not an HDF5 file; give the path"):
        load_d4rl(path)
    write(path, hopper(steps=5000))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"hdf5 is damaged or cut short .*copy it again"):
        load_d4rl(path)


@pytest.mark.parametrize("name", ["rewards", "terminals"])
def test_bytes_that_cannot_be_unpacked_are_one_sentence(path, store, name):
    arrays = hopper(steps=5000)
    with h5py.File(write(path, arrays | {name: None}), "a") as file:
        data = file.create_dataset(name, data=arrays[name], compression="gzip")
        place, size = data.id.get_chunk_info(0).byte_offset, data.id.get_chunk_info(0).size
    content = bytearray(path.read_bytes())
    content[place : place + size] = bytes(size)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"hdf5 is damaged or cut short .*copy it again"):
        load_d4rl(path)
    assert not list(store.rglob("*.npy"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"give either dataset\.path=FILE\.hdf5 or dataset\.name=hopper-medium-v2"),
        ({"path": "a.hdf5", "name": "hopper-medium-v2"}, "give either"),
        ({"name": "hopper-best-v2"}, "no D4RL set 'hopper-best-v2'; there are: hopper-random-v2"),
    ],
)
def test_bad_keys_are_one_sentence(arguments, message):
    with pytest.raises(UserError, match=message):
        load_episodes(DatasetConfig("d4rl", **arguments))


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flags=st.lists(st.sampled_from("..........TOB"), min_size=1, max_size=40),
    column=st.booleans(),
    kind=st.sampled_from([np.float32, np.float64]),
)
def test_any_flat_file_is_read_as_a_slow_plain_loop_reads_it(tmp_path, flags, column, kind):
    path = tmp_path / "hopper-random.hdf5"
    generator = np.random.default_rng(len(flags))
    steps = len(flags)
    arrays = {
        "observations": generator.standard_normal((steps, 11)).astype(kind),
        "actions": generator.uniform(-1, 1, (steps, 3)).astype(kind),
        "rewards": generator.standard_normal((steps, 1) if column else steps).astype(kind),
        "terminals": np.array([flag in "TB" for flag in flags]),
        "timeouts": np.array([flag in "OB" for flag in flags]),
    }
    write(path, arrays)
    expected, episode = [], []
    for t in range(steps):
        episode.append(t)
        if arrays["terminals"][t] or arrays["timeouts"][t]:
            expected.append(episode)
            episode = []
    if not expected:
        with pytest.raises(UserError, match="ends an episode"):
            load_d4rl(path)
        return
    episodes = load_d4rl(path)
    assert episodes.lengths.tolist() == [len(rows) for rows in expected]
    rows = [t for rows in expected for t in rows]
    rewards = np.ravel(arrays["rewards"])
    np.testing.assert_array_equal(
        episodes.observations, arrays["observations"][rows].astype(np.float32)
    )
    np.testing.assert_array_equal(episodes.actions, arrays["actions"][rows].astype(np.float32))
    np.testing.assert_array_equal(episodes.rewards, rewards[rows].astype(np.float32))
    np.testing.assert_array_equal(episodes.terminations, arrays["terminals"][rows])
    to_go = [rewards[rows[i:]].astype(np.float32).sum(dtype=float) for rows in expected
             for i in range(len(rows))]  # fmt: skip
    np.testing.assert_allclose(episodes.returns_to_go, to_go, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["observations", "rewards", "terminals"])
def test_an_array_that_claims_more_than_the_file_holds_is_refused_unread(tmp_path, name):
    with h5py.File(tmp_path / "hopper-medium-v2.hdf5", "w") as file:
        for other, width in (
            ("observations", (11,)),
            ("actions", (3,)),
            ("rewards", ()),
            ("terminals", ()),
        ):
            shape = (10**11, *width) if other == name else (10, *width)
            file.create_dataset(other, shape, np.float32, chunks=(10, *width))
    with pytest.raises(
        UserError, match=r"is damaged or cut short .*claims .* bytes and 0 are|each step"
    ):
        load_d4rl(tmp_path / "hopper-medium-v2.hdf5")


class Server:
    """A file server on loopback that can break off, ignore ranges, or lie."""

    def __init__(self, content):
        self.content = content
        self.break_after: list[int] = []  # bytes of each answer; then whole answers
        self.ranges = True
        self.requests: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.requests.append(asked)
                begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                size = len(outer.content)
                if not outer.ranges:
                    begin, asked = 0, None
                if asked and begin >= size:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206 if asked else 200)
                if asked:
                    self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
                self.send_header("Content-Length", str(size - begin))
                self.end_headers()
                count = outer.break_after.pop(0) if outer.break_after else size
                self.wfile.write(outer.content[begin : begin + count])
                self.close_connection = True

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/"

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    content = write(tmp_path / "original.hdf5", hopper(steps=2000, ends=(1999,))).read_bytes()
    server = Server(content)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setattr("envs.data.sources.d4rl.URL", server.url)
    monkeypatch.setattr("envs.data.sources.download._PAUSE_SECONDS", 0.0)
    yield server
    server.close()


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_download_that_breaks_off_goes_on_where_it_was(server, tmp_path, capfd):
    server.break_after = [50_000, 30_000]
    path = download_d4rl("hopper-medium-replay-v2")
    assert path == tmp_path / "d4rl" / "hopper_medium_replay-v2.hdf5"
    assert digest(path) == hashlib.sha256(server.content).hexdigest()
    assert server.requests == [None, "bytes=50000-", "bytes=80000-"]
    assert "hopper_medium_replay-v2.hdf5" in capfd.readouterr().err  # the progress bar
    assert download_d4rl("hopper-medium-replay-v2") == path  # and it is not asked for again
    assert len(server.requests) == 3 and not list(path.parent.glob("*.part"))
    episodes = load_episodes(DatasetConfig("d4rl", name="hopper-medium-replay-v2"))
    assert episodes.dataset_id == "d4rl/hopper-medium-replay-v2"


def test_a_download_goes_on_in_the_next_run(server):
    server.break_after = [50_000] + [0] * 10
    with pytest.raises(UserError, match=r"50,000 bytes are kept, and the next attempt resumes"):
        download_d4rl("hopper-medium-v2")
    server.break_after, server.requests = [], []
    assert digest(download_d4rl("hopper-medium-v2")) == hashlib.sha256(server.content).hexdigest()
    assert server.requests == ["bytes=50000-"]


@pytest.mark.parametrize("left", ["all", "too much"])
def test_a_part_that_is_complete_or_wrong(server, tmp_path, left):
    part = tmp_path / "d4rl" / "hopper_medium-v2.hdf5.part"
    part.parent.mkdir()
    part.write_bytes(server.content + (b"" if left == "all" else b"more"))
    assert digest(download_d4rl("hopper-medium-v2")) == hashlib.sha256(server.content).hexdigest()
    assert len(server.requests) == (1 if left == "all" else 2)


def test_a_server_without_ranges_sends_everything_again(server):
    server.ranges = False
    server.break_after = [50_000]
    assert digest(download_d4rl("hopper-medium-v2")) == hashlib.sha256(server.content).hexdigest()


def test_no_network_is_one_sentence(server):
    server.close()
    with pytest.raises(UserError, match=r"could not be downloaded to .*; 0 bytes are kept") as e:
        download_d4rl("hopper-medium-v2")
    assert "\n" not in str(e.value)


def test_an_html_page_instead_of_the_file_is_one_sentence(server):
    server.content = b"<html>please log in</html>"
    for _ in range(2):
        with pytest.raises(UserError, match="sent is not an HDF5 file; it was removed"):
            load_episodes(DatasetConfig("d4rl", name="hopper-medium-v2"))
