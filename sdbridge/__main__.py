"""``python -m sdbridge`` is the same as ``sdbridge``."""

from sdbridge.cli import main

if __name__ == "__main__":
    main()
