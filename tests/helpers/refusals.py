"""How the tests read an error message."""

import re

import pytest


def refuses(error, *said):
    """pytest.raises for a message that says all of these, in any order."""
    return pytest.raises(error, match="(?si)" + "".join(f"(?=.*{re.escape(x)})" for x in said))
