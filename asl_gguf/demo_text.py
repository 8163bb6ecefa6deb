"""The demo's document: a lighthouse logbook of a chosen length with one number hidden in it.

All text is made here, from our own sentences and a seed, so one seed gives the same document on
every machine. The hidden sentence and the question follow RULER's needle-in-a-haystack task.
"""

from __future__ import annotations

import dataclasses
import datetime
import random
import re
from typing import Callable, Iterator, Mapping, Sequence

from .errors import OptionError

_FIRST_DAY = datetime.date(1871, 3, 1)
_MAX_DAYS_BETWEEN_ENTRIES = 3
_MIN_SENTENCES, _MAX_SENTENCES = 3, 6
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)
_TOPICS = (
    "amber-orchard", "brisk-meadow", "copper-thistle", "dusty-violin", "gentle-walnut",
    "hollow-marble", "ivory-saddle", "quiet-saffron", "scarlet-anvil", "velvet-compass",
)

_WORDS: Mapping[str, Sequence[str]] = {
    "person": (
        "Ada Merrow", "Tobias Finch", "Old Harkin", "Nell Garrow", "Jonas Pike", "Ruth Calloway",
        "the harbour master", "the schoolteacher", "Doctor Lisle", "Widow Tamsin", "Peter Quill",
        "the blacksmith", "Marta Sorrel", "young Edwin", "the postmistress", "Silas Wren",
    ),
    "ship": (
        "the schooner Petrel", "the brig Constance", "the ketch Maybird", "the barque Aurelia",
        "the cutter Swift", "the trawler Good Intent", "the packet boat Lydia", "the lugger Tern",
        "the steamer Northern Queen", "the collier Hannah Gray", "the sloop Marigold",
    ),
    "port": (
        "Wrenmouth", "Saltcombe", "Kettle Bay", "Port Aldous", "Dunmarrow", "Fennwick", "Ostrand",
        "the southern islands", "Hallow Sound", "Greyhithe",
    ),
    "cargo": (
        "barrels of salted herring", "slate for the chapel roof", "oak planks", "sacks of barley",
        "coal and lamp oil", "crates of lemons", "bales of wool", "a church bell in straw",
        "rope and tar", "seed potatoes", "cheese from the hill farms", "new window glass",
    ),
    "quarter": (
        "north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west",
    ),
    "sky": (
        "the sky was clear to the horizon", "low cloud covered the headland",
        "rain came and went all morning", "a thin fog lay on the water", "the sun was hot by noon",
        "sleet rattled against the panes", "the air smelled of thunder", "hail fell twice",
        "high white clouds drifted inland", "the sea was as flat as a table",
        "a heavy swell broke on the outer rocks", "frost stayed on the steps until ten",
    ),
    "hour": (
        "at first light", "shortly before noon", "at two in the afternoon", "at dusk",
        "an hour after sunset", "near midnight", "at half past six", "on the morning tide",
        "with the evening tide", "while breakfast was still warm",
    ),
    "place": (
        "on the landing steps", "behind the oil store", "in the lower gallery", "by the sheep gate",
        "under the old jetty", "at the foot of the tower", "in the boat house", "beside the well",
        "on the shingle below the cottage", "along the cliff path", "near the signal mast",
    ),
    "thing": (
        "a brass button", "a coil of good rope", "a broken oar", "a child's wooden horse",
        "a lobster pot", "a bottle with no message in it", "a rusty anchor chain", "a tin whistle",
        "a leather boot", "a carved walking stick", "a sealed jar of honey", "a cracked teapot",
    ),
    "part": (
        "the winding gear", "the lamp's second wick", "the fog bell", "the stair rail",
        "the storm shutters", "the lens frame", "the rain barrel", "the kitchen stove",
        "the boat's rudder", "the weather vane", "the pump handle", "the lantern room door",
    ),
    "food": (
        "barley soup", "smoked mackerel", "a plum cake", "boiled eggs and bread", "mutton stew",
        "leek pie", "porridge with honey", "fried potatoes", "a pot of strong tea", "oat biscuits",
    ),
    "beast": (
        "an old fox", "a pair of ravens", "a flock of geese", "the neighbour's goat",
        "a stray dog", "a family of hares", "a lame gull", "the tabby cat", "a young hedgehog",
        "a barn owl", "two cormorants",
    ),
    "craft": (
        "mend nets", "play the fiddle", "read the barometer", "bake bread in an iron pot",
        "splice a rope", "name the stars", "sharpen a plane", "row against the current",
        "carve spoons", "keep bees",
    ),
    "count": (
        "two", "three", "four", "five", "six", "seven", "eight", "nine", "a dozen", "fifteen",
        "twenty", "thirty",
    ),
}

