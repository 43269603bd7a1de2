"""A video against the rollout it shows, drawn for real where this machine can draw."""

import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from envs.simulation import video
from envs.simulation.rollout import rollout
from envs.simulation.simulators import make_environment
from envs.simulation.video import offscreen_backend, record_episodes
from envs.tasks import Evaluation

HOPPER = Evaluation("Hopper-v5", "carried", 20, (0.0,), seed=3)

try:
    offscreen_backend()
    DRAWS = True
except UserError:
    DRAWS = False
draws = pytest.mark.skipif(not DRAWS, reason="no off-screen OpenGL on this machine")


class Gait:
    """Leaps; depends on the previous reward, so that a wrong feed changes the return."""

    def initial_state(self, batch_size, target_return):
        return torch.zeros(batch_size)

    def act(self, observation, reward, state, is_first):
        state = torch.where(is_first, 0.0, state) + 1
        action = torch.stack([torch.sin(state / 3), torch.cos(state / 5), reward - 1], 1)
        return 0.7 * action, state


def frames_of(path):
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, [np.frombuffer(f, np.uint8).reshape(height, width, 3) for f in reader]


@draws
def test_video_shows_the_first_episode_of_the_rollout(tmp_path):
    path = tmp_path / "new" / "hopper.mp4"
    shown = record_episodes(Gait(), HOPPER, path)
    played = rollout(Gait(), replace(HOPPER, episodes=1))
    assert shown.episode_returns.tolist() == played.episode_returns.tolist()
    length = shown.episode_lengths.item()
    assert length == played.episode_lengths.item()

    meta, frames = frames_of(path)
    assert meta["fps"] == pytest.approx(31.25)  # every fourth of 125 steps a second
    assert len(frames) == -(-length // 4) + 1  # and how it ended
    assert frames[0].shape == (480, 480, 3)
    assert frames[0].std() > 10  # not a blank picture
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 1  # and it moves
    assert [p.name for p in path.parent.iterdir()] == ["hopper.mp4"]


@draws
def test_a_grid_shows_the_first_episodes_and_how_each_ended(tmp_path):
    class Falls(Gait):
        def act(self, *args):
            action, state = super().act(*args)
            return 0 * action, state

    path = tmp_path / "grid.mp4"
    shown = record_episodes(Falls(), HOPPER, path, episodes=3)
    played = rollout(Falls(), replace(HOPPER, episodes=3))
    assert shown.episode_returns.tolist() == played.episode_returns.tolist()
    lengths = shown.episode_lengths[0]
    assert lengths.tolist() == played.episode_lengths[0].tolist()
    assert len(set(lengths)) == 3

    _, frames = frames_of(path)
    assert len(frames) == -(-max(lengths) // 4) + 1
    assert frames[0].shape == (480, 480, 3)  # two by two tiles of 240
    tiles = [(slice(0, 240), slice(0, 240)), (slice(0, 240), slice(240, 480))]
    tiles.append((slice(240, 480), slice(0, 240)))
    for tile, length in zip(tiles, lengths, strict=True):
        ended = -(-length // 4)  # the first frame after the end: dark, and still from then on
        assert frames[ended][tile].mean() < 0.6 * frames[ended - 1][tile].mean()
        assert np.abs(frames[ended][tile].astype(int) - frames[-1][tile]).mean() < 2
    assert frames[0][240:, 240:].max() < 20  # there is no fourth


@draws
def test_a_gif_is_smaller_and_in_real_time(tmp_path):
    shown = record_episodes(Gait(), HOPPER, tmp_path / "hopper.gif")
    with Image.open(tmp_path / "hopper.gif") as film:
        assert (film.format, film.size) == ("GIF", (240, 240))
        assert film.n_frames == -(-shown.episode_lengths.item() // 8) + 1  # 125 a second
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("RGB")).astype(int)
        assert 60 <= film.info["duration"] <= 70  # milliseconds: 8 steps
        film.seek(0)
        first = np.asarray(film.convert("RGB"))
    assert first.std() > 10 and np.abs(first - last).mean() > 1


@draws
@pytest.mark.parametrize("small", [False, True])
def test_the_camera_follows_the_body(monkeypatch, small):
    monkeypatch.setenv("MUJOCO_GL", offscreen_backend())
    with closing(make_environment("Hopper-v5", render_mode="rgb_array")) as environment:
        video._set_camera(environment, small=small)
        environment.reset(seed=0)
        state = environment.unwrapped.data.qpos.copy()
        state[0] = 20.0  # metres from the start
        environment.unwrapped.set_state(state, environment.unwrapped.data.qvel)
        red, _, blue = np.moveaxis(environment.render().astype(int), -1, 0)
        assert (red > blue + 60).mean() > 0.005  # the hopper is all that is not grey, blue or green


@draws
def test_a_failure_leaves_no_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"the old one")

    class Stops(Gait):
        def act(self, *args):
            action, state = super().act(*args)
            if state[0] == 5:
                raise KeyboardInterrupt
            return action, state

    with pytest.raises(KeyboardInterrupt):
        record_episodes(Stops(), HOPPER, path)
    assert path.read_bytes() == b"the old one"
    assert list(tmp_path.iterdir()) == [path]


@draws
@pytest.mark.posix
def test_a_full_disk_is_one_sentence(tmp_path):
    """A limit on the size of files stands for the full disk: ffmpeg's writes fail part way."""
    code = (
        "import resource, sys; sys.path[:0] = ['.', 'tests/envs/simulation']\n"
        "from test_video import HOPPER, Gait; from envs.simulation.video import record_episodes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        f"record_episodes(Gait(), HOPPER, {str(tmp_path / 'a.mp4')!r})\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: The video" in ran.stderr
    assert "a.mp4' cannot be written: " in ran.stderr
    assert not list(tmp_path.iterdir())


@draws
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/clip.mp4' cannot be written: File exists\.$"):
        record_episodes(Gait(), HOPPER, tmp_path / "file" / "clip.mp4")


@draws
def test_a_policy_of_another_environment_is_refused(tmp_path):
    actor = Gait()
    actor.observation_dim = 17
    with pytest.raises(UserError, match="17 observation dimensions, but Hopper-v5 has 11"):
        record_episodes(actor, HOPPER, tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"clip\.avi' must have a name that ends in \.mp4 or \.gif"):
        record_episodes(Gait(), HOPPER, tmp_path / "clip.avi")


def test_missing_extra_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # makes the import fail
    with pytest.raises(UserError, match=r'pip install -e "\.\[video\]"'):
        record_episodes(Gait(), HOPPER, tmp_path / "clip.mp4")


def test_a_machine_that_cannot_draw_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(video, "_draws", lambda backend: False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(UserError, match=r"cannot draw.*apt-get install libegl1"):
        offscreen_backend(None)
    with pytest.raises(UserError, match=r"tried osmesa.*install libosmesa6.*unset MUJOCO_GL"):
        offscreen_backend("osmesa")
    with pytest.raises(UserError, match=r"MUJOCO_GL is 'off'.*egl or osmesa or glfw"):
        offscreen_backend("off")


@pytest.mark.parametrize("backend", ["osmesa", "egl"])
def test_an_opengl_that_is_missing_stops_nothing_but_a_video(backend):
    # Without libraries to find, as on a machine that has none.
    code = (
        "import ctypes.util, os; ctypes.util.find_library = lambda name: None\n"
        "import envs.simulation.video; print(os.environ['MUJOCO_GL'])\n"
    )
    environment = {**os.environ, "MUJOCO_GL": backend}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert ran.stdout.decode().strip() == backend, ran.stderr


def test_the_probe_fails_where_the_backend_does():
    assert not video._draws("nonexistent")


@draws
def test_records_without_a_display_in_a_fresh_process(tmp_path):
    """MUJOCO_GL unset, MuJoCo already imported and run: how eval.py comes to it."""
    code = (
        "import sys; sys.path[:0] = ['.', 'tests/envs/simulation']\n"
        "import os; os.environ.pop('MUJOCO_GL', None); os.environ.pop('DISPLAY', None)\n"
        "from test_video import HOPPER, Gait; from envs.simulation.rollout import rollout\n"
        "from envs.simulation.video import record_episodes\n"
        "rollout(Gait(), HOPPER)\n"
        f"record_episodes(Gait(), HOPPER, {str(tmp_path / 'a.mp4')!r})\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "a.mp4").stat().st_size > 1000
