"""A notebook: what its cells show, and the loss while it falls (pip install notebook)."""

# %% A data set shows its images
import minisimclr as ms

data = ms.load_dataset("doodles", limit=512)
data

# %% A run shows its loss
losses: list[float] = []


def watch(metrics: dict) -> None:
    """Note the loss of each step; draw whatever you like here."""
    losses.append(metrics["loss"])


run = ms.pretrain(ms.Config(batch=64, epochs=5, temperature=0.2, min_area=0.3), data.images, progress=watch)
run

# %% A model shows its layers when it is opened
run.model
