"""What every part may use: errors, whole files, the terminal."""
