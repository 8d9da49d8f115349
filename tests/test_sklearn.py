"""The transformer by the rules of scikit-learn, without scikit-learn; test_peers_evaluation.py has it in a pipeline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minisimclr as ms
from minisimclr.training.config import build_model
from minisimclr.training.run import Run

pytestmark = pytest.mark.host

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), np.uint8)
CONFIG = ms.Config(size=16, batch=4, epochs=1)


@pytest.fixture(scope="module")
def run() -> Run:
    return Run(CONFIG, build_model(CONFIG))


def test_it_gives_h_or_z_of_images_and_of_their_pixels_in_rows(run):
    h, z = ms.embed(run.model, IMAGES)
    assert np.array_equal(ms.SimCLRTransformer(run).fit_transform(IMAGES), h)
    assert np.array_equal(ms.SimCLRTransformer(run).transform(IMAGES.reshape(6, -1)), h)
    assert np.array_equal(ms.SimCLRTransformer(run, part="z").fit(IMAGES, np.arange(6)).transform(IMAGES), z)


def test_the_folder_of_a_run_will_do(tmp_path: Path):
    run = ms.pretrain(CONFIG, IMAGES, folder=tmp_path)
    for folder in (tmp_path, str(tmp_path)):
        np.testing.assert_allclose(ms.SimCLRTransformer(folder).transform(IMAGES), ms.embed(run.model, IMAGES)[0],
                                   rtol=1e-5, atol=1e-6)  # fmt: skip


def test_parameters_come_back_as_they_were_given(run):
    step = ms.SimCLRTransformer("runs/photos", part="z")
    assert step.get_params() == {"run": "runs/photos", "part": "z"}
    assert repr(step) == "SimCLRTransformer('runs/photos', part='z')"
    assert step.set_params(run=run, part="h") is step
    assert step.get_params(deep=False)["run"] is run
    with pytest.raises(ValueError, match="a parameter must be one of run, part"):
        step.set_params(layer=3)


def test_what_cannot_be_images_is_refused(run):
    with pytest.raises(ValueError, match=r"rows of 100 numbers are no images of 16×16 pixels"):
        ms.SimCLRTransformer(run).transform(np.zeros((2, 100), np.uint8))
    with pytest.raises(TypeError, match="uint8"):
        ms.SimCLRTransformer(run).transform(np.zeros((2, 16, 16, 3)))
    with pytest.raises(ValueError, match="part must be one of h, z"):
        ms.SimCLRTransformer(run, part="loss").fit(IMAGES)


def test_it_does_not_need_scikit_learn():
    code = "import minisimclr as ms, sys; ms.SimCLRTransformer('x').fit(None); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
