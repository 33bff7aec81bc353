"""Guards: why two near prompts may not share an answer; and what of a prompt is compared.

Embeddings put "1+1" near "21+1", "with sugar" near "without sugar", Paris near Rome. A guard reads
both texts and refuses; it proves nothing by keeping silent. English-centred: the word tables are
English, and names are known by capitals, so in scripts without case only figures, quoted words and
Latin tokens are compared. Reasons quote the prompts (60 characters of each). Prompts are untrusted
and may be long, so everything here takes one pass: no pattern backtracks more than a token, and
words are looked up in sets. Pure; must not import a client, nor numpy.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, Final, TypeAlias

from ..keys import require_text
from .identity import Prompt, last_turn

__all__ = ["Guard", "as_guards", "extractor", "names", "negations", "numbers", "veto"]

Guard: TypeAlias = Callable[[str, str], "str | None"]
"""(asked, stored) -> why they may not share an answer, or None. Symmetric; must not raise."""

_SAME: Final = str.maketrans("\u2019\u2018\u2212\u2044\u201c\u201d`", '\'\'-/"""')
_WORD: Final = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


def _table(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Figures -------------------------------------------------------------------------------------

_FIGURE: Final = r"(?:(?<!\w)\.)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)*"
_OPERATOR: Final = {"plus": "+", "minus": "-", "times": "*", "\u00d7": "*", "x": "*", "\u00f7": "/"}
_JOINED: Final = "|".join(["[-+*/^:]", *_OPERATOR])
_SUM: Final = re.compile(rf"(?:(?<![^\s(])-)?{_FIGURE}(?: ?(?:{_JOINED}) ?{_FIGURE})*")
_OPERAND: Final = re.compile(rf"({_JOINED})")
_KILO: Final = re.compile(r"(?<![\d.])(\d{1,3})k\b")
_UNIT: Final = re.compile(r"\d ?-?(%|°? ?[^\W\d_]+)|([$€£¥])")
_COUNTS: Final = (
    "zero|one first once|two twice|three third thrice|four fourth|five fifth|six sixth"
    "|seven seventh|eight eighth|nine ninth|ten tenth|eleven eleventh|twelve twelfth dozen"
)
_VALUE: Final = {
    word: str(value) for value, words in enumerate(_COUNTS.split("|")) for word in words.split()
} | {"second": "2", "twenty": "20", "hundred": "100", "thousand": "1000", "million": "1000000"}
# They count only as what the other text's figure may mean: "one does", "a second", "at first".
_LOOSE: Final = frozenset(("zero", "one", "first", "once", "second"))
_UNITS: Final = {
    word: unit.split()[0]
    for unit in (  # noqa: SIM905
        "% percent|$ usd dollar|€ eur euro|£ gbp|kg kilo kilogram|lb|km kilometer|mile|gb|mb|tb|am"
        "|pm|celsius °c|fahrenheit °f|second|minute|hour|day|week|month|year"
    ).split("|")  # "pounds" weigh or pay, so it agrees with both
    for word in unit.split()
}


def numbers(asked: str, stored: str) -> str | None:
    """Refuse texts whose figures or units differ.

    Compared as sets, so one that is repeated counts once: 1,000 is 1000 and 30k is 30000, "three"
    is 3, 2+3 is 3+2 but not 2-3; order counts in 10-3, 1/2 and dates. 3.10 is not 3.1, which
    versions need and prices do not. A unit differs only from another: "$5" agrees with "5".
    """
    (one, maybe_one, units), (two, maybe_two, others) = _figures(asked), _figures(stored)
    if one - two - maybe_two or two - one - maybe_one:
        return _reason("numbers", one, two)
    if units - others and others - units:
        return _reason("numbers", units, others)
    return None


def _figures(text: str) -> tuple[set[str], set[str], set[str]]:
    """Return what figures a text holds, what others it may mean, and their units."""
    plain = _KILO.sub(r"\1,000", _plain(text).casefold())
    found = {_figure(match[0]) for match in _SUM.finditer(plain)}
    loose: set[str] = set()
    for word in _WORD.findall(plain):
        if word in _VALUE:
            (loose if word in _LOOSE else found).add(_VALUE[word])
    after = (match[1] or match[2] for match in _UNIT.finditer(plain))
    units = {_UNITS.get(unit, _UNITS.get(unit.removesuffix("s"), "")) for unit in after}
    return found, loose, units - {""}


def _figure(text: str) -> str:
    """Return one way of writing a figure, a sum or a date: 1,000.0 + .5 -> 0.5+1000."""
    sign = "-" if text.startswith("-") else ""
    parts = _OPERAND.split(text[len(sign) :].replace(" ", "").replace(",", ""))
    parts[1::2] = [_OPERATOR.get(part, part) for part in parts[1::2]]
    for place in range(0, len(parts), 2):
        digits = "".join(c if c == "." else str(unicodedata.decimal(c)) for c in parts[place])
        whole, dot, rest = digits.partition(".")
        parts[place] = (whole.lstrip("0") or "0") + (dot + rest if rest.strip("0") else "")
    if not sign and set(parts[1::2]) in ({"+"}, {"*"}):
        parts[::2] = sorted(parts[::2])
    return sign + "".join(parts)


# Negations -----------------------------------------------------------------------------------

_NEGATORS: Final = _table(
    "not no never without none neither nor cannot nothing nobody nowhere non cant dont wont isnt"
    " doesnt didnt shouldnt wouldnt couldnt arent wasnt werent hasnt havent"
)
_BOTH: Final = frozenset((("or", "not"), ("why", "not"), ("if", "not")))  # ask for both sides
_PREFIXES: Final = ("un", "non", "in", "im", "ir", "il", "dis")
_PAIRS: Final = _table(
    "with/without enable/disable increase/decrease before/after buy/sell min/max minimum/maximum"
    " import/export best/worst open/close start/stop add/remove more/less most/least high/low"
    " higher/lower highest/lowest biggest/smallest largest/smallest oldest/newest good/bad pro/con"
    " activate/deactivate upgrade/downgrade win/lose gain/lose encode/decode"
    " encrypt/decrypt upload/download true/false male/female man/woman boy/girl brother/sister"
    " include/exclude positive/negative input/output ascending/descending odd/even"
    " accept/reject allow/forbid create/delete above/below north/south east/west hot/cold"
)


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) >= len(ending) + 3:
            return word[: -len(ending)]
    return word


