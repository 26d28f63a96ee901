"""qvec: quantization vectors for Vision Transformers, from the command line."""
