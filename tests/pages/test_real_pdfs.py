"""The PDFs in the source distributions of pypdf and pikepdf, some 100, made to break readers.

They are fetched from the package index that pip is set to, so these tests run where IVL_REAL_PDFS
names a folder for them, which keeps them for the next time:

IVL_REAL_PDFS=/tmp/real-pdfs pytest tests/pages/test_real_pdfs.py
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urljoin

import pytest

# Read when the module is: the fixture that isolates tests hides the variables of the user.
FOLDER = os.environ.get("IVL_REAL_PDFS")
INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")

pytestmark = pytest.mark.skipif(not FOLDER, reason="IVL_REAL_PDFS names no folder")

PASSWORDS = ["asdfzxcv", "foo", "owner", "password", "test", "openpassword"]
"""Those of pypdf's and pikepdf's tests."""

MOST_SECONDS_A_FILE = 120
MOST_BYTES = 1e9

READ = """
import json, resource, sys
from ivl.errors import IvlError, LockedError, RequestError
from ivl.pages.pdf_process import pdf_process
from ivl.pages.reader import open_pages

def peak(who):
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

file, pages = sys.argv[1], []
try:
    opened = open_pages(file)
    locked = False
except LockedError:
    locked, opened = True, open_pages(file, passwords=sys.argv[2:])
except RequestError as error:
    locked, opened = False, []
    pages.append(error.message)
for page in opened:
    try:
        width, height = page.load().size
        layer = page.text_layer()
        assert (width, height) == page.size_px()
        assert layer is None or all(0 <= edge <= 1 for line in layer.lines for edge in line.box)
        pages.append("ok")
    except RequestError as error:
        assert error.hint
        pages.append(error.message)
pdf_process.stop()
print(json.dumps({
    "pages": pages, "locked": locked,
    "bytes": max(peak(resource.RUSAGE_SELF), peak(resource.RUSAGE_CHILDREN)),
}))
"""


def newest_source(name: str) -> Path:
    """The newest source distribution of a package, in the folder."""
    assert FOLDER
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    address = f"{INDEX}/{name}/"
    with urllib.request.urlopen(
        urllib.request.Request(address, headers=accept), timeout=60
    ) as answer:
        files = json.load(answer)["files"]
    file = [file for file in files if file["filename"].endswith(".tar.gz")][-1]
    path = Path(FOLDER, file["filename"])
    if not path.is_file():
        with urllib.request.urlopen(urljoin(address, file["url"]), timeout=300) as answer:
            data = answer.read()
        assert hashlib.sha256(data).hexdigest() == file["hashes"]["sha256"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def real_pdfs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    target = tmp_path_factory.mktemp("real")
    try:
        sources = [newest_source(name) for name in ("pypdf", "pikepdf")]
    except OSError as error:
        pytest.skip(f"the package index does not answer ({error})")
    for source in sources:
        with tarfile.open(source) as archive:
            members = [one for one in archive.getmembers() if one.name.lower().endswith(".pdf")]
            archive.extractall(target, members, filter="data")
    return sorted(target.rglob("*.[pP][dD][fF]"))


def read(path: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), *PASSWORDS],
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS_A_FILE,
        check=False,
    )
    assert done.returncode == 0, f"{path}: {done.stderr}"
    assert done.stderr == "", f"{path}: {done.stderr}"
    return json.loads(done.stdout)


@pytest.mark.skipif(os.name != "posix", reason="peaks of memory are not told here")
def test_every_page_of_every_file_comes_to_an_end(real_pdfs: list[Path]) -> None:
    assert len(real_pdfs) > 90
    with ThreadPoolExecutor(2) as threads:
        results = dict(zip(real_pdfs, threads.map(read, real_pdfs), strict=True))
    failed = []
    for path, result in results.items():
        pages = result["pages"]
        assert isinstance(pages, list)
        assert pages, path
        failed += [page for page in pages if page != "ok"]
        assert isinstance(result["bytes"], int)
        assert result["bytes"] < MOST_BYTES, path
    # Seen with pypdf 7.1.1 and pikepdf 9.9.0: two files that PDFium finds no page in.
    assert len(failed) <= 5, "\n".join(failed)
    assert sum(result["locked"] is True for result in results.values()) > 5
