"""The addresses on the network that an HTML page loads."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_LOADERS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
_CSS_LOAD = re.compile(r"""(?:url\(\s*["']?|@import\s*["'])((?:https?:)?//[^"')\s]+)""")


def network_loads(page: str) -> list[str]:
    """The addresses on the network that a browser requests to show ``page``; links to click do not count."""
    parser = _Loads()
    parser.feed(page)
    return parser.addresses + _CSS_LOAD.findall(page)


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(_LOADERS.get(tag, "")) or ""
        if address.startswith(("http:", "https:", "//")):
            self.addresses.append(address)
