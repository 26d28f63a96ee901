"""What the user types: commands, options, results on a terminal."""
