"""A real Chromium without a window, driven through a pair of pipes by its DevTools protocol; nothing else is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    *"""--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-extensions
    --disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe --force-color-profile=srgb
    """.split(),  # noqa: SIM905
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no page reaches anybody
]
PATIENCE = 120.0  # seconds for an answer, on a busy machine


def find() -> str | None:
    """The path of the browser, if there is one."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser with one page. What its console complains of is in `complaints`, what it loads in `requests`."""

    def __init__(self) -> None:
        path = find()
        assert path is not None
        self.folder = tempfile.mkdtemp()
        read, to = os.pipe()
        back, write = os.pipe()

        def connect() -> None:  # in the child: the protocol's pipes are descriptors 3 and 4
            a, b = os.dup(read), os.dup(write)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self.process = subprocess.Popen(
            [path, *FLAGS, f"--user-data-dir={self.folder}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=connect,
            close_fds=False,
        )
        os.close(read)
        os.close(write)
        self.to, self.back = to, back
        self.number, self.rest = 0, b""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        self.session: str | None = None
        page = next(t for t in self.ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.session = None
            self.ask("Browser.close")
            self.process.wait(20)
        except (OSError, EOFError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait(20)
        finally:
            os.close(self.to)
            os.close(self.back)
            shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self.to, content) :]
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.back, 1 << 20)
            if not part:
                raise EOFError("the browser is gone")
            self.rest += part
        one, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(one))

    def _note(self, event: dict[str, Any]) -> None:
        kind, what = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.complaints.append(str(what["exceptionDetails"].get("exception", what["exceptionDetails"])))
        elif kind == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(what["args"]))
        elif kind == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.complaints.append(what["entry"]["text"])
        elif kind == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif kind == "Page.loadEventFired":
            self.loaded = True

    # ── What a reader does ──

    def open(self, path: Path) -> None:
        """Open a file, and wait until it is loaded."""
        self.loaded = False
        self.ask("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + PATIENCE
        while not self.loaded:
            assert time.monotonic() < end, "the page does not load"
            self._note(self._next())

    def run(self, script: str) -> Any:
        """Evaluate JavaScript and return its value."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screen(
        self, width: int, height: int, *, dark: bool = False, media: str = "screen", phone: bool = False
    ) -> None:
        """Set the size of the window, the scheme and the medium."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def move(self, x: float, y: float, click: bool = False) -> None:
        """Move the pointer to a point of the window, and perhaps click there."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key: "ArrowRight", "Enter", "Tab" …"""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Tab": 9, "Escape": 27}
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def picture(self, path: Path) -> None:
        """Take a picture of the whole page."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """The page as it is printed, PDF."""
        return base64.b64decode(self.ask("Page.printToPDF", printBackground=False)["data"])
