"""The files of a source that are no data, each with its cause.

They are counted, said in one line, and named on request.
"""

from __future__ import annotations

from collections import Counter

from ..storage import one_line

FORMATS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif", ".hif"),
)

OTHER, HIDDEN, LINK = "of other formats", "hidden", "links"
NOWHERE = "links that lead nowhere, or round and round"
THUMBNAIL, OUTPUT, SPECIAL = "thumbnails", "outputs of minisimclr", "pipes or devices"
POINTS_OUT = "names that point out of the source"

# Folders that storage boxes, photo programs and systems make for themselves; their names in small letters.
THUMBNAIL_FOLDERS = frozenset(
    ("@eadir", "@__thumb", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "__macosx", "thumbnails")
)
SYSTEM_ENDINGS = (".lrdata", ".photoslibrary", ".aplibrary")
SHEET = "minisimclr-contact-sheet.png"  # what `minisimclr data` writes


def why_not(parts: tuple[str, ...]) -> str:
    """Return why a file is no data, as its name says; "" for an image.

    >>> why_not(("cat", "1.jpg")), why_not(("cat", "@eaDir", "1.jpg")), why_not(("notes.txt",))
    ('', 'thumbnails', 'of other formats')
    """
    for part in parts[:-1]:
        if cause := folder_is_no_data(part):
            return cause
    if not parts or parts[-1].startswith("."):
        return HIDDEN
    if parts[-1].startswith("SYNOPHOTO_THUMB"):
        return THUMBNAIL
    if parts[-1] == SHEET:
        return OUTPUT
    return "" if parts[-1].lower().endswith(FORMATS) else OTHER


def folder_is_no_data(name: str) -> str:
    """Return why nothing in a folder of this name is data; "" if it may be."""
    lower = name.lower()
    if lower in THUMBNAIL_FOLDERS or lower.endswith(SYSTEM_ENDINGS):
        return HIDDEN if lower == "__macosx" else THUMBNAIL
    return HIDDEN if name.startswith(".") and name != ".." else ""


class LeftOut:
    """The counts by cause, and the names too if `keep_names`: a million of them would take 100 MB."""

    def __init__(self, keep_names: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()  # the endings of those of other formats
        self.said: list[str] = []  # what else is to be said of the names
        self.names: dict[str, list[str]] | None = {} if keep_names else None

    def add(self, cause: str, parts: tuple[str, ...]) -> None:
        """Count a file, or a folder with all that is in it."""
        self.counts[cause] += 1
        if cause == OTHER:
            dot = parts[-1].rpartition(".")
            self.formats[dot[2].lower()[:12] if dot[1] else "without an ending"] += 1
        if self.names is not None:
            self.names.setdefault(cause, []).append("/".join(parts))

    def line(self) -> str:
        """Return all causes with their counts, "" if nothing was left out.

        >>> left = LeftOut()
        >>> for name in ("a.txt", "b.txt", "c.svg"):
        ...     left.add(OTHER, (name,))
        >>> left.line()
        'left out: 3 of other formats (txt 2, svg 1)'
        """
        if not self.counts:
            return ""
        return "left out: " + ", ".join(f"{count:,} {self._cause(cause)}" for cause, count in self.counts.most_common())

    def _cause(self, cause: str) -> str:
        if cause != OTHER:
            return f"{cause} (--follow-links follows them)" if cause == LINK else cause
        kinds = [f"{one_line(ending)} {count}" for ending, count in self.formats.most_common(4)]
        return f"{cause} ({', '.join(kinds)}{', …' if len(self.formats) > 4 else ''})"