_OPENINGS = (
    "On {date} the wind stood in the {quarter} and {sky}.",
    "The log for {date} begins with a {quarter} wind, and {sky}.",
    "It was {date}, and {sky}.",
    "By breakfast on {date} the wind had gone round to the {quarter}, and {sky}.",
    "Nothing troubled the lamp on {date}, although {sky}.",
    "The barometer fell all through {date}, and {sky}.",
    "The barometer rose slowly on {date} while {sky}.",
    "{date} was a {quarter} wind day, and {sky}.",
)

_SENTENCES = (
    # ships
    "{ship} passed the point {hour}, bound for {port} with {cargo}.",
    "{ship} anchored in the roads {hour} and sent a boat ashore for water.",
    "We saw {ship} {hour}, running for {port} under a single sail.",
    "The crew of {ship} reported {count} days of calm on the way from {port}.",
    "{ship} touched the sand bank {hour} but floated free without damage.",
    "A pilot went out to {ship} {hour} and brought it safely in from {port}.",
    "{ship} should have brought {cargo} from {port}, but the hold was half empty.",
    "Signals were exchanged with {ship}, which asked for news of {port}.",
    "{count} fishing boats left {hour} and came back with a fair catch.",
    "The mail from {port} arrived {hour}, wet through and {count} days late.",
    # work at the light
    "{person} spent the whole day on {part}, which had begun to squeak.",
    "We cleaned the lens with vinegar, and {person} trimmed the wick {hour}.",
    "{part} was painted again, because salt had eaten through the old coat.",
    "A new bolt was fitted to {part} with some help from {person}.",
    "{person} measured the oil and found enough for {count} weeks.",
    "The light was lit {count} minutes after sunset, and {person} watched it until morning.",
    "{person} washed {count} panes of the lantern room clean of salt.",
    "{person} wrote to the harbour board to ask for money to repair {part}.",
    "Much of the day went into {part}, and it works well enough now.",
    "The fog bell was rung for {count} hours, and {person} took the second watch.",
    "Loose stones were cleared {place} before {person} could fall over them.",
    "{person} swept the stairs {hour} and counted every step aloud.",
    # people
    "{person} walked out from {port} to borrow a ladder and stayed for supper.",
    "{person} and {other} quarrelled {place} about a fence and parted as friends.",
    "{person} promised to teach {other} to {craft} before the winter.",
    "{person} has learned to {craft}, and now speaks of little else.",
    "A letter from {other} was read aloud twice, to please {person}.",
    "{person} turned up {hour} with {food} wrapped in a cloth.",
    "We ate {food} {hour}, and {person} told the story of the great flood again.",
    "{person} asked {other} to look after the hens for {count} days.",
    "There was a wedding in {port}, and {person} danced until the candles were low.",
    "{person} has a cough and was told by {other} to stay indoors.",
    "{person} sold {cargo} at the market in {port} for less than was hoped.",
    "The children came with {person} {hour} and left fingerprints on the brass.",
    "{person} wagered {count} pence that {other} could not {craft}, and lost.",
    "A choir from {port} sang {place}, and {person} kept time with a spoon.",
    "{person} came back from {port} with {thing} as a present for {other}.",
    # finds and animals
    "{person} found {thing} {place} and hung it in the kitchen.",
    "The tide left {thing} {place}, and nobody has claimed it.",
    "We saw {beast} {place}, quite unafraid of us.",
    "{beast} stayed {place} for most of the day and was gone {hour}.",
    "{person} fed {beast} with what was left of {food}.",
    "Something had disturbed the stones {place}, and {person} blamed {beast}.",
    "{beast} woke the whole house {hour}, to the great delight of {other}.",
    # stores and garden
    "The store boat brought {cargo}, {food} and a parcel of newspapers.",
    "{person} planted {count} rows of beans beside the cottage, out of the wind.",
    "The cabbages {place} suffered from the salt, but the onions of {person} did well.",
    "{person} mended the wall {place} with stones carried up from the beach.",
    "There was enough driftwood {place} to heat the cottage for {count} days.",
    "{person} counted the candles and put {count} aside for the dark months.",
    "The rain barrel is full again, so {person} need not walk to the spring {hour}.",
    # thoughts
    "{person} thinks the coming season will be mild, but {other} does not agree.",
    "It is quiet {place}, and {person} says that the quiet is good for reading.",
    "From the gallery {person} could count the lights of {port} without a glass.",
    "{person} says that the sea has moved {count} paces closer since last year.",
    "Little else happened, and the evening was spent with {food} and a game of draughts.",
    "{person} tried to draw the view from the tower and gave up {hour}.",
    "A shooting star was seen {hour}, and {person} made a wish but kept it secret.",
)


@dataclasses.dataclass(frozen=True)
class DemoDocument:
    """A document with one fact in it, and the question about that fact.

    answer: seven digits, once in `text`, neither in `question` nor in `answer_prefix`.
    answer_prefix: the start of the model's reply, up to where the answer goes.
    """

    text: str
    question: str
    answer: str
    answer_prefix: str


