"""t-SNE: a map of photos on which those that look alike lie close together (pip install scikit-learn)."""

import numpy as np
from PIL import Image
from sklearn.manifold import TSNE

import minisimclr as ms

SIDE = 1200  # of the map, pixels

run = ms.load_run("runs/photos")
photos = ms.load_dataset("photos", size=run.config.size, limit=2000)
h, _ = run.embed(photos.images)
place = TSNE(perplexity=min(30, len(h) / 4), random_state=0, metric="cosine", init="random").fit_transform(h)
place = (place - place.min(axis=0)) / np.ptp(place, axis=0)  # (N,2) in [0,1]

canvas = Image.new("RGB", (SIDE, SIDE), "white")
for image, (x, y) in zip(photos.images, place):
    thumbnail = Image.fromarray(image)
    canvas.paste(thumbnail, (int(x * (SIDE - thumbnail.width)), int(y * (SIDE - thumbnail.height))))
canvas.save("map.png")
