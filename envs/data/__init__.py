"""What was recorded: episodes, batches of them, their sources and their copy on disk."""
