"""Long texts with one fact in them, to measure how far a server really reads."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from dca.serve.check import figures

# Plain words, which every tokenizer splits into about the same number of tokens.
PEOPLE = (
    "The clerk",
    "A surveyor",
    "The harbour master",
    "An apprentice",
    "The librarian",
    "A courier",
    "The miller",
    "One of the guards",
    "The botanist",
    "A retired teacher",
    "The printer",
    "Her cousin",
)
DEEDS = (
    "wrote down",
    "measured",
    "forgot to mention",
    "praised",
    "counted",
    "repaired",
    "described at length",
    "carried home",
    "argued about",
    "painted",
    "compared",
    "put away",
)
THINGS = (
    "the old bridge",
    "a box of letters",
    "the water level",
    "three broken clocks",
    "the winter stores",
    "a map of the valley",
    "the stairs to the cellar",
    "a field of barley",
    "the bell in the tower",
    "two bundles of wool",
    "the road to the coast",
    "a row of apple trees",
)
TIMES = (
    "before the rain set in",
    "on the second morning",
    "while the others slept",
    "in the spring of that year",
    "after the market closed",
    "without saying why",
    "as the river rose",
    "at the end of the long summer",
    "when the ferry was late",
    "with great patience",
    "shortly before noon",
    "to everyone's surprise",
)
PLACES = ("Aldmere", "Brackwater", "Corvenhall", "Dunmarrow", "Eastfold", "Farrowdale", "Greyhaven", "Holmstead")
DISTRACTORS = 3
OPENING = (
    "Below is a long record. Somewhere in it stands the access number of a town. Read it to the end; a question "
    "follows it.\n\n"
)


@dataclass(frozen=True)
class Haystack:
    """A prompt, and the right answer.

    Args:
        text: the prompt.
        place: the town that the question names.
        number: the town's number.
        others: numbers of the other towns, plausible wrong answers.
    """

    text: str
    place: str
    number: str
    others: tuple[str, ...]

    def judge(self, answer: str, hide: Callable[[str], str] = str) -> str:
        """Why an answer is wrong; empty when it has the number, and no other town's.

        Args:
            answer: the model's answer.
            hide: removes credentials from the text to show.
        """
        whole = figures.plain(answer)
        text = figures.final(whole)
        right = figures.says(text, self.number)
        # An answer with every town's number has not found the right one.
        if wrong := next((number for number in self.others if figures.says(text, number)), None):
            return f"it has another town's number, {wrong}, {'beside' if right else 'instead of'} {self.number}"
        if right:
            return ""
        if monotonous(answer):
            return f"the answer repeats one character: {hide(answer).strip()[:20]!r}"
        how = "denies" if self.number in whole else "does not contain"
        return f"the answer {how} {self.number}: {' '.join(hide(answer).split())[:80]!r}"


def monotonous(text: str) -> bool:
    """Whether a text repeats one character, as after a numeric overflow in the engine."""
    seen = text.strip()
    return len(seen) >= 8 and len(set(seen)) == 1


def sentences(chance: random.Random, characters: int) -> list[str]:
    """Filler sentences, with this many characters in total or up to one sentence less."""
    record: list[str] = []
    while True:
        sentence = f"{chance.choice(PEOPLE)} {chance.choice(DEEDS)} {chance.choice(THINGS)} {chance.choice(TIMES)}."
        characters -= len(sentence) + 1
        if characters < 0:
            return record
        record.append(sentence)


def build(characters: int, depth: float, seed: str) -> Haystack:
    """A prompt of a length, with the fact at a depth.

    Args:
        characters: maximum characters of the prompt; it is up to a sentence shorter, but never shorter than facts and
            question.
        depth: depth of the fact, in percent of the record.
        seed: seed of the text; texts of different seeds differ from the first line on, so that no server answers from
            a cached prefix.
    """
    chance = random.Random(seed)  # noqa: S311 - texts, not secrets
    places = chance.sample(PLACES, DISTRACTORS + 1)
    numbers = [str(number) for number in chance.sample(range(1_000_000, 10_000_000), DISTRACTORS + 1)]
    facts = [f"The access number of {place} is {number}." for place, number in zip(places, numbers, strict=True)]
    first = f"Record {chance.getrandbits(64):016x}."
    question = (
        f"\n\nThe record ends here. What is the access number of {places[0]}? Answer with the number alone, without "
        "any other word."
    )
    fixed = len(OPENING) + len(first) + len(question) + sum(len(fact) + 1 for fact in facts) + 1
    text = sentences(chance, characters - fixed)
    # The other towns' facts are inserted first, so that they do not shift the fact from its depth.
    for fact in facts[1:]:
        text.insert(chance.randint(0, len(text)), fact)
    text.insert(_place(text, depth), facts[0])
    return Haystack(f"{OPENING}{first} {' '.join(text)}{question}", places[0], numbers[0], tuple(numbers[1:]))


def shortest() -> int:
    """Characters of a prompt without filler."""
    return max(len(build(0, 0, str(seed)).text) for seed in range(4))


def _place(text: list[str], depth: float) -> int:
    """The index of the first sentence at or after a depth, measured in characters."""
    target, passed = sum(len(sentence) + 1 for sentence in text) * depth / 100, 0
    for index, sentence in enumerate(text):
        if passed >= target:
            return index
        passed += len(sentence) + 1
    return len(text)
