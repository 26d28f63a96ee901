"""What other programs read: ONNX graphs and timm folders."""
