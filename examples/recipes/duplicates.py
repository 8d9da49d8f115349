"""Duplicates: name the photos that are almost the same."""

import minisimclr as ms

run = ms.load_run("runs/photos")
photos = ms.load_dataset("photos", size=run.config.size)
h, _ = run.embed(photos.images)

found = ms.duplicates(h, above=0.999)  # block by block: no matrix of all pairs is built
for (i, j), similarity in zip(found.pairs, found.similarities):
    print(f"photos {i} and {j}: cosine {similarity:.4f}")
print(f"{found.found} pairs")
