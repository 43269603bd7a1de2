"""How a command becomes runs."""
