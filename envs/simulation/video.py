"""A video of episodes, one or a grid: the policy at work, drawn off screen by MuJoCo."""

import functools
import math
import os
import subprocess
import sys
import tempfile
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.checks import require_extra
from common.errors import UserError
from common.files import unfinished_file
from envs.simulation.physics import mujoco
from envs.simulation.rollout import Actor, Scene, rollout
from envs.simulation.simulators import Simulators
from envs.tasks import Evaluation, RolloutResult

# Drawing in software is slow, and Hopper's 125 frames a second show no more; a GIF, for a page, is
# large.
MAX_FPS = {".mp4": 32.0, ".gif": 16.0}
# A GIF has 256 colours, chosen for the film, and half the width.
GIF = "scale=iw/2:-1:flags=area,split[a][b];[a]palettegen=stats_mode=diff[p];[b][p]paletteuse"
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
    actor: Actor, evaluation: Evaluation, path: str | Path, *, episodes: int = 1
) -> RolloutResult:
    """Plays the first episodes of an evaluation and writes them as an mp4 or GIF, in real time.

    Several episodes stand side by side, each with its return so far; one that has ended is still
    and dark. They are the first of ``rollout(actor, evaluation)`` at its first target return, up to
    the rounding of batched matrix products. If ``MUJOCO_GL`` is not set, it is set to the first of
    egl, osmesa and glfw that works.

    Args:
        actor: The policy.
        evaluation: Is played by Gymnasium, whatever its engine.
        path: Ends in ``.mp4`` or ``.gif``. The file appears only when it is complete.
        episodes: Number of episodes.

    Raises:
        UserError: As in `rollout`, or this machine cannot draw, the extra ``video`` is missing, or
            the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in MAX_FPS:
        raise UserError(f"The video '{path}' must have a name that ends in .mp4 or .gif.")
    require_extra("imageio_ffmpeg", "a video", "video")
    os.environ["MUJOCO_GL"] = offscreen_backend(os.environ.get("MUJOCO_GL"))
    shown = replace(
        evaluation,
        target_returns=evaluation.target_returns[:1],
        environment_kwargs={**evaluation.environment_kwargs, "render_mode": "rgb_array"},
        engine="gymnasium",
        episodes=episodes,
        n_envs=episodes,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished_file(path) as unfinished:  # ffmpeg takes the format from the ending
            unfinished.touch()
            with closing(_Film(unfinished)) as film:
                played = rollout(actor, shown, on_step=film.show)
                film.finish()
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise UserError(f"The video '{path}' cannot be written: {reason}.") from error
    return played


def offscreen_backend(chosen: str | None = None) -> str:
    """Returns the OpenGL backend that draws on this machine: egl, osmesa or glfw.

    Only ``chosen``, the value of ``MUJOCO_GL``, is tried if it is given.
    """
    backends = ("egl", "osmesa", "glfw") if sys.platform == "linux" else ("glfw",)
    if chosen and chosen not in backends:
        raise UserError(
            f"The environment variable MUJOCO_GL is '{chosen}', but a video needs"
            f" {' or '.join(backends)}: set one of them, or unset it."
        )
    tried = (chosen,) if chosen else backends
    for backend in tried:
        if _draws(backend):
            return backend
    raise UserError(
        f"MuJoCo cannot draw on this machine (tried {', '.join(tried)}): install an off-screen "
        "OpenGL, for example `apt-get install libegl1 libgl1-mesa-dri` or `apt-get install "
        f"libosmesa6`{', or unset MUJOCO_GL to have the others tried' if chosen else ''}."
    )


@functools.cache
def _draws(backend: str) -> bool:
    command = [sys.executable, "-c", _PROBE, backend]
    variables = {**os.environ, "MUJOCO_GL": backend}
    # MuJoCo logs a failure into its working folder.
    with tempfile.TemporaryDirectory() as folder, suppress(subprocess.SubprocessError):
        subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, timeout=60, check=True
        )
        return True
    return False


def _set_camera(environment: gymnasium.Env, *, small: bool) -> None:
    """Makes MuJoCo's camera follow the body, and draw tiles (`small`) without shadows."""
    simulator = environment.unwrapped
    model, renderer = getattr(simulator, "model", None), getattr(simulator, "mujoco_renderer", None)
    if not isinstance(model, mujoco.MjModel) or renderer is None:
        return
    # Gymnasium 1.4 takes a camera that stands still, which a body soon runs away from. For a model
    # without this one, the number is -1 and stands for that camera.
    renderer.camera_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    if small:
        renderer.width = renderer.height = TILE
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0


