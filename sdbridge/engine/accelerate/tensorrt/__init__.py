"""TensorRT: export the model's parts as ONNX graphs, build engines from them once, run those."""
