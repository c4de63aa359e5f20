"""Extractive reading of one document: its title, its sentences, its terms. Pure text, no model.

The method is the oldest one there is (Luhn, 1958): a term matters as often as it occurs, a sentence as much as its
terms do, and what stands early matters more. Sentences are quoted, never written.

Rules: deterministic; linear in the text's length (about 2 ms for 10 KB); headings, tables and code don't count as
sentences. This module must not know about prompts, fields or DSPy.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import re
from collections.abc import Iterable

__all__ = ["Document", "terms_of"]

_STOP_WORDS = frozenset(
    """a about above after again against all also always am among an and any are aren't as at be because been before
    being below between both but by called can can't cannot could did do does doesn't doing don't down due during each
    either etc every few first following follows for from further given gives had has have having he her here hers him
    his how however i if in into instead is isn't it its itself just last least less let like made make makes many may
    me might more most much must my neither new no nor not note now of off often on once one only onto or other others
    our out over own part per rather s same second see seen several shall she should since so some such t take taken
    than that the their them themselves then there therefore these they this those three through thus to together too
    two under unless until up upon us use used uses using usually very via want was way we well were what whatever when
    where whether which while who whom whose why will with within without won't would yet you your yours
    e.g i.e eg ie example examples""".split()
)
_ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "vs.", "cf.", "Dr.", "Mr.", "Mrs.", "Ms.", "St.", "No.", "Fig.", "approx.")
_ENDINGS = (".", "!", "?", '."', ".)", ".”")
_WORD = re.compile(r"[^\W\d][\w'-]*\w")
_BLOCKS = re.compile(r"\n[ \t]*\n")
_UNDERLINE = re.compile(r"([*=\-~^\"#+'])\1{2,}\s*$")
_MARKDOWN_HEADING = re.compile(r"#{1,6} +(.+?) *#*$")
_TABLE = re.compile(r"\s*[+|]")
_BULLET = re.compile(r"^(?:[*+•-]|\d{1,3}[.)])\s+")
_BULLETS = re.compile(r"\n(?=\s*(?:[*+•-]|\d{1,3}[.)])\s)")
_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"')\]”]))\s+(?=[\"'(*“\[_]*[A-Z])")
_CODE = re.compile(
    r"::=|>>>|^\s*(?:def|class|import|return|if .*:$|for .*:$|while .*:$|try:|\$ )|[{};]\s*$", re.MULTILINE
)
_HEADLINE_CHARACTERS = 80
_MIN_SENTENCE_WORDS = 4
_FIT_CHARACTERS = range(40, 301)


def terms_of(text: str) -> list[str]:
    """Return the terms of a text in order: lower case, singular, without stop words, repeats included."""
    return [_stem(word) for word in _words(text)]


class Document:
    """A text that has been read.

    Args:
        text: Any prose: plain, reStructuredText or Markdown.

    Attributes:
        headings: The headings, as they stand.
        sentences: The sentences in order; the text itself if it has none.
        words: How many words the text has.
    """

    def __init__(self, text: str) -> None:
        self.headings: list[str] = []
        self.sentences: list[str] = []
        self._read(text)
        self._text = text.strip()
        if not self.sentences and self._text:
            self.sentences = [" ".join(self._text.split())[:500]]
        self.words = len(self._text.split())
        self._terms: collections.Counter[str] = collections.Counter()
        self._surfaces: dict[str, str] = {}  # a term's first form in the text: what a reader would call it
        for word in _words(text):
            term = _stem(word)
            self._terms[term] += 1
            self._surfaces.setdefault(term, word)
        self._sentence_terms = [frozenset(terms_of(sentence)) for sentence in self.sentences]
        self._scores = [self._score(place) for place in range(len(self.sentences))]

    def title(self) -> str:
        """Return a headline: the first heading, else a short first line, else the most frequent phrase."""
        if self.headings:
            return self.headings[0]
        first, _, rest = self._text.partition("\n")
        if rest and len(first) <= _HEADLINE_CHARACTERS and not first.rstrip().endswith((".", ",", ";", ":")):
            return first.strip()
        phrase = self._phrase()
        return phrase[:1].upper() + phrase[1:] if phrase else first.strip()[:_HEADLINE_CHARACTERS]

    def keywords(self, count: int) -> list[str]:
        """Return the most frequent terms, at most ``count``; of equally frequent ones those that come first."""
        return [self._surfaces[term] for term, _ in self._terms.most_common(count)]

    def best(self, count: int) -> list[str]:
        """Return the sentences with the highest scores, at most ``count``, best first."""
        places = sorted(range(len(self.sentences)), key=lambda place: (-self._scores[place], place))
        return [self.sentences[place] for place in places[:count]]

    def closest(self, terms: Iterable[str]) -> str:
        """Return the sentence that shares most of ``terms``, of several the one with the highest score; or ""."""
        wanted = frozenset(terms)
        places = range(len(self.sentences))
        best = max(places, key=lambda at: (len(wanted & self._sentence_terms[at]), self._scores[at]), default=None)
        return "" if best is None else self.sentences[best]

    def occurrences(self, terms: Iterable[str]) -> int:
        """Return how often the terms occur, all together."""
        return sum(self._terms[term] for term in terms)

    def share(self, terms: Iterable[str]) -> float:
        """Return which share of the terms, 0 to 1, occurs at all; 0 for no terms."""
        wanted = frozenset(terms)
        return sum(term in self._terms for term in wanted) / len(wanted) if wanted else 0.0

    def variety(self) -> float:
        """Return the share of different ones among the terms, 0 to 1."""
        return len(self._terms) / self._terms.total() if self._terms else 0.0

    def _read(self, text: str) -> None:
        for block in _BLOCKS.split(text.expandtabs(4)):
            lines = [line for line in block.split("\n") if line.strip()]
            lines = self._take_headings(lines)
            if not lines or _TABLE.match(lines[0]):
                continue
            prose = "\n".join(lines)
            if _CODE.search(prose):
                continue
            for item in _BULLETS.split(prose):
                joined = " ".join(item.split())
                self.sentences += _split_sentences(_BULLET.sub("", joined, count=1))

    def _take_headings(self, lines: list[str]) -> list[str]:
        """Move headings at the head of a block to `headings`; return the other lines."""
        while lines:
            markdown = _MARKDOWN_HEADING.match(lines[0])
            if markdown:
                self.headings.append(markdown[1])
                lines = lines[1:]
            elif _UNDERLINE.match(lines[0].strip()):  # an overline, or a rule
                lines = lines[1:]
            elif len(lines) > 1 and _UNDERLINE.match(lines[1].strip()):
                self.headings.append(lines[0].strip())
                lines = lines[2:]
            else:
                break
        return lines

    def _score(self, place: int) -> float:
        terms = self._sentence_terms[place]
        if not terms:
            return 0.0
        weight = sum(self._terms[term] for term in terms) / math.sqrt(len(terms) + 4)
        fit = 1.0 if len(self.sentences[place]) in _FIT_CHARACTERS else 0.5
        return weight * fit * (1 + 1 / (1 + place))

    def _phrase(self) -> str:
        """Return the two words that most often stand together, or the most frequent word."""
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for sentence in self.sentences:
            words = [word.lower() for word in _WORD.findall(sentence)]
            for first, second in itertools.pairwise(words):
                if first not in _STOP_WORDS and second not in _STOP_WORDS:
                    pairs[first, second] += 1
        if pairs:
            (pair, times), *_ = pairs.most_common(1)
            if times > 1:
                return " ".join(pair)
        return (self.keywords(1) or [""])[0]


def _words(text: str) -> list[str]:
    return [word for word in map(str.lower, _WORD.findall(text)) if len(word) > 2 and word not in _STOP_WORDS]


@functools.lru_cache(maxsize=4096)
def _stem(word: str) -> str:
    """Return a word's singular, roughly: enough for ``module`` and ``modules`` to be one term."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is", "'s")):
        return word[:-1]
    return word.removesuffix("'s")


def _split_sentences(prose: str) -> list[str]:
    sentences: list[str] = []
    for piece in _SENTENCE_END.split(prose):
        if sentences and sentences[-1].endswith(_ABBREVIATIONS):
            sentences[-1] += " " + piece
        else:
            sentences.append(piece)
    return [sentence for sentence in sentences if _is_sentence(sentence)]


def _is_sentence(text: str) -> bool:
    words = text.split()
    if len(words) < _MIN_SENTENCE_WORDS or text[0].islower() or not text.endswith(_ENDINGS):
        return False
    return sum(word[:1].isalpha() or word[:1] in "\"'(*“" for word in words) > 0.6 * len(words)
