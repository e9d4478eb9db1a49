"""A folder served on this machine, and a module run beside it in headless Chromium, which posts back what it finds."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import psutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What makes a page isolated from other origins, without which browsers give no shared memory, and so no threads.
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
# The folder lies under a path, not at the root of the server.
PREFIX = "/some/where/"
PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
const post = (found) => fetch("_found", { method: "POST", body: JSON.stringify(found) });
try {
  const { default: run } = await import("./_module.mjs");
  post({ found: await run(await (await fetch("_given")).json()) });
} catch (error) {
  post({ error: String(error), stack: error.stack });
}
</script>"""


def browser() -> str | None:
    """The program of a Chromium; None: there is none."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


class _Handler(SimpleHTTPRequestHandler):
    """Files of a folder under `PREFIX`, and the few things that the module is run with."""

    def __init__(self, *given: Any, served: "Served", **more: Any) -> None:
        self.served = served
        super().__init__(*given, directory=str(served.folder), **more)

    def do_GET(self) -> None:
        name = self.path.removeprefix(PREFIX).split("?")[0]
        if self.path.startswith(PREFIX) and name in self.served.extra:
            kind, body = self.served.extra[name]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif self.path.startswith(PREFIX):
            self.served.asked.append(name or "index.html")
            self.path = "/" + self.path.removeprefix(PREFIX)
            super().do_GET()
        else:
            self.served.asked.append(self.path)
            self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.served.posted.put(json.loads(body))

    def end_headers(self) -> None:
        for name, value in self.served.headers.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Served:
    """A folder that is being served.

    Attributes:
        asked: paths that were asked for, below the folder.
        url: of the page that runs the module.
    """

    def __init__(self, folder: Path, extra: Mapping[str, tuple[str, bytes]], headers: Mapping[str, str]) -> None:
        self.folder, self.extra, self.headers = folder, extra, headers
        self.posted: Queue[Any] = Queue()
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, served=self))
        self.url = f"http://127.0.0.1:{self.server.server_port}{PREFIX}"


@contextmanager
def serving(
    folder: Path, extra: Mapping[str, tuple[str, bytes]] | None = None, *, isolated: bool = False
) -> Iterator[Served]:
    """Serve a folder on a free port of this machine."""
    served = Served(folder, extra or {}, ISOLATED if isolated else {})
    thread = Thread(target=served.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()
        thread.join()


def run_in_browser(
    folder: Path, module: str, given: Any, *, isolated: bool = False, seconds: float = 300
) -> tuple[Any, list[str], float]:
    """Run a module in headless Chromium, in a page beside the folder's own files.

    Args:
        module: JavaScript whose default export is called with `given`, and whose answer is awaited.
        isolated: with the headers that let a page have threads.

    Returns:
        What it gave, the paths that the browser asked for, and the seconds of processor time that the browser took.

    Raises:
        RuntimeError: there is no browser, the module failed, or nothing came in time.
    """
    extra = {
        "_run.html": ("text/html", PAGE.encode()),
        "_module.mjs": ("text/javascript", module.encode()),
        "_given": ("application/json", json.dumps(given).encode()),
    }
    with serving(folder, extra, isolated=isolated) as served, chromium(f"{served.url}_run.html") as process:
        try:
            answer = served.posted.get(timeout=seconds)
        except Empty as error:
            raise RuntimeError(f"the browser gave nothing within {seconds} seconds") from error
        if "error" in answer:
            raise RuntimeError(f"in the browser: {answer['error']}\n{answer['stack']}")
        return answer["found"], served.asked, _processor_seconds(process.pid)


def _processor_seconds(pid: int) -> float:
    """Of a process and all that it started and that still run."""
    top = psutil.Process(pid)
    found = 0.0
    for one in [top, *top.children(recursive=True)]:
        with suppress(psutil.Error):
            found += sum(one.cpu_times()[:2])
    return found


@contextmanager
def chromium(url: str, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A headless Chromium of its own that opens a page.

    Raises:
        RuntimeError: there is none.
    """
    program = browser()
    if program is None:
        raise RuntimeError("Chromium is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *options, url]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.terminate()
            process.wait()
