"""Everything that needs examples: data sets, training, accuracy."""
