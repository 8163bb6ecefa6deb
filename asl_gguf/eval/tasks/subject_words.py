"""Subjects and moods of the texts in subjects.py: words written for it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a text may be about. Its own name stands in none of its sentences.

    name: with its article.
    signs: words of which one shows that an answer means this subject.
    """

    name: str
    signs: tuple[str, ...]
    people: tuple[str, ...]
    acts: tuple[str, ...]
    places: tuple[str, ...]
    facts: tuple[str, ...]


SUBJECTS = (
    Subject(
        "a bakery",
        ("bakery", "baker", "baking", "bread"),
        ("the dough maker", "the apprentice with floury hands", "the woman at the counter", "the oven man"),
        (
            "kneaded the dough for the rolls",
            "slid the loaves into the oven",
            "weighed flour and salt",
            "brushed the buns with egg",
            "stacked warm loaves on the shelf",
            "shaped the rye loaves",
            "let the yeast rise under a cloth",
            "scraped the crumbs from the trays",
        ),
        ("beside the oven", "at the flour bins", "behind the counter", "near the cooling racks"),
        (
            "The crust has to crack when it cools",
            "A sack of flour lasts two mornings",
            "The rolls are sold before eight",
            "Too much yeast makes the crumb coarse",
        ),
    ),
    Subject(
        "a railway",
        ("railway", "railroad", "train", "rail"),
        ("the signalman", "the engine driver", "the guard", "the ticket clerk"),
        (
            "waved the green flag",
            "checked the points before the junction",
            "coupled the last carriage",
            "stamped the tickets of the passengers",
            "blew the whistle for the departure",
            "oiled the axles of the carriages",
            "lowered the barrier at the crossing",
            "wrote the delay on the board",
        ),
        ("on platform two", "in the signal box", "at the level crossing", "beside the engine shed"),
        (
            "The express has the line to itself at noon",
            "A bent track holds up the whole timetable",
            "The night mail stops for four minutes",
            "Two carriages were left in the siding",
        ),
    ),
    Subject(
        "a garden",
        ("garden", "plant", "flower"),
        ("the head grower", "the boy with the watering can", "the woman in the straw hat", "the rose keeper"),
        (
            "pruned the roses",
            "pulled weeds from the carrot bed",
            "planted tulip bulbs",
            "watered the seedlings",
            "raked leaves from the lawn",
            "tied the beans to their poles",
            "spread compost round the shrubs",
            "picked slugs off the lettuce",
        ),
        ("by the greenhouse", "along the hedge", "under the pear tree", "between the flower beds"),
        (
            "The peonies need shade in the afternoon",
            "Frost took half of the dahlias",
            "A wet spring brings the snails",
            "The compost heap steams in the morning",
        ),
    ),
    Subject(
        "a hospital",
        ("hospital", "medical", "doctor", "patient", "clinic"),
        ("the night nurse", "the surgeon", "the doctor on duty", "the porter with the stretcher"),
        (
            "changed the bandages",
            "took the temperature of the patients",
            "listened to a cough",
            "prepared the operating table",
            "wrote the doses on the chart",
            "set a broken arm in plaster",
            "washed the instruments",
            "moved a patient to another ward",
        ),
        ("in the fever ward", "beside bed nine", "at the medicine cabinet", "in the waiting room"),
        (
            "Visitors have to leave at seven",
            "The fever fell in the night",
            "Two patients were sent home healed",
            "The X-ray showed a cracked rib",
        ),
    ),
    Subject(
        "a school",
        ("school", "teach", "class", "pupil", "student"),
        ("the mathematics teacher", "a pupil in the back row", "the headmistress", "the class speaker"),
        (
            "wrote a sum on the blackboard",
            "collected the homework",
            "read a poem to the class",
            "rang the bell for the lesson",
            "marked the spelling test",
            "explained fractions with an apple",
            "sharpened pencils before the exam",
            "drew a map of the continents",
        ),
        ("in the classroom", "beside the blackboard", "in the playground", "outside the headmistress's office"),
        (
            "The exam has twelve questions",
            "Lessons end at half past three",
            "The youngest pupils learn to count",
            "A good mark was pinned to the wall",
        ),
    ),
    Subject(
        "a theatre",
        ("theatre", "theater", "play", "stage", "actor"),
        ("the leading actress", "the stage manager", "the prompter", "the costume maker"),
        (
            "rehearsed the second act",
            "raised the curtain",
            "learnt a long monologue",
            "painted the scenery",
            "sewed a torn costume",
            "bowed to the audience",
            "set the lights for the duel",
            "powdered the actors' faces",
        ),
        ("in the wings", "on the stage", "in the dressing room", "behind the scenery"),
        (
            "The audience clapped for five minutes",
            "The comedy has eleven roles",
            "A forgotten line spoils the scene",
            "The first night was sold out",
        ),
    ),
    Subject(
        "a farm",
        ("farm", "agricultur", "cattle", "animals"),
        ("the milkmaid", "the ploughman", "the shepherd", "the old man with the tractor"),
        (
            "milked the cows",
            "ploughed the lower field",
            "mended the pigsty",
            "brought in the hay",
            "fed the hens",
            "sheared the sheep",
            "drove the cattle to pasture",
            "sowed the winter wheat",
        ),
        ("in the barn", "beside the pigsty", "on the stubble field", "at the cattle trough"),
        (
            "The harvest was late after the rain",
            "A cow gives most milk in spring",
            "The new calf stands already",
            "Barley fetches a poor price",
        ),
    ),
    Subject(
        "a library",
        ("library", "librarian", "book"),
        ("the keeper of the catalogue", "the woman at the lending desk", "a reader in the corner", "the bookbinder"),
        (
            "put the returned volumes back",
            "stamped the date on a novel",
            "searched the catalogue for an atlas",
            "dusted the upper shelves",
            "glued a loose page",
            "asked two readers to whisper",
            "lent out a book of poems",
            "sorted the encyclopedias",
        ),
        ("in the reading room", "between the shelves", "at the lending desk", "under the map cabinet"),
        (
            "Novels may be kept for three weeks",
            "A late volume costs a penny a day",
            "The oldest manuscript lies under glass",
            "New titles arrive on Mondays",
        ),
    ),
)

TIMES = (
    *("Early in the morning", "Before noon", "In the afternoon", "Towards evening", "On Monday", "The day after"),
    *("As on every day", "Later", "Shortly afterwards", "At the end of the week", "On Thursday", "Meanwhile"),
)

MOODS = {
    "cheerful": (
        *("and everybody laughed", "with a merry song", "and smiled at the others", "and was in high spirits"),
        *("and made a funny joke", "full of joy", "and danced a few steps", "and beamed with delight"),
    ),
    "gloomy": (
        *("and nobody smiled", "with a heavy sigh", "and wept without a sound", "and had lost all hope"),
        *("and thought of the dead", "full of sorrow", "and stared at the grey rain", "and felt lonely and tired"),
    ),
    "angry": (
        *("and shouted at the others", "with clenched fists", "and slammed the door", "and cursed everyone"),
        *("and threatened to strike", "full of rage", "and threw a cup at the wall", "and hated every minute of it"),
    ),
    "calm": (
        *("in no hurry at all", "with quiet hands", "and breathed slowly", "and took plenty of time"),
        *("and enjoyed the silence", "full of peace", "and rested a while", "as steadily as ever"),
    ),
}
