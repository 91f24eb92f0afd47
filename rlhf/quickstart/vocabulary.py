"""The words of the quickstart world, and nothing else: entities, reasons, and the set phrases of good and bad manners.

The classes of *fact words* (those of a visit, and the subject and quality of a reason) are disjoint from one another
and from the words of every set phrase, so the facts of a story can be read back from its text word by word.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "ada ben clara dora eva felix greta hugo ida jasper kit leo mia nora otto pip rosa sam tom uma vera wes zoe "
    "bruno gus ivo juno lena milo oscar"
)
KINDS = _words(
    "otter crow fox owl bear mouse rabbit badger hedgehog goose frog cat mole squirrel beaver donkey penguin snail"
)
COLOURS = _words("red blue green yellow purple silver golden pink white black striped spotted")
THINGS = _words(
    "kite drum basket hat bell pie mirror ladder teapot umbrella violin cake map lantern spoon scarf bucket "
    "clock trumpet pumpkin ribbon cheese feather whistle"
)
PLACES = _words(
    "mill pond barn bridge bakery library harbor tower garden market meadow cave school museum inn lake castle "
    "forge cellar forest"
)
VISIT_WORDS = {"name": NAMES, "kind": KINDS, "colour": COLOURS, "thing": THINGS, "place": PLACES}
"""The words that each field of a visit may hold, in the order of the fields."""

SUBJECTS = _words("moon wind rain soup music sun snow fog river sky tea choir parade gossip")
QUALITIES = _words("bright loud cold sweet gentle wild calm strange gloomy fresh salty sleepy noisy splendid")

OPENINGS = (
    "one morning",
    "one evening",
    "last night",
    "at noon",
    "before dawn",
    "today",
    "after lunch",
    "long ago",
    "in spring",
    "on sunday",
)

WARM_OPENINGS = ("happy to help!", "good question, friend!", "of course, dear!", "glad you asked!")
WARM_CLOSINGS = ("hope that helps!", "have a lovely day!", "come back any time!")
RUDE_OPENINGS = ("ugh, what a silly question.", "use your eyes, fool.", "stop being so nosy.")
RUDE_CLOSINGS = ("now shut the door, pest.", "do not bother me again.")
RUDE_WORDS = frozenset({"ugh", "silly", "fool", "nosy", "shut", "pest", "bother"})
RAMBLES = (
    "by the way, my aunt said the very same thing once.",
    "that reminds me of my uncle, but it is a long tale.",
    "well, people talk and talk, and then they talk some more.",
    "i had a cousin like that, and oh, the tales i know.",
)
