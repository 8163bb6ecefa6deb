"""llama_cpp's face: everything that llama_cpp.Llama does, on the engine."""
