"""Rewards that a command line names as module:name."""


def short(prompts, responses):
    """Likes short responses."""
    return [-float(len(response)) for response in responses]
