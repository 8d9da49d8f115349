"""Search: find the photos that look most like one."""

from pathlib import Path

import numpy as np
from PIL import Image

import minisimclr as ms

run = ms.load_run("runs/photos")
size = run.config.size
photos = ms.load_dataset("photos", size=size)
h, _ = run.embed(photos.images)  # once; np.save("h.npy", h) keeps it

query = Image.open(Path("query.png")).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
indices, similarities = run.nearest(np.asarray(query)[None], among=h, k=5)
for index, similarity in zip(indices[0], similarities[0]):
    print(f"photo {index}, {photos.class_names[photos.labels[index]]}: cosine {similarity:.3f}")
Image.fromarray(np.hstack(photos.images[indices[0]])).save("found.png")