_OPPOSITES: Final = tuple(frozenset(map(_stem, pair.split("/"))) for pair in _PAIRS)


def negations(asked: str, stored: str) -> str | None:
    """Refuse texts of which one is negated and the other not, or that say opposites.

    "Not legal" agrees with "illegal": a prefix counts as a negation where the other text has the
    bare word. Of opposites (a short table) each text must have one only.
    """
    one, two = (_WORD.findall(_plain(text).casefold()) for text in (asked, stored))
    said, other = set(one), set(two)
    no, nay = _negators(one) | _prefixed(said, other), _negators(two) | _prefixed(other, said)
    if bool(no) != bool(nay):
        return _reason("negations", no, nay)
    stems, others = ({_stem(word) for word in words} for words in (said, other))
    for pair in _OPPOSITES:
        left, right = pair & stems, pair & others
        if len(left) == len(right) == 1 and left != right:
            return _reason("negations", left, right)
    return None


def _negators(words: list[str]) -> set[str]:
    return {
        word
        for before, word in pairwise(["", *words])
        if word.endswith("n't") or (word in _NEGATORS and (before, word) not in _BOTH)
    }


def _prefixed(words: set[str], bare: set[str]) -> set[str]:
    """Return the words here that are a word there with a prefix that negates it."""
    return {
        word
        for word in words - bare
        for prefix in _PREFIXES
        if word.startswith(prefix) and len(word) > len(prefix) + 3 and word[len(prefix) :] in bare
    }


