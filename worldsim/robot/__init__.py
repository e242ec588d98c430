"""What runs on or beside a robot: numpy, onnxruntime, tokenizers, msgpack and websockets, never torch."""
