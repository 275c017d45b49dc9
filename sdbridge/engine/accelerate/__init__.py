"""How the model's three calls (encode, denoise, decode) are run on this machine."""
