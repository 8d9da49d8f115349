"""The sections of a run's page with images: views, the map, neighbours, mistakes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..data import squares_of
from ..storage import one_line
from . import svg
from .markup import Material
from .pictures import can_write, diverging, rows_of_views
from .thumbs import as_png, data_uri

VIEWS_BYTES, WORST_BYTES = 90_000, 50_000  # of the sheets of these sections: part of the page's 3 MB
VIEWS, WORST, ROWS = 12, 12, 16  # numbers of images, and of rows of neighbours


def views(material: Material) -> str:
    """Return images, and below each its two views."""
    rows = rows_of_views(material.findings.run, squares_of(material.findings.train), VIEWS)  # (3,12,S,S,3)
    count = rows.shape[1]
    material.add_sheet("views", rows.reshape(-1, *rows.shape[2:]), VIEWS_BYTES)
    names = ("image", "view a", "view b")
    columns = [
        "".join(material.thumb("views", r * count + k, name) for r, name in enumerate(names)) for k in range(count)
    ]
    content = f'<div class="views">{"".join(f"<div>{column}</div>" for column in columns)}</div>'
    return material.section("views", "Images and their views", content, "views")


def atlas(material: Material) -> str:
    """Return the map of images, and the panel beside it in which the script shows the neighbours of one."""
    findings = material.findings
    labels = findings.test.labels[findings.shown]
    first = next(iter(findings.maps))
    tools = "".join(
        f'<button type="button" data-map="{name}" aria-pressed="{"true" if name == first else "false"}">{name}</button>'
        for name in findings.maps
    )
    numbered = not all(map(can_write, findings.test.class_names))  # as the pictures are then
    legend = "".join(
        f'<button type="button" class="key" data-class="{label}" style="--hue:{svg.hue(int(label))}" '
        f'aria-pressed="false">{f"{label + 1} · " if numbered else ""}{material.class_name(label)}</button>'
        for label in np.unique(labels)
    )
    title = f"A map of {len(labels)} {'test' if findings.labelled else 'training'} images"
    kind = "" if findings.labelled else ' class="one"'
    content = (
        f'<div class="tools">{tools}</div><div class="atlas"><div><div id="map"{kind} tabindex="0" role="application" '
        f'aria-label="{title}. Arrow keys go from image to image, Enter shows neighbours.">'
        f"{svg.dots(findings.maps[first], labels.tolist())}"
        '<div id="tip" role="status" hidden><i class="t sheet-dots"></i><span></span></div></div></div>'
        '<div id="panel"><p class="hint">Point at a dot to see its image. Click it to see its nearest training images. '
        'On the keyboard: arrows and Enter.</p><div class="found" aria-live="polite"></div></div></div>'
        + (f'<div class="legend">{legend}</div>' if findings.labelled else "")
    )
    return material.section("atlas", title, content, "map" if findings.labelled else "training map")


def neighbours(material: Material) -> str:
    """Return rows of neighbours, one for each class; a click on the query shows another image of the class."""
    findings = material.findings
    labels = findings.test.labels[findings.shown]
    queries = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
    if not findings.labelled:
        queries = np.linspace(0, len(labels) - 1, min(ROWS, len(labels))).astype(int).tolist()
    rows = []
    for query in queries[:ROWS]:
        name = material.class_name(labels[query])
        title = name if findings.labelled else ""  # all have one name, which says nothing
        found = "".join(_near(material, query, k) for k in range(material.cells.shape[1]))
        rows.append(
            f'<div class="row" data-query="{query}"><span class="name">{title}</span>'
            f'<button type="button" class="query" aria-label="{name}: show another image">'
            f'{material.thumb("dots", query, name)}</button><div class="found">{found}</div></div>'
        )
    some = f" {ROWS} of {len(queries)} classes are shown." if findings.labelled and len(queries) > ROWS else ""
    framed = f'<p class="small">Neighbours of another class are framed.{some}</p>' if findings.labelled else ""
    content = f'<p class="hint">Click an image on the left to see another one.</p>{framed}{"".join(rows)}'
    title = f"The nearest of {len(findings.train):,} training images"
    return material.section("neighbours", title, content, "neighbours")


def _near(material: Material, query: int, k: int) -> str:
    """Return neighbour k of an image on the map: its thumbnail and its cosine."""
    findings = material.findings
    label = findings.train.labels[findings.nearest[query, k]]
    wrong = findings.labelled and label != findings.test.labels[findings.shown[query]]
    name = material.class_name(label)
    kind, said = ("wrong", f"{name}, another class") if wrong else ("", name)
    thumb = material.thumb("near", int(material.cells[query, k]), said, kind)
    return f'<span class="near" title="{name}">{thumb}<small>{findings.cosines[query, k]:.2f}</small></span>'


def similarity(material: Material) -> str:
    """Return the matrices of cosines before and after training, or with random weights and after it."""
    findings, figures, names = material.findings, [], []
    labels = findings.test.labels[findings.rows]
    for label in np.unique(labels) if findings.labelled else ():
        middle = float(np.flatnonzero(labels == label).mean() + 0.5) / len(labels)
        names.append((middle, one_line(findings.test.class_names[label], most=12)))
    for title, cosines in findings.similarity.items():
        address = data_uri(as_png(Image.fromarray(diverging(cosines)).quantize(64)))
        drawn = svg.matrix(address, f"{len(cosines)} by {len(cosines)} cosines {title}", names)
        figures.append(f"<figure><h3>{title.capitalize()}</h3>{drawn}</figure>")
    order = "sorted by class" if findings.labelled else "sorted along the first principal component of h"
    if findings.labelled and (classes := len(np.unique(findings.test.labels))) > len(names):
        order = f"of {len(names)} of the {classes} classes, {order}"
    scale = (
        f'<p class="small scale">−1 <span class="colours"></span> 1 &ensp; {len(findings.rows)} images, {order}; '
        "the same in both</p>"
    )
    content = f'<div class="pair">{"".join(figures)}</div>{scale}'
    words = "similarity" if findings.labelled else "unsorted similarity"
    before = "before" if "before training" in findings.similarity else "with random weights"
    return material.section("similarity", f"Similarities {before} and after training", content, words)


def worst(material: Material) -> str:
    """Return the images that are most surely mistaken; without classes, those whose views are least alike."""
    findings, labels = material.findings, material.findings.test.labels
    if findings.labelled:
        wrong = np.flatnonzero(findings.voted != labels)
        found = wrong[np.argsort(-findings.share[wrong], kind="stable")][:WORST]
    else:
        found = np.argsort(findings.share, kind="stable")[:WORST]
    name, title = ("worst", "Worst images") if findings.labelled else ("apart", "Views that are least alike")
    if not len(found):
        return material.section("worst", title, "<p>There is none: the vote is right about all images.</p>", name)
    material.add_sheet("worst", squares_of(findings.test)[found], WORST_BYTES)
    cards = []
    for k, image in enumerate(found):
        said, share = material.class_name(labels[image]), findings.share[image]
        number = f"cosine {share:.2f}"
        if findings.labelled:
            said = f"{said}, taken for {material.class_name(findings.voted[image])}"
            number = f"{100 * share:.0f} % of the votes"
        cards.append(
            f'<div class="card">{material.thumb("worst", k, said)}<span>{said}<small>{number}</small></span></div>'
        )
    return material.section("worst", title, f'<div class="cards">{"".join(cards)}</div>', name)
