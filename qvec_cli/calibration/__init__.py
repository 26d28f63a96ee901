"""Quantizing with images, or with the moments of what layers saw of them."""
