"""The compiled step of a whole policy."""