# Names ---------------------------------------------------------------------------------------

_TOKEN: Final = re.compile(
    r"[^\W_](?:\.[^\W_])+(?![^\W_])"  # U.S.
    r"|[^\W_]+(?:['_&-][^\W_]+)*(?:(?:\+\+|#)(?!\w))?"
)
_ODD: Final = re.compile(r"[\d_+#]")
_QUOTED: Final = re.compile(r'"([^"]{1,60})"')
_ENDS: Final = frozenset(".?!:;")  # of what goes before; the next word has its capital from it
_APART: Final = re.compile(r"[._&-]")
_DIRECTED: Final = frozenset(("to", "into", "than", "from"))
# What is capitalised in the middle of a sentence and names nothing.
_COMMON: Final = _table(
    "a about according all also am an and any are as at be best better but by can could did do does"
    " for from get good has have he how i if in into is it its me my no not of ok on or our please"
    " rs she should so some than that the their there these they this to top was we what when"
    " where which who why will with would you your"
)


def names(asked: str, stored: str) -> str | None:
    """Refuse texts of which one names what does not occur, in whatever case, in the other.

    Names are words with a capital (not those that open a sentence, nor in Text Set Like This),
    with inner capitals, digits or `_`, C++ and C#, and what stands in double quotes or backticks.
    Also refuses "Paris to Rome" for "Rome to Paris".
    """
    (one, known, ways), (two, others, back) = _named(asked), _named(stored)
    lost, found = one - others, two - known
    if lost or found:
        return _reason("names", lost, found)
    for start, end in ways - back:
        if (end, start) in back - ways:
            return _reason("names", (start, end), (end, start))
    return None


def _named(text: str) -> tuple[set[str], set[str], set[tuple[str, str]]]:
    """Return the names of a text, everything a name may be found in, and what leads where."""
    plain = _plain(text)
    tokens = list(_TOKEN.finditer(plain))
    roots = [_root(token[0]) for token in tokens]
    known = {*roots, *map(_root, _WORD.findall(plain))}
    known.update(left + right for left, right in pairwise(roots))
    known.update(_root(p) for t in tokens if t[0][-1] not in "+#" for p in _APART.split(t[0]))
    ways = {
        (start, end)
        for start, way, end in zip(roots, roots[1:], roots[2:], strict=False)
        if way in _DIRECTED and start != end
    }
    found = {_root(t) for q in _QUOTED.findall(plain) for t in _TOKEN.findall(q)}
    capitals = sum(token[0][0].isupper() for token in tokens)
    titled = len(tokens) > 3 and capitals * 2 > len(tokens)
    shouted = plain == plain.upper()
    end = 0
    for token, root in zip(tokens, roots, strict=True):
        gap, end = plain[end : token.start()], token.end()
        opens = token.start() == len(gap) or not _ENDS.isdisjoint(gap)
        if _is_name(token[0].partition("'")[0], opened=opens or titled, cased=not shouted):
            found.add(root)
    return {n for n in found if not n[0].isdigit() and n not in _COMMON}, known, ways


def _is_name(token: str, *, opened: bool, cased: bool) -> bool:
    odd = token.isascii() and _ODD.search(token) is not None
    inner = token[1:] != token[1:].lower()
    return odd or (cased and (inner or (token[0].isupper() and not opened)))


def _root(token: str) -> str:
    """Return a token as names are compared: U.S. as us, Indians and India's as india."""
    root = _APART.sub("", token.partition("'")[0].casefold())
    if len(root) > 4:
        root = root.removesuffix("s")
    return root[:-1] if len(root) > 4 and root.endswith("an") else root


# Together ------------------------------------------------------------------------------------