class _Film:
    """Writes what `rollout` shows; the first scene opens the file."""

    def __init__(self, path: Path) -> None:
        import imageio_ffmpeg

        self.path, self.ffmpeg = path, imageio_ffmpeg
        self.writer: Any = None
        self.step = self.frames = 0
        self.playing: np.ndarray
        self.views: list[Any]

    def show(self, scene: Scene) -> None:
        """Draws a scene, if it is one of those that are shown."""
        assert isinstance(scene.simulators, Simulators)
        environments = scene.simulators.environments
        if self.writer is None:
            self._open(environments, scene)
        # An episode is drawn on the steps that are shown, and once more where it has ended.
        shown = self.step % self.stride == 0 or not scene.playing.any()
        for i in np.flatnonzero(self.playing & (shown | ~scene.playing)):
            self.views[i] = environments[i].render()
        self.playing = scene.playing
        if shown:
            self.writer.send(_frame(self.views, scene))
            self.frames += 1
        self.step += 1

    def _open(self, environments: list[gymnasium.Env], scene: Scene) -> None:
        for environment in environments:
            _set_camera(environment, small=len(environments) > 1)
        ending = self.path.suffix.lower()
        step_fps = environments[0].metadata.get("render_fps", MAX_FPS[ending])
        self.stride = math.ceil(step_fps / MAX_FPS[ending])
        self.playing = scene.playing
        self.views = [environment.render() for environment in environments]
        size = _frame(self.views, scene).shape[1::-1]
        how: dict[str, Any] = {"quality": 7}
        if ending == ".gif":
            how = {"codec": "gif", "pix_fmt_out": "pal8", "output_params": ["-filter_complex", GIF]}
        self.writer = self.ffmpeg.write_frames(
            str(self.path), size, fps=step_fps / self.stride, ffmpeg_log_level="error", **how
        )
        self.writer.send(None)

    def finish(self) -> None:
        """Completes the file; raises OSError if ffmpeg, which does not tell, has failed."""
        self.close()
        with suppress(RuntimeError):  # raised for a file that cannot be read at all
            if self.ffmpeg.count_frames_and_secs(str(self.path))[0] == self.frames:
                return
        raise OSError("ffmpeg could not finish the file; is the disk full?")

    def close(self) -> None:
        """Ends ffmpeg."""
        if self.writer is not None:
            self.writer.close()


def _frame(views: list[np.ndarray], scene: Scene) -> np.ndarray:
    """Returns a frame (height, width, 3): the only view, or all as tiles with their returns."""
    if len(views) == 1:
        return np.ascontiguousarray(views[0])
    height = round(TILE * views[0].shape[0] / views[0].shape[1])
    columns = math.ceil(math.sqrt(len(views)))
    page = Image.new("RGB", (columns * TILE, math.ceil(len(views) / columns) * height))
    for i, view in enumerate(views):
        tile = Image.fromarray(view if scene.playing[i] else view // 3).resize((TILE, height))
        words = f"{scene.returns[i]:,.0f}"
        words += "" if scene.playing[i] else f" in {scene.lengths[i]:,} steps"
        font = ImageFont.load_default(size=18)
        ImageDraw.Draw(tile).text((8, 5), words, "white", font, stroke_width=2, stroke_fill="black")
        page.paste(tile, (i % columns * TILE, i // columns * height))
    return np.asarray(page)
