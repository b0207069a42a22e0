"""The house stands as it was planned: roots, layers, package, locks, and nothing private."""

import ast
import hashlib
import http
import http.client
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "supervisor" / "session_supervisor"
SERVER = ROOT / "http" / "session_http"
ASSETS = SERVER / "assets"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(code: str) -> str:
    """Run code at the project's root, which Python then puts first on its path."""
    return run(sys.executable, "-c", code).strip()


def committed() -> list[Path]:
    """All files that are, or would be, in the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what would be committed cannot be told")
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


# Roots


@pytest.mark.parametrize("root", ["http", "supervisor"])
def test_a_source_root_is_not_a_package(root: str) -> None:
    assert (ROOT / root).is_dir()
    assert not (ROOT / root / "__init__.py").exists()


def test_a_folder_of_tests_is_a_package_only_below_the_package_tests() -> None:
    # tests/http/__init__.py alone would make `http` of the tests' folder
    assert (ROOT / "tests" / "__init__.py").exists()


def test_http_is_the_standard_library_under_pytest() -> None:
    stdlib = Path(sysconfig.get_path("stdlib"))
    assert Path(http.__file__).is_relative_to(stdlib)
    assert Path(http.client.__file__).is_relative_to(stdlib)


def test_http_is_the_standard_library_at_the_root() -> None:
    stdlib = Path(sysconfig.get_path("stdlib"))
    assert Path(python("import http.client; print(http.client.__file__)")).is_relative_to(stdlib)


# Layers


def imported_modules(path: Path) -> set[str]:
    """The absolute names of all imports in a file, wherever in it they stand."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


SERVER_SIDE = {"session_http", "starlette", "hypercorn", "uvloop"}


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda p: p.name)
def test_the_library_never_imports_the_server(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imported_modules(path)} & SERVER_SIDE


def test_importing_the_library_loads_neither_the_server_nor_the_sdk() -> None:
    # claude_agent_sdk costs 1.1 s: only what talks to an agent pays for it
    loaded = python("import sys, session_supervisor; print(*sys.modules)").split()
    assert "session_supervisor" in loaded
    assert not (SERVER_SIDE | {"claude_agent_sdk"}) & {name.partition(".")[0] for name in loaded}


# Package


def test_the_wheel_holds_both_packages_typed_and_the_pages(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package in LIBRARY, SERVER:
        expected = {
            path.relative_to(package.parent).as_posix()
            for path in package.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        assert f"{package.name}/py.typed" in expected
        assert expected <= names
    packaged = {name.partition("/")[0] for name in names}
    assert {name for name in packaged if not name.endswith(".dist-info")} == {
        LIBRARY.name,
        SERVER.name,
    }


# Vendored pages


def test_vendored_files_are_those_that_the_list_of_assets_names() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|", (ASSETS / "ASSETS.md").read_text(), re.MULTILINE
    )
    assert len(rows) == 3
    for name, digest in rows:
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("page", ["docs.html", "redoc.html"])
def test_a_page_loads_only_files_beside_it(page: str) -> None:
    loaded = re.findall(r'(?:src|href)="([^"]+)"', (ASSETS / page).read_text())
    local = {name for name in loaded if name not in {"data:,", "openapi.json"}}
    assert local
    assert all((ASSETS / name.removeprefix("assets/")).is_file() for name in local), local


# Locks


def pinned(lock: str) -> dict[str, str]:
    text = (ROOT / lock).read_text()
    return {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)
    }


def required(*groups: str) -> list[Requirement]:
    project = PYPROJECT["project"]
    lines: list[str] = [*project["dependencies"], *project["optional-dependencies"]["http"]]
    for group in groups:
        lines += [line for line in PYPROJECT["dependency-groups"][group] if isinstance(line, str)]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize(
    ("lock", "groups"),
    [("requirements.lock", ["build"]), ("requirements-dev.lock", ["build", "dev"])],
)
def test_a_lock_satisfies_the_project(lock: str, groups: list[str]) -> None:
    pins = pinned(lock)
    for requirement in required(*groups):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in {lock}: make lock"
        assert requirement.specifier.contains(version), f"{requirement} != {version}: make lock"


def test_what_runs_is_tested_in_the_same_versions() -> None:
    assert pinned("requirements.lock").items() <= pinned("requirements-dev.lock").items()


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_every_line_of_a_lock_has_a_hash_and_none_an_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text
    assert not re.search(r"^--?[a-z]", text, re.MULTILINE), (
        "an option that names an index or a place"
    )


# Nothing private is committed. The needles are joined here, so that this file holds none of them.

REGISTRIES = [
    "index" + "-url",
    "find" + "-links",
    "files.python" + "hosted",
    "pypi." + "org",
    "registry.npm" + "js",
    "registry.yarn" + "pkg",
]
# Homes, except those of a container's own user, and where this checkout itself lies (unless that
# is as general as a container's `/src`).
PLACES = "|".join(
    [
        "/(?:home|Users)" + r"/(?!app\b|user\b)[a-z]\w*",
        "/root" + r"/\.",
        r"\.pye" + "nv/",
        *([re.escape(str(ROOT)) + r"\b"] if len(ROOT.parts) > 2 else []),
    ]
)


def committed_texts() -> dict[str, str]:
    texts: dict[str, str] = {}
    for path in committed():
        if path.parent != ASSETS or path.suffix != ".js":  # minified: 1.7 MB of other words
            try:
                texts[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # a picture
                continue
    assert "tests/test_house.py" in texts
    return texts


def test_no_committed_text_names_a_package_registry() -> None:
    found = [
        (name, needle)
        for name, text in committed_texts().items()
        for needle in REGISTRIES
        if needle in text.lower()
    ]
    assert not found


def test_no_committed_text_names_a_path_of_somebodys_machine() -> None:
    found = [
        (name, match.group())
        for name, text in committed_texts().items()
        for match in re.finditer(PLACES, text)
    ]
    assert not found


def test_committed_files_are_small() -> None:
    assert not [path for path in committed() if path.stat().st_size > 2_000_000]
