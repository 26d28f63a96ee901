"""What other programs read: ONNX graphs, folders of timm and transformers.js."""