_GUARDS: Final[dict[str, Guard]] = {"numbers": numbers, "negations": negations, "names": names}


def as_guards(guards: Iterable[str | Guard]) -> tuple[Guard, ...]:
    """Return guards as functions; names of ours are "numbers", "negations" and "names".

    Raises ValueError for one text and for unknown names, TypeError for what is no callable.
    """
    if isinstance(guards, str):
        raise ValueError(  # noqa: TRY004  # an iterable of texts it is
            f"guards must be a list of guards, not the text {guards!r}"
        )
    if not isinstance(guards, Iterable):
        raise TypeError(f"guards must be a list of guards, not {type(guards).__name__}")
    return tuple(_as_guard(guard) for guard in guards)


def _as_guard(guard: Any) -> Guard:
    if isinstance(guard, str):
        if guard not in _GUARDS:
            raise ValueError(f"guards must be callables or of {', '.join(_GUARDS)}, not {guard!r}")
        return _GUARDS[guard]
    if not callable(guard):
        raise TypeError(f"guards must be callables or names, not {type(guard).__name__}")
    return guard  # type: ignore[no-any-return]  # a callable


def veto(guards: tuple[Guard, ...], asked: str, stored: str) -> str | None:
    """Return the first refusal, such as "numbers: 1+1 / 1+21", or None."""
    reasons = (guard(asked, stored) for guard in guards)
    return next((reason for reason in reasons if reason is not None), None)


def extractor(template: str | None = None) -> Callable[[Prompt], tuple[str, str]]:
    """Return a function `(prompt) -> (text, context)`: what is compared, and what must be equal.

    The text is the prompt's, or that of the last user turn (text parts joined by newlines), white
    space collapsed, without the fixed parts of `template`, a text with one `{prompt}`; a prompt
    that does not fit it is kept whole. The context is the template if it was taken away, else "";
    other turns, and parts that are no text, are the caller's to compare. Raises ValueError for
    another template and for a prompt of which nothing is left, TypeError for types.
    """
    head, tail = "", ""
    if template is not None:
        whole = " ".join(require_text("template", template).split())
        if whole.count("{prompt}") != 1:
            raise ValueError("template must hold {prompt} exactly once")
        head, _, tail = whole.partition("{prompt}")

    def extract(prompt: Prompt) -> tuple[str, str]:
        raw = prompt if isinstance(prompt, str) else _last_user_text(prompt)
        text = " ".join(require_text("prompt", raw).split())
        core = text.removeprefix(head).removesuffix(tail)
        if template is not None and head + tail and head + core + tail == text:
            return require_text("prompt", core).strip(), template
        return text, ""

    return extract


def _last_user_text(messages: Any) -> str:
    """Return the text of the last user turn."""
    if not isinstance(messages, (list, tuple)):
        raise TypeError(f"prompt must be a str or messages, not {type(messages).__name__}")
    if not all(isinstance(message, Mapping) for message in messages):
        raise TypeError("prompt must hold messages, each a mapping")
    content = messages[last_turn(messages)].get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)) or not all(isinstance(p, Mapping) for p in content):
        raise TypeError("prompt's content must be a str or a list of parts, each a mapping")
    texts = [part.get("text") for part in content if part.get("type", "text") == "text"]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("prompt's text parts must hold a str")
    return "\n".join(map(str, texts))


def _plain(text: str) -> str:
    """Return text with white space collapsed, in compatibility form (NFKC), plain quotes.

    Word by word, and only those below 64 characters: ordering a run of n accents takes n**2 steps.
    """
    words = text.split()
    if not text.isascii():
        words = [unicodedata.normalize("NFKC", w) if len(w) < 64 else w for w in words]
    return " ".join(" ".join(words).translate(_SAME).split())


def _reason(guard: str, one: Iterable[str], two: Iterable[str]) -> str:
    return f"{guard}: " + " / ".join(" ".join(sorted(side))[:60] for side in (one, two))
