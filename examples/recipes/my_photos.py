"""My photos: train on a folder without labels, and keep the run."""

import minisimclr as ms

config = ms.Config(data="photos", size=32, batch=64, epochs=100, min_area=0.3, temperature=0.2)
photos = ms.load_dataset(config.data, size=config.size)  # PNG, JPEG …; folders inside are classes, if there are any
run = ms.pretrain(config, photos.images, folder="runs/photos")  # after Ctrl-C: the same with resume=True

last = run.history[-1]
print(run)
print(f"loss {last['loss']:.2f}, chance {last['chance']:.2f}; {last['top1']:.0%} of the views find their other view")
