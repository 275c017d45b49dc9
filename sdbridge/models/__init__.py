"""Which models there are, how they are fetched, and the small one that ships in the package."""
