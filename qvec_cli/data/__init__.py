"""Data sets: folders, torchvision's, the hub's, pictures of noise."""
