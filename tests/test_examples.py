"""The examples run, and the README shows the lines that were run."""

from __future__ import annotations

import ast
import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minisimclr as ms

pytestmark = pytest.mark.host

ROOT = Path(__file__).parent.parent
SIMCLR = ROOT / "examples" / "simclr.py"


def without_docstring(path: Path) -> str:
    """The code of a file below its docstring."""
    source = path.read_text()
    docstring = ast.parse(source).body[0]
    assert isinstance(docstring, ast.Expr)
    return "\n".join(source.splitlines()[docstring.end_lineno :]).strip()


def test_the_readme_shows_the_lines_of_the_example() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert block.strip() == without_docstring(SIMCLR)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that examples/simclr.py leaves behind after 10 steps on 128 doodles."""
    source, line = SIMCLR.read_text(), "steps, batch = 1000, 128\n"
    assert source.count(line) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("example"))
        np.save("images.npy", ms.load_dataset("doodles", limit=128).images)
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(source.replace(line, "steps, batch = 10, 32\n"), str(SIMCLR), "exec"), names)
    return names


def test_the_example_lowers_the_loss_on_new_views(example: dict[str, Any]) -> None:
    a, b = ms.two_views(example["images"][:64], np.random.default_rng(1))
    untrained = ms.resnet_small(rng=np.random.default_rng(0))
    head = ms.ProjectionHead(untrained.features, untrained.features, 128, rng=np.random.default_rng(0))
    before = ms.SimCLR(untrained, head).loss(a, b, temperature=0.2)[0].item()
    after = example["model"].loss(a, b, temperature=0.2)[0].item()
    assert after < before - 0.1


def test_the_example_ends_with_a_representation_of_every_image(example: dict[str, Any]) -> None:
    h, z = example["h"], example["z"]
    assert h.shape == (128, example["encoder"].features)
    assert z.shape == (128, 128)
    assert np.isfinite(h).all()
    assert np.isfinite(z).all()


@pytest.mark.filterwarnings("ignore")  # of protobuf's
def test_the_metrics_of_a_run_become_curves_of_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: its recipe is not tried")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    lines = [{"step": k, "steps": 3, "loss": 5.5 - k, "chance": 6.25, "top1": k / 4} for k in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runpy.run_path(str(ROOT / "examples" / "to_tensorboard.py"))["main"](str(tmp_path))
    (written,) = tmp_path.glob("events.out.tfevents.*")
    events = [event for event in EventFileLoader(str(written)).Load() if event.summary.value]
    assert [event.step for event in events] == [0, 1, 2]
    assert {value.tag for value in events[0].summary.value} == {"loss", "chance", "top1"}


def test_the_recipe_for_tensorboard_is_short_and_mentioned_where_commands_are_described() -> None:
    assert len((ROOT / "examples" / "to_tensorboard.py").read_text().splitlines()) <= 30
    assert "../examples/to_tensorboard.py" in (ROOT / "docs" / "use.md").read_text()
