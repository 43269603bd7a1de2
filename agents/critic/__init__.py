"""Value help: a critic of the data, its file, and acting with it."""
