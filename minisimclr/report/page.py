"""The page of a run: one HTML file that needs nothing else, neither files nor a network.

Its curves are SVG, its images are cells of a few sheets, and a script answers the pointer and the keyboard. Names and
numbers come from files that are untrusted: each is escaped, and the page's own policy lets the browser run this one
script and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import numpy as np

from ..storage import one_line
from .findings import Findings
from .images import atlas, neighbours, similarity, views, worst
from .markup import Material, filled
from .numbers import accuracy, confusion, headline, name_of, settings, tiles, training

HERE = Path(__file__).resolve().parent
CRISP = 64  # side of an image in pixels, up to which its pixels are shown as squares


def as_html(findings: Findings) -> str:
    """Return the page as HTML, less than 3 MB of it."""
    material = Material.of(findings)
    sections = [training, views, atlas, neighbours, similarity]
    sections += [accuracy, confusion] if findings.labelled else []
    content = "\n".join(section(material) for section in [*sections, worst, settings])
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return filled(
        (HERE / "page.html").read_text(encoding="utf-8"),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=name_of(findings),
        style=(HERE / "page.css").read_text(encoding="utf-8") + material.rules(),
        kind="crisp" if findings.run.config.size <= CRISP else "",
        headline=headline(findings),
        tiles=tiles(findings),
        sections=content,
        data=_data(material),
        script=script,
    )


def _data(material: Material) -> str:
    """Return what the script needs, as JSON in which no "<" stands: nothing in it can end the element."""
    findings = material.findings
    labels = findings.test.labels[findings.shown]
    known = findings.labelled
    data = {
        "names": [one_line(name, most=40) for name in findings.test.class_names] if known else ["image"],
        "labels": labels.tolist(),
        "votes": findings.voted[findings.shown].tolist() if known else None,
        "near": material.cells.tolist(),
        "nearLabels": findings.train.labels[findings.nearest].tolist() if known else None,
        "cosines": np.round(findings.cosines.astype(float), 2).tolist(),
        "maps": {name: np.round(places, 4).tolist() for name, places in findings.maps.items()},
        "columns": {name: s.columns for name, s in material.sheets.items()},
    }
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)
