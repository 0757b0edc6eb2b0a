"""How many examples a test draws: fewer in the suite, all of them in the long tier."""

from hypothesis import settings

SUITE = 60  # examples of the default profile


def examples(count):
    """``count`` in the suite; as many times more in another profile as that has more examples."""
    return count * settings.default.max_examples // SUITE
