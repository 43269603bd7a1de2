"""Everything that touches data or a simulator: tasks, episodes, rollouts and scores."""
