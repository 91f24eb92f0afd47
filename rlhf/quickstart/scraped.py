"""Pages of the quickstart world as a crawler would find them: what `rlhf corpus` has to clean.

Each page tells two stories, and has by chance what web pages have around a text: menus, notices, code, placeholders,
bulleted lists, copies of a page before, and copies with a few words changed.
"""

import random

from rlhf.quickstart.documents import lesson, tale
from rlhf.quickstart.grammar import sample_scene

_MENU = ("home | stories | about", "click here", "share this page")
_NOTICES = (
    "this village uses cookies to remember who took what.",
    "please switch on javascript to see the map of the mill.",
    "by reading on you accept our terms of use and our privacy policy.",
)
_CODE = "function take(thing) { return thing.place; }"
_PLACEHOLDER = "lorem ipsum dolor sit amet, consectetur adipiscing elit."
_LIST = "\n".join(f"- {thing}" for thing in ("red kite", "old drum", "tin cup", "blue lamp", "warm coat"))
_LONGEST_MEMORY = 50


def scraped_pages(count: int, seed: int) -> list[str]:
    """So many pages; about one in seven copies an earlier one, word for word or nearly."""
    rng = random.Random(f"scraped/{seed}")
    pages: list[str] = []
    while len(pages) < count:
        copied = rng.choice(pages[-_LONGEST_MEMORY:]) if pages and rng.random() < 0.15 else None
        if copied is None:
            pages.append(_page(rng))
        else:
            pages.append(copied if rng.random() < 0.5 else _nearly(copied, rng))
    return pages


def _page(rng: random.Random) -> str:
    lines = [_story(rng), _story(rng)]
    if rng.random() < 0.5:
        lines.insert(0, rng.choice(_MENU))
    if rng.random() < 0.4:
        lines.append(rng.choice(_NOTICES))
    for chance, text in ((0.05, _CODE), (0.05, _PLACEHOLDER), (0.05, _LIST)):
        if rng.random() < chance:
            lines.append(text)
    return "\n".join(lines)


def _story(rng: random.Random) -> str:
    return rng.choice((lesson, tale))(sample_scene(rng, "train"), rng)


def _nearly(page: str, rng: random.Random) -> str:
    """The page with its last word but one left out."""
    words = page.split(" ")
    return " ".join(word for place, word in enumerate(words) if place != len(words) - 2 - rng.randrange(2))
