"""Guesses that see no observation, beside which the error of a policy means something."""

import numpy as np

from envs.data.episodes import Episodes


def guess_errors(training: Episodes, held_out: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean absolute error of two guesses of the actions of held-out episodes.

    The first guess is the mean action of the training data; the second is the previous action, and
    the first guess where an episode begins.

    Returns:
        Two arrays (action_dim,), in units of the action.
    """
    pieces = training.pieces("actions")
    total = sum(training.actions[piece].sum(axis=0, dtype=np.float64) for piece in pieces)
    mean = total / training.n_steps
    of_mean, of_previous = np.zeros((2, len(training.action_low)))
    for begin, end in held_out.borders:
        actions = held_out.actions[begin:end]
        of_mean += np.abs(actions - mean).sum(axis=0)
        of_previous += np.abs(actions - np.vstack([mean, actions[:-1]])).sum(axis=0)
    return of_mean / held_out.n_steps, of_previous / held_out.n_steps
