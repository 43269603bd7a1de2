"""Imports MuJoCo; whatever needs it takes it from here.

MuJoCo loads the OpenGL that MUJOCO_GL names when it is imported, and fails with it; only a video
needs one, and says in a sentence what is missing. Gymnasium's renderer imports GLFW, which asks a
Python process of its own for the library's version, and that prints a traceback if a Ctrl-C comes
in between: so GLFW is imported here, before anything is made that could be interrupted.
"""

import os

_chosen = os.environ.pop("MUJOCO_GL", None)
try:
    import gymnasium.envs.mujoco.mujoco_rendering  # noqa: F401
    import mujoco as mujoco
finally:
    if _chosen is not None:
        os.environ["MUJOCO_GL"] = _chosen
