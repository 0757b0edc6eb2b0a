"""A hook of mkdocs: links from a page to a file of the repository lead there on the site too."""

import re
from typing import Any


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Rewrite ``](../path)``, which is right in the repository, to the repository's address."""
    return re.sub(r"\]\(\.\./([^)]+)\)", rf"]({config.repo_url}/blob/main/\1)", markdown)
