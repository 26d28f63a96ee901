"""What a command starts from: files that belong together, grids, lambdas, images."""
