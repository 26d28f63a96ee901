"""What to do with a receiver: set up, try every candidate, measure, decide."""