def make_document(
    count_tokens: Callable[[str], int], n_tokens: int = 2000, depth: float = 0.35, seed: int = 0
) -> DemoDocument:
    """A document of at most n_tokens tokens, which one more sentence would exceed.

    count_tokens: number of tokens of a text, with the special tokens the caller wants to count.
    depth: where the fact stands, as a share of the other text in characters: 0 first, 1 last. It
        stands between two sentences, so at most half a sentence off.
    seed: chooses the words, the topic and the number.

    Raises OptionError when an argument is outside its domain or n_tokens cannot hold the fact.
    """
    _check_options(n_tokens, depth)
    rng = random.Random(seed)
    topic = _pick(rng, _TOPICS)
    answer = str(1_000_000 + int(rng.random() * 9_000_000))
    fact = f"The special magic number for {topic} is: {answer}."
    source = _sentences(rng)
    pieces: list[str] = []

    def text_of(n_sentences: int) -> str:
        while len(pieces) < n_sentences:
            pieces.append(next(source))
        return _insert_at_depth(pieces[:n_sentences], fact, depth)

    def fits(n_sentences: int) -> bool:
        return count_tokens(text_of(n_sentences)) <= n_tokens

    if not fits(0):
        raise OptionError(
            f"expected n_tokens to hold at least the hidden fact ({count_tokens(text_of(0))} "
            f"tokens), got {n_tokens}; choose a larger n_tokens"
        )
    return DemoDocument(
        text=text_of(_last_fit(fits, n_tokens)),
        question=f"What is the special magic number for {topic} mentioned in the provided text?",
        answer=answer,
        answer_prefix=f"The special magic number for {topic} mentioned in the provided text is:",
    )


def _check_options(n_tokens: int, depth: float) -> None:
    if n_tokens < 1:
        raise OptionError(f"expected n_tokens >= 1, got {n_tokens}; choose a larger n_tokens")
    if not 0.0 <= depth <= 1.0:
        raise OptionError(
            f"expected depth between 0 and 1, got {depth}; it is a share of the text, so give 35 % "
            f"as 0.35"
        )


def _last_fit(fits: Callable[[int], bool], n_tokens: int) -> int:
    """A number of sentences that fits while one more does not; 0 is known to fit.

    This holds for any counter, also one whose count is not monotonic in the text.
    """
    too_many = 1
    while fits(too_many):
        if too_many > n_tokens:
            raise OptionError(
                f"expected count_tokens to count at least one token per sentence, got at most "
                f"{n_tokens} for {too_many} sentences; pass the tokenizer of the model"
            )
        too_many *= 2
    enough = too_many // 2
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if fits(middle):
            enough = middle
        else:
            too_many = middle
    return enough


def _insert_at_depth(pieces: Sequence[str], fact: str, depth: float) -> str:
    """The text with `fact` at the sentence boundary closest to `depth`.

    Each piece carries the white space before it, so joining them gives the paragraphs.
    """
    wanted = depth * sum(map(len, pieces))
    boundary = n_before = 0
    for piece in pieces:
        if n_before + len(piece) / 2 > wanted:
            break
        n_before += len(piece)
        boundary += 1
    return "".join([*pieces[:boundary], " " + fact, *pieces[boundary:]]).strip()


def _sentences(rng: random.Random) -> Iterator[str]:
    """Endless logbook entries: sentences, each with the white space that goes before it."""
    bags = {name: _draw(rng, words) for name, words in _WORDS.items()}
    openings, templates = _draw(rng, _OPENINGS), _draw(rng, _SENTENCES)
    yield " This is the logbook of the Gannet Rock light, kept for the harbour board."
    day = _FIRST_DAY
    while True:
        date = f"{day.day} {_MONTHS[day.month - 1]} {day.year}"
        yield "\n\n" + _fill(next(openings), bags, date)
        n_more = _MIN_SENTENCES + int(rng.random() * (_MAX_SENTENCES - _MIN_SENTENCES + 1))
        for _ in range(n_more):
            yield " " + _fill(next(templates), bags, date)
        day += datetime.timedelta(days=1 + int(rng.random() * _MAX_DAYS_BETWEEN_ENTRIES))


def _fill(template: str, bags: Mapping[str, Iterator[str]], date: str) -> str:
    """Put words in the template's fields; {other} is a second person."""
    words = {"date": date}
    for field in re.findall(r"{(\w+)}", template):
        if field == "other":
            words[field] = next(p for p in bags["person"] if p != words.get("person"))
        elif field not in words:
            words[field] = next(bags[field])
    sentence = template.format_map(words)
    return sentence[0].upper() + sentence[1:]


def _draw(rng: random.Random, words: Sequence[str]) -> Iterator[str]:
    """Endless draws that use every word once before any comes again."""
    while True:
        left = list(words)
        while left:
            yield left.pop(int(rng.random() * len(left)))


def _pick(rng: random.Random, words: Sequence[str]) -> str:
    # random() is the only method whose sequence Python promises to keep between versions.
    return words[int(rng.random() * len(words))]
