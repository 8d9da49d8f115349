"""The words of a run's page: what each figure means, and where the book says more."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[2]  # of a checkout: the book is there, and may have been built

# By the name of a figure: a chapter's file, a heading in it as the book's links spell it, and the meaning.
MEANING = {
    "loss": (
        "09_training",
        "what-the-loss-should-look-like",
        "How surprised the network is, on average, by which of the other views shows the same image. Within a few "
        "steps the curve should fall into the band between chance and the floor, and then go down slowly.",
    ),
    "top1": (
        "09_training",
        "what-the-loss-should-look-like",
        "The share of anchors whose most similar view in the batch is their positive. It rises while the network "
        "learns; it says how hard the task is, and not how good h will be.",
    ),
    "lr": (
        "08_lars_and_schedule",
        "the-learning-rate-of-a-run",
        "The size of the steps: it rises during the warm-up and then follows half a cosine down to 0.",
    ),
    "images_per_second": (
        "09_training",
        "what-a-step-costs",
        "Images per second, two views of each: the forward pass, the backward pass and the making of views included.",
    ),
    "knn": (
        "10_evaluation",
        "nearest-neighbours",
        "The accuracy of a vote among nearest neighbours during training: the number that the loss cannot tell.",
    ),
    "alignment": (
        "10_evaluation",
        "without-labels",
        "The mean squared distance of two views of an image on the unit sphere: 0 means that they coincide.",
    ),
    "uniformity": (
        "10_evaluation",
        "without-labels",
        "How evenly embeddings cover the sphere: the lower the better; near 0 all of them have collapsed to a point.",
    ),
    "rank": (
        "10_evaluation",
        "without-labels",
        "The number of directions that z effectively uses: near 1, all embeddings have collapsed to a line.",
    ),
    "spread": (
        "10_evaluation",
        "without-labels",
        "How far embeddings differ from one another: 0 in a collapse, about 1 where they fill the sphere.",
    ),
    "views": (
        "07_augmentation",
        "every-step-by-itself",
        "Images, and two random views of each, as the network sees them. It is asked to see both as one thing; if you "
        "cannot, they are too hard.",
    ),
    "map": (
        "10_evaluation",
        "nearest-neighbours",
        "Each dot is an image that training has not seen, placed by its h; close dots are similar images. PCA shows "
        "the two directions of largest variance; t-SNE keeps neighbours together, and its distances mean little.",
    ),
    "training map": (
        "10_evaluation",
        "nearest-neighbours",
        "Each dot is a training image, placed by its h; close dots are similar images. PCA shows the two directions of "
        "largest variance; t-SNE keeps neighbours together, and its distances mean little.",
    ),
    "neighbours": (
        "10_evaluation",
        "nearest-neighbours",
        "The training images whose h is most similar, with their cosine. The network was never told which images "
        "belong together; what it takes for similar, you see here.",
    ),
    "similarity": (
        "05_nt_xent",
        "watching-it",
        "Cosines of h between all pairs of images, their common mean taken off. Training should bring out squares on "
        "the diagonal: images of a class that resemble one another, and no others.",
    ),
    "unsorted similarity": (
        "05_nt_xent",
        "watching-it",
        "Cosines of h between all pairs of images, their common mean taken off. Without classes, the images lie in the "
        "order of the largest direction of h: neighbours in this order should be alike, and distant ones should not.",
    ),
    "accuracy": (
        "10_evaluation",
        "a-number-needs-neighbours",
        "What can be read off a representation: by the vote of its nearest neighbours, and by a linear classifier. "
        "Pixels, colours and the untrained encoder are the numbers to beat.",
    ),
    "confusion": (
        "10_evaluation",
        "nearest-neighbours",
        "For the images of each class (row), the share that the vote of the neighbours gives to each class (column), "
        "in percent.",
    ),
    "worst": (
        "10_evaluation",
        "nearest-neighbours",
        "The images that the vote gets wrong with the largest majority: mistakes that the network is sure of.",
    ),
    "apart": (
        "09_training",
        "when-something-is-wrong",
        "The images whose two views are least alike in z: the network takes them for different things.",
    ),
    "settings": ("hyperparameters", "", "All settings of the run; those that differ from the default stand out."),
    "environment": (
        "12_how_it_is_checked",
        "",
        "In the same environment, the same settings and seed give the same run, bit for bit.",
    ),
}


def book(folder: Path | None) -> tuple[str, str] | None:
    """Return the way from a folder to the book, and the ending of its pages; None if there is no book.

    The way is relative, so that a page tells nobody where its folder was.
    """
    for place, ending in ((ROOT / "build" / "book", ".html"), (ROOT / "docs", ".md")):
        if folder is not None and (place / f"09_training{ending}").is_file():
            try:
                way = Path(os.path.relpath(place, folder.resolve())).as_posix()
            except ValueError:  # on another drive
                return None
            return quote(way), ending
    return None


def meaning(name: str, place: tuple[str, str] | None) -> str:
    """Return the sentences on a figure, with a link to the book, as HTML."""
    chapter, heading, text = MEANING[name]
    number = chapter.partition("_")[0]
    title = f"chapter {int(number)}" if number.isdigit() else "hyper-parameters"
    if place is None:
        return f'<p class="means">{escape(text)} <span class="book">Book, {title}.</span></p>'
    way, ending = place
    address = f"{way}/{chapter}{ending}{'#' + heading if heading else ''}"
    return f'<p class="means">{escape(text)} <a class="book" href="{escape(address)}">Book, {title}</a></p>'
