"""Export of the joint encoder to ONNX."""
