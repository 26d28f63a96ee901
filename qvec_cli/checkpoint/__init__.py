"""Named arrays on disk, in numpy; knows nothing of models or quantization."""
