"""The setting `method`: one form for every operation, or one for each kind of operation.

"plain" and "auto" hold for all kinds; "conv=winograd,ntxent=exact" names the forms of two. What each kind offers, and
what it runs by default, is handed in by those who know it (nn.py, training/config.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

# Before version 0.2 one setting, `conv`, chose the form of the convolutions alone.
OLD_CONV = {"direct": "conv=slabs", "winograd": "conv=winograd", "auto": "conv=auto"}


def pairs_of(method: str, kinds: Collection[str]) -> dict[str, str]:
    """Return the form that a method names for each of some kinds of operation.

    Raises: ValueError for a kind that does not exist, and for one that is named twice.
    """
    pairs = [pair.partition("=") for pair in method.split(",")]  # (kind, "=", form) each
    for named, sign, _ in pairs:
        if named not in kinds or not sign:  # a misspelled kind must not mean "the default"
            raise ValueError(
                f"method must be plain, auto, or pairs kind=form with the kinds {', '.join(kinds)}; not {method!r}"
            )
    forms = {named: form for named, _, form in pairs}
    if len(forms) < len(pairs):  # of two entries for one kind the last would win, and nobody would notice
        raise ValueError(f"method must be pairs that name each of {', '.join(kinds)} once; not {method!r}")
    return forms


def check_method(method: str, forms: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a method that names a form which its kind lacks: the layers would, but only after the data is read."""
    if method in ("plain", "auto"):
        return
    for kind, form in pairs_of(method, forms).items():
        if form not in forms[kind]:
            raise ValueError(f"method must be one of {', '.join(forms[kind])} for {kind}; not {form!r}")


def method_of_conv(conv: Any) -> str:
    """Return the method that the setting `conv` of an older version means."""
    if conv not in OLD_CONV:  # --conv, too, accepts the old names and no others
        raise ValueError(f"conv must be one of {', '.join(OLD_CONV)}; not {conv!r}")
    return OLD_CONV[conv]
