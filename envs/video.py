"""A video of one episode: the policy at work, drawn off screen by MuJoCo."""

import functools
import importlib
import math
import os
import subprocess
import sys
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import torch

from envs.rollout import (
    Actor,
    RolloutError,
    bounded_actions,
    check_dimensions,
    make_environment,
    start_seeds,
)
from envs.simulators import quiet_model_files

MAX_FPS = 32.0  # drawing in software is slow, and Hopper's 125 frames a second show no more

# Making a context can abort the process, and PyOpenGL keeps the first platform that it has tried:
# so each backend is tried in a process of its own.
_PROBE = """
import importlib, sys, mujoco
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(64, 64)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), 100)
"""


def record_episode(
    actor: Actor, environment_id: str, path: str | Path, *, seed: int, episode: int = 0
) -> tuple[float, int]:
    """Plays one episode and writes it as an mp4, in real time.

    The episode is the one of that index in ``rollout(..., seed=seed)``. With a network it can
    drift apart from the one that was played in a larger batch, whose matrix products round
    otherwise.

    Environments that step faster than 32 times a second are drawn at every second, third, ...
    step. If ``MUJOCO_GL`` is not set, it is set to the first of egl, osmesa and glfw that works.

    Args:
        actor: The policy.
        environment_id: Gymnasium id of an environment that can draw itself.
        path: Where to write; ends in ``.mp4``. The file appears only when it is complete.
        seed: Seed of the start states, as in ``rollout``.
        episode: Index of the episode.

    Returns:
        The episode's return and its length in steps.

    Raises:
        RolloutError: The environment or the policy is at fault as in ``rollout``, this machine
            cannot draw, the extra ``video`` is missing, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise RolloutError(f"The video '{path}' must have a name that ends in .mp4.")
    ffmpeg = _import_ffmpeg()
    os.environ["MUJOCO_GL"] = offscreen_backend(os.environ.get("MUJOCO_GL"))
    with quiet_model_files():
        environment = make_environment(environment_id, render_mode="rgb_array")
    # ffmpeg takes the format from the ending.
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
        played = _film(actor, environment, unfinished, ffmpeg, seed=seed, episode=episode)
        unfinished.replace(path)
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise RolloutError(f"The video '{path}' cannot be written: {reason}.") from error
    finally:
        environment.close()
        with suppress(OSError):
            unfinished.unlink()
    return played


def offscreen_backend(chosen: str | None = None) -> str:
    """Returns the OpenGL backend that draws on this machine: egl, osmesa or glfw.

    Args:
        chosen: The value of ``MUJOCO_GL``; if given, no other one is tried.

    Raises:
        RolloutError: None works; says what to install or set.
    """
    backends = ("egl", "osmesa", "glfw") if sys.platform == "linux" else ("glfw",)
    if not chosen:
        for backend in backends:
            if _draws(backend):
                return backend
        raise RolloutError(
            f"MuJoCo cannot draw on this machine (tried {', '.join(backends)}): install an"
            " off-screen OpenGL, for example `apt-get install libegl1 libgl1-mesa-dri`"
            " or `apt-get install libosmesa6`."
        )
    if chosen not in backends:
        raise RolloutError(
            f"The environment variable MUJOCO_GL is '{chosen}', but a video needs"
            f" {' or '.join(backends)}: set one of them, or unset it."
        )
    if not _draws(chosen):
        package = {"egl": "libegl1", "osmesa": "libosmesa6"}.get(chosen)
        remedy = f"install it (`apt-get install {package}`) or " if package else ""
        raise RolloutError(
            f"MuJoCo cannot draw with MUJOCO_GL={chosen} on this machine: {remedy}unset"
            " MUJOCO_GL to have the others tried."
        )
    return chosen


@functools.cache
def _draws(backend: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:  # MuJoCo logs a failure into its work folder
        try:
            probe = subprocess.run(
                [sys.executable, "-c", _PROBE, backend],
                cwd=folder,
                env={**os.environ, "MUJOCO_GL": backend},
                capture_output=True,
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return probe.returncode == 0


def _import_ffmpeg() -> ModuleType:
    try:
        return importlib.import_module("imageio_ffmpeg")
    except ImportError as error:
        raise RolloutError(
            "A video needs the extra 'video', which is not installed:"
            " pip install 'decision-minrnn[video]'."
        ) from error


def _film(
    actor: Actor,
    environment: gymnasium.Env,
    path: Path,
    ffmpeg: ModuleType,
    *,
    seed: int,
    episode: int,
) -> tuple[float, int]:
    """Plays the episode with a batch of one and writes its frames to ``path``."""
    action_space = environment.action_space
    check_dimensions(
        actor, environment.spec.id, environment.observation_space.shape[0], action_space.shape[0]
    )
    step_fps = environment.metadata.get("render_fps", MAX_FPS)
    stride = math.ceil(step_fps / MAX_FPS)
    episode_return, length, frames, ends = 0.0, 0, 0, False
    observation, _ = environment.reset(seed=int(start_seeds(seed, np.array([episode]))[0]))
    height, width = environment.render().shape[:2]
    writer = ffmpeg.write_frames(
        str(path), (width, height), fps=step_fps / stride, quality=7, ffmpeg_log_level="error"
    )
    with closing(writer), torch.inference_mode():
        writer.send(None)
        state, reward = actor.initial_state(1), 0.0
        while not ends:
            if length % stride == 0:
                writer.send(np.ascontiguousarray(environment.render()))
                frames += 1
            action, state = actor.act(
                torch.tensor(observation, dtype=torch.float32)[None],
                torch.tensor([reward], dtype=torch.float32),
                state,
                torch.tensor([length == 0]),
            )
            action = bounded_actions(action, action_space)[0]
            observation, reward, terminated, truncated, _ = environment.step(action)
            episode_return += float(reward)
            length += 1
            ends = terminated or truncated
    # The writer does not tell when ffmpeg fails to finish the file, as it does on a full disk.
    with suppress(RuntimeError):  # raised for a file that cannot be read at all
        if ffmpeg.count_frames_and_secs(str(path))[0] == frames:
            return episode_return, length
    raise OSError("ffmpeg could not finish the file; is the disk full?")
