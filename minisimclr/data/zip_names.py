"""The names in a zip file as text.

They are bytes of an unknown code page, in which a backslash may be half of a character. A name may be marked as UTF-8.
Of the others we try UTF-8 first, which other texts hardly ever satisfy by chance, and then guess one code page for the
whole archive: that in which most characters are letters of one script. A wrong guess spells names wrongly, but the
same everywhere, so that classes are still told apart.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable

# Those of Japanese, simplified Chinese, Korean, traditional Chinese, Russian and western Windows, and that of DOS.
PAGES = ("cp932", "gb18030", "cp949", "big5", "cp866", "cp850", "cp437")
DEFAULT = "cp437"  # the standard's; every byte is a character in it
TWO_BYTES = PAGES[:4]
MANY = 40  # bytes
SCRIPTS = {
    "cp932": ("HIRAGANA", "KATAKANA", "CJK"),
    "gb18030": ("CJK",),
    "cp949": ("HANGUL",),
    "big5": ("CJK",),
    "cp866": ("CYRILLIC",),
    "cp850": ("LATIN",),
    "cp437": ("LATIN",),
}


def code_page(names: Iterable[bytes], most: int) -> str:
    """Guess the code page of the names that are no UTF-8, from the first `most` of them.

    >>> code_page([name.encode("cp932") for name in ("表/ソフト.png", "ねこ/1.png")], 10)
    'cp932'
    """
    odd = list(itertools.islice((name for name in names if not name.isascii()), most))
    if all(map(is_utf8, odd)):
        return DEFAULT
    scores = {page: _letters(odd, page) for page in PAGES}
    if scores["cp949"] == scores["gb18030"] == 1 and sum(map(len, odd)) >= MANY:
        return "cp949"  # Korean is nearly always Chinese, too; the other way round only a few characters are
    return max(PAGES, key=lambda page: (scores[page], page == DEFAULT))


def decoded(raw: bytes, utf8: bool, page: str) -> str:
    """Return a name as text, its folders set apart by "/". Nothing may follow a zero byte.

    Some archivers on Windows set folders apart by backslashes; in a name with "/" a backslash is a character.

    >>> decoded(b"a\\\\b.png", False, "cp437")
    'a/b.png'
    """
    raw = raw.partition(b"\0")[0]
    # two-byte code pages have characters, such as the Chinese cat, that are two bytes of UTF-8, but never three
    if utf8 or (is_utf8(raw) and (page not in TWO_BYTES or re.search(rb"[\xe0-\xff]", raw) or raw.isascii())):
        name = raw.decode("utf-8", "replace")
    else:
        try:
            name = raw.decode(page)
        except UnicodeDecodeError:  # not every name need be of the code page that most are of
            name = raw.decode(DEFAULT)
    return name if "/" in name else name.replace("\\", "/")


def is_utf8(raw: bytes) -> bool:
    """Return True if the bytes are text in UTF-8, as ASCII is."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _letters(names: list[bytes], page: str) -> float:
    """Return the share of the other than ASCII characters that are common letters of the code page's script.

    A letter with an accent stands beside one of ASCII; a letter of another script right beside one is two accents,
    or half a character, misread.
    """
    good = count = 0
    for raw in names:
        try:
            name = raw.decode(page)
        except UnicodeDecodeError:
            count += 4
            continue
        for found in re.finditer(r"[^\x00-\x7f]+", name):
            run = found[0]
            beside = name[max(0, found.start() - 1) : found.start()] + name[found.end() : found.end() + 1]
            count += len(run)
            if ("LATIN" in SCRIPTS[page]) == bool(re.search(r"[A-Za-z]", beside)):
                good += sum(_is_common(character, page) for character in run)
    return good / count


def _is_common(character: str, page: str) -> bool:
    """Return True for a letter that the script of the code page uses in names."""
    if "\uff61" <= character <= "\uff9f":  # half-width katakana: nearly always another code page, misread
        return False
    if page in ("gb18030", "big5") and unicodedata.category(character) == "Lo":
        try:  # the common characters stand in the first half of the page
            lead = character.encode("gb2312" if page == "gb18030" else "big5")[0]
        except UnicodeEncodeError:
            return False
        return (0xB0 if page == "gb18030" else 0xA4) <= lead <= (0xD7 if page == "gb18030" else 0xC6)
    name = unicodedata.name(character, "")
    return unicodedata.category(character)[0] == "L" and name.startswith(SCRIPTS[page])
