"""llama.cpp over a checkpoint's decoder, written to a GGUF file."""
