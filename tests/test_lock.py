"""What `make setup` installs: pinned by version and hash, with its licences listed."""

import re

import list_licenses


def test_every_package_is_pinned_by_version_and_hash():
    for lock in (list_licenses.LOCK, list_licenses.LOCK.with_name("requirements-uv.lock")):
        text = "".join(line for line in lock.read_text(encoding="utf-8").splitlines(True) if not line.startswith("#"))
        packages = re.split(r"\n(?=\S)", text.strip())
        unpinned = [text for text in packages if not re.match(r"[\w.-]+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text)]
        assert packages and unpinned == []


def test_the_page_of_licences_is_that_of_the_lock():
    assert list_licenses.page() == list_licenses.PAGE.read_text(encoding="utf-8"), "run make licenses"
    assert "| pycountry * | " in list_licenses.page(), "LGPL asks for more than a notice"
