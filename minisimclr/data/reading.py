"""The way in which a source is read, where its names leave a choice."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..values import one_of, text, truth, whole

LAYOUTS = ("auto", "splits", "classes", "flat")
MEGA = 10**6
HOME = "MINISIMCLR_DATA"  # the variable of the environment that names the folder of data sets


@dataclass(frozen=True)
class Reading:
    """The choices; the defaults take what the names say, and refuse what they leave open.

    split         the split to train on
    test_split    the split to test on; "" takes "test", or "val" where there is no labelled "test"
    layout        the meaning of the folders at the top: splits, classes, or flat (none); auto finds out
    labels        folders, names (`cat.12.jpg` is a cat), or the name of a CSV file with a label for each file
    follow_links  True follows links that lead out of the folder, and links to folders
    megapixels    the largest image that is decoded, in millions of pixels; of a JPEG, after reduced decoding

    >>> Reading.from_text("layout=classes,split=val")
    Reading(split='val', test_split='', layout='classes', labels='folders', follow_links=False, megapixels=64)

    Raises: ValueError for a choice that does not exist.
    """

    split: str = "train"
    test_split: str = ""
    layout: str = "auto"
    labels: str = "folders"
    follow_links: bool = False
    megapixels: int = 64

    def __post_init__(self) -> None:
        for name in ("split", "test_split", "labels"):
            text(name, getattr(self, name))
        one_of("layout", self.layout, LAYOUTS)
        truth("follow_links", self.follow_links)
        whole("megapixels", self.megapixels, 1, 4000)
        for name in ("split", "labels"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")

    @classmethod
    def from_text(cls, words: str) -> Reading:
        """Return the choices that a text such as "layout=flat,follow_links=yes" makes."""
        kinds = {item.name: type(item.default) for item in dataclasses.fields(cls)}
        given: dict[str, Any] = {}
        for pair in filter(None, words.split(",")):
            name, equals, value = pair.partition("=")
            if name not in kinds or not equals:
                raise ValueError(f"reading must be pairs such as layout=flat, of {', '.join(kinds)}; not {pair!r}")
            given[name] = _value(name, value, kinds[name])
        return cls(**given)

    def as_text(self) -> str:
        """Return the choices that are no defaults, as `from_text` takes them."""
        chosen = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        plain = {item.name: item.default for item in dataclasses.fields(self)}
        for name in ("split", "test_split", "labels"):
            if "," in chosen[name]:
                raise ValueError(f"{name} must not hold a comma: {chosen[name]!r}")
        words = {True: "yes", False: "no"}
        return ",".join(
            f"{name}={words[value] if isinstance(value, bool) else value}"
            for name, value in chosen.items()
            if value != plain[name]
        )


def _value(name: str, value: str, kind: type) -> object:
    if kind is bool:
        return one_of(name, value, ("yes", "no")) == "yes"
    if kind is int:
        if not value.isdecimal() or len(value) > 9:
            raise ValueError(f"{name} must be a whole number, not {value!r}")
        return int(value)
    return value
