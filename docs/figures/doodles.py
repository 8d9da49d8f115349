"""Write doodles.png beside this file: every class in every style, and below, what the network sees.

python docs/figures/doodles.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from minisimclr.data.doodles import CLASS_NAMES, STYLES, UNSEEN_STYLE, draw_doodles

SEED, CELL, LEFT, TOP, GAP = 19, 52, 72, 22, 26  # pixels, but for the seed
TEXT = (70, 70, 80)


def main() -> None:
    """The same sixteen drawings in a row per style; then a random sample at 32 pixels, enlarged twice."""
    width, classes = LEFT + len(CLASS_NAMES) * CELL, len(CLASS_NAMES)
    sheet = Image.new("RGB", (width, TOP + len(STYLES) * CELL + GAP + 3 * 64), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, name in enumerate(CLASS_NAMES):
        pen.text((LEFT + (column + 0.5) * CELL, TOP / 2), name, TEXT, font, anchor="mm")

    for row, style in enumerate(STYLES):
        top = TOP + row * CELL
        note = f"{style}\n(unseen)" if style == UNSEEN_STYLE else style
        pen.text((LEFT - 8, top + CELL / 2), note, TEXT, font, anchor="rm", align="right")
        images, labels, _ = draw_doodles(classes, seed=SEED, styles=(style,), size=CELL)
        for image, label in zip(images, labels):
            sheet.paste(Image.fromarray(image), (LEFT + int(label) * CELL, top))

    top = TOP + len(STYLES) * CELL + GAP
    pen.text((LEFT, top - GAP / 2), "training images, 32 by 32 pixels, enlarged twice", TEXT, font, anchor="lm")
    columns = (width - LEFT) // 64
    images, _, _ = draw_doodles(3 * columns, seed=SEED + 1)
    grid = images.reshape(3, columns, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(3 * 32, columns * 32, 3)
    sheet.paste(Image.fromarray(np.repeat(np.repeat(grid, 2, axis=0), 2, axis=1)), (LEFT, top))
    sheet.save(Path(__file__).with_name("doodles.png"), optimize=True)


if __name__ == "__main__":
    main()
