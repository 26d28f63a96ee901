"""What other programs read: ONNX graphs, OpenVINO's files, folders of timm and transformers.js."""
