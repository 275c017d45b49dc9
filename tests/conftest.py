"""What holds for every test: hypothesis draws the same examples in every run, on every machine.

``HYPOTHESIS_PROFILE=explore pytest ...`` looks for new ones; what it finds becomes a test of its own.
"""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
