"""Everything that touches data or a simulator: tasks, episodes, rollouts and scores."""

import os

# MuJoCo loads the OpenGL that MUJOCO_GL names when it is imported, and fails with it; only a video
# needs one, and says in a sentence what is missing.
_chosen = os.environ.pop("MUJOCO_GL", None)
try:
    import mujoco  # noqa: F401
finally:
    if _chosen is not None:
        os.environ["MUJOCO_GL"] = _chosen
