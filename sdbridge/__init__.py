"""sdbridge: live textures in, generated frames out, steered over OSC."""

__version__ = "0.1.0"
