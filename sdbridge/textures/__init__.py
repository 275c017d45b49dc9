"""Who may carry pixels: one file per backend, all with the methods of ``stub.py``."""
