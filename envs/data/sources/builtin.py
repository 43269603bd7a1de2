"""Built-in data sets: made on first use, kept in Minari's local store."""

import logging

import minari

from common.errors import UserError
from envs.behaviors import RECIPES, Recipe, find_recipe
from envs.behaviors.collect import make_dataset
from envs.data.episodes import Episodes
from envs.data.sources.minari import is_local, load_minari

logger = logging.getLogger(__name__)


def recipe_of(name: str) -> Recipe:
    """Returns the recipe of a built-in data set; raises UserError if there is none."""
    recipe = find_recipe(name)
    if recipe is None:
        raise UserError(f"there is no built-in data set '{name}'; there are: {', '.join(RECIPES)}")
    return recipe


def load_builtin(name: str, steps: int, seed: int, environment_id: str | None = None) -> Episodes:
    """Loads a built-in data set; makes it first, with a progress bar, if it is not there yet.

    `name` is its id or short name, `steps` the least number of steps and `seed` the seed if it has
    to be made, `environment_id` the environment to evaluate in instead of its own.

    Raises:
        UserError: There is no such data set, or it cannot be made or read.
    """
    recipe = recipe_of(name)
    if not is_local(recipe.dataset_id):
        try:
            make_dataset(recipe, steps, seed)
        except UserError as error:
            raise UserError(f"{recipe.dataset_id} cannot be made: {error}") from error
    episodes = load_minari(recipe.dataset_id, environment_id)
    metadata = minari.load_dataset(recipe.dataset_id).storage.metadata
    made = metadata.get("collected_steps"), metadata.get("collected_seed")
    if made != (steps, seed):
        logger.warning(
            "%s in the local store was made with steps=%s seed=%s, not steps=%s seed=%s; "
            "to make it anew: python -m envs.behaviors.collect dataset=%s steps=%s seed=%s "
            "overwrite=true",
            *(recipe.dataset_id, *made, steps, seed, recipe.dataset_id, steps, seed),
        )
    return episodes
