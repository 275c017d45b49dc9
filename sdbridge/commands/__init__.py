"""What each ``sdbridge`` command does; ``cli.py`` only reads the arguments."""
