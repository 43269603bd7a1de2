"""A video of episodes, one or a grid: the policy at work, drawn off screen by MuJoCo."""

import functools
import importlib
import itertools
import math
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import ModuleType

import gymnasium
import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco import MujocoEnv
from PIL import Image, ImageDraw, ImageFont

from common.errors import UserError
from common.files import unfinished_file
from envs.simulation.rollout import (
    Actor,
    bounded_actions,
    check_dimensions,
    make_environment,
    start_seeds,
)
from envs.simulation.simulators import quiet_model_files

MAX_FPS = 32.0  # drawing in software is slow, and Hopper's 125 frames a second show no more
TILE = 240  # width, in pixels, of an episode in a grid

# Making a context can abort the process, and PyOpenGL keeps the first platform that it has tried:
# so each backend is tried in a process of its own.
_PROBE = """
import importlib, sys, mujoco
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(64, 64)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), 100)
"""


def record_episodes(
    actor: Actor, environment_id: str, path: str | Path, *, seed: int, episodes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Plays the first episodes of an evaluation and writes them as an mp4, in real time.

    A single episode fills the picture. Several stand side by side, each with its return so far and
    its steps; one that has ended stands still and dark. They are the first episodes of
    ``rollout(..., seed=seed)``. With a network they can drift apart from those that were played in
    a larger batch, whose matrix products round otherwise.

    Environments that step faster than 32 times a second are drawn at every second, third, ...
    step. If ``MUJOCO_GL`` is not set, it is set to the first of egl, osmesa and glfw that works.

    Args:
        actor: The policy.
        environment_id: Gymnasium id of an environment that can draw itself.
        path: Where to write; ends in ``.mp4``. The file appears only when it is complete.
        seed: Seed of the start states, as in ``rollout``.
        episodes: How many.

    Returns:
        The returns and the lengths in steps, (episodes,) each.

    Raises:
        UserError: The environment or the policy is at fault as in ``rollout``, this machine
            cannot draw, the extra ``video`` is missing, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise UserError(f"The video '{path}' must have a name that ends in .mp4.")
    ffmpeg = _import_ffmpeg()
    os.environ["MUJOCO_GL"] = offscreen_backend(os.environ.get("MUJOCO_GL"))
    with ExitStack() as stack:
        environments = []
        for _ in range(episodes):
            with quiet_model_files():
                environment = make_environment(environment_id, render_mode="rgb_array")
            environments.append(stack.enter_context(closing(environment)))
            _set_camera(environment, small=episodes > 1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished_file(path) as unfinished:  # ffmpeg takes the format from the ending
                unfinished.touch()
                played = _film(actor, environments, unfinished, ffmpeg, seed=seed)
        except OSError as error:
            reason = error.strerror or str(error).splitlines()[0]
            raise UserError(f"The video '{path}' cannot be written: {reason}.") from error
    return played


def offscreen_backend(chosen: str | None = None) -> str:
    """Returns the OpenGL backend that draws on this machine: egl, osmesa or glfw.

    Args:
        chosen: The value of ``MUJOCO_GL``; if given, no other one is tried.

    Raises:
        UserError: None works; says what to install or set.
    """
    backends = ("egl", "osmesa", "glfw") if sys.platform == "linux" else ("glfw",)
    if not chosen:
        for backend in backends:
            if _draws(backend):
                return backend
        raise UserError(
            f"MuJoCo cannot draw on this machine (tried {', '.join(backends)}): install an"
            " off-screen OpenGL, for example `apt-get install libegl1 libgl1-mesa-dri`"
            " or `apt-get install libosmesa6`."
        )
    if chosen not in backends:
        raise UserError(
            f"The environment variable MUJOCO_GL is '{chosen}', but a video needs"
            f" {' or '.join(backends)}: set one of them, or unset it."
        )
    if not _draws(chosen):
        package = {"egl": "libegl1", "osmesa": "libosmesa6"}.get(chosen)
        remedy = f"install it (`apt-get install {package}`) or " if package else ""
        raise UserError(
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
        raise UserError(
            "A video needs the extra 'video', which is not installed: pip install -e \".[video]\""
        ) from error


def _set_camera(environment: gymnasium.Env, *, small: bool) -> None:
    """Makes MuJoCo's camera follow the body, and draw tiles fast, without shadows."""
    simulator = environment.unwrapped
    if not isinstance(simulator, MujocoEnv):
        return
    model, renderer = simulator.model, simulator.mujoco_renderer
    # Gymnasium 1.4 takes a camera that stands still, which a body soon runs away from. For a model
    # without this one, the number is -1 and stands for that camera.
    renderer.camera_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    if small:
        renderer.width = renderer.height = TILE
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0


def _film(
    actor: Actor,
    environments: list[gymnasium.Env],
    path: Path,
    ffmpeg: ModuleType,
    *,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Plays an episode in each environment, all in one batch, and writes the frames to ``path``."""
    first, count = environments[0], len(environments)
    space = first.action_space
    check_dimensions(actor, first.spec.id, first.observation_space.shape[0], space.shape[0])
    step_fps = first.metadata.get("render_fps", MAX_FPS)
    stride = math.ceil(step_fps / MAX_FPS)
    returns, lengths = np.zeros(count), np.zeros(count, np.int64)
    rewards, playing = np.zeros(count, np.float32), np.ones(count, bool)
    seeds = start_seeds(seed, np.arange(count)).tolist()
    starts = [e.reset(seed=start)[0] for e, start in zip(environments, seeds, strict=True)]
    observations = np.array(starts, np.float32)
    views = [environment.render() for environment in environments]
    frame, frames = _frame(views, returns, lengths, playing), 0
    size = frame.shape[1::-1]
    writer = ffmpeg.write_frames(
        str(path), size, fps=step_fps / stride, quality=7, ffmpeg_log_level="error"
    )
    with closing(writer), torch.inference_mode():
        writer.send(None)
        state = actor.initial_state(count)
        for step in itertools.count():
            ended = not playing.any()
            if step % stride == 0 or ended:
                for i in np.flatnonzero(playing):
                    views[i] = environments[i].render()
                writer.send(_frame(views, returns, lengths, playing))
                frames += 1
            if ended:
                break
            action, state = actor.act(
                torch.tensor(observations),
                torch.tensor(rewards),
                state,
                torch.full((count,), step == 0),
            )
            actions = bounded_actions(action[torch.tensor(playing)], space)
            for i, chosen in zip(np.flatnonzero(playing), actions, strict=True):
                observation, reward, terminated, truncated, _ = environments[i].step(chosen)
                observations[i], rewards[i] = observation, reward
                returns[i] += float(reward)
                lengths[i] += 1
                if terminated or truncated:
                    playing[i], views[i] = False, environments[i].render()
    # The writer does not tell when ffmpeg fails to finish the file, as it does on a full disk.
    with suppress(RuntimeError):  # raised for a file that cannot be read at all
        if ffmpeg.count_frames_and_secs(str(path))[0] == frames:
            return returns, lengths
    raise OSError("ffmpeg could not finish the file; is the disk full?")


def _frame(
    views: list[np.ndarray], returns: np.ndarray, lengths: np.ndarray, playing: np.ndarray
) -> np.ndarray:
    """Returns a frame (height, width, 3): the only view, or all as tiles with their returns."""
    if len(views) == 1:
        return np.ascontiguousarray(views[0])
    height = round(TILE * views[0].shape[0] / views[0].shape[1])
    columns = math.ceil(math.sqrt(len(views)))
    page = Image.new("RGB", (columns * TILE, math.ceil(len(views) / columns) * height))
    for i, view in enumerate(views):
        tile = Image.fromarray(view if playing[i] else view // 3).resize((TILE, height))
        words = f"{returns[i]:,.0f}" + ("" if playing[i] else f" in {lengths[i]:,} steps")
        font = ImageFont.load_default(size=18)
        ImageDraw.Draw(tile).text((8, 5), words, "white", font, stroke_width=2, stroke_fill="black")
        page.paste(tile, (i % columns * TILE, i // columns * height))
    return np.asarray(page)
