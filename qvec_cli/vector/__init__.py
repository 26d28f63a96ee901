"""State-dict arithmetic on quantization vectors, in numpy."""
