"""Weights and integer grids: arrays in, arrays out; no files, no models."""
