"""scikit-learn: any classifier on h (pip install scikit-learn)."""

from sklearn.linear_model import LogisticRegression
from sklearn.metrics import classification_report
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import minisimclr as ms

run = ms.load_run("runs/photos")
train = ms.load_dataset("photos", "train", size=run.config.size)
test = ms.load_dataset("photos", "test", size=run.config.size)

encode = FunctionTransformer(lambda images: run.embed(images)[0], validate=False)  # images (N,H,W,3) -> h (N,features)
classifier = make_pipeline(encode, StandardScaler(), LogisticRegression(max_iter=1000))
classifier.fit(train.images, train.labels)
print(classification_report(test.labels, classifier.predict(test.images), zero_division=0))
