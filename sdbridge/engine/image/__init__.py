"""The image engine: StreamDiffusion's mathematics on stock diffusers, live in every parameter."""
