"""How a control image is made from a picture: one preprocessor per file, batched tensors on the device."""
