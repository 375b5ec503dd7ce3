"""Property tests without a clock: a busy machine must not fail one. The same examples in every run."""

from hypothesis import settings

settings.register_profile("tokenmill", deadline=None, derandomize=True)
settings.load_profile("tokenmill")
