"""What README.md, CONTRIBUTING.md and docs/ say: command lines parse, settings, files and links exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from efafnet.pipelines import cli
from efafnet.pipelines.commands import BY_NAME, COMMANDS
from efafnet.platform.configuration import describe
from tests.check_wheel import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^|\s)(?:efafnet|(?:\.venv/bin/)?python -m efafnet\.pipelines)\s+(?=[a-z])")


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def command_lines(text: str) -> Iterator[tuple[str, bool]]:
    """Commands of a page: lines of its code blocks, whole; spans of its sentences, which may leave out arguments."""
    for block in re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        joined = re.sub(r"\\\n\s*", " ", block)
        joined = re.sub(r"'[^']*'", lambda quoted: re.sub(r"\s+", " ", quoted[0]), joined)
        for line in joined.splitlines():
            if found := COMMAND.search(line):
                yield line[found.end() :], True
    for span in re.findall(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if found := COMMAND.match(span):
            yield span[found.end() :], False


def words_of(line: str) -> list[str]:
    """The words before a comment, a pipe or a second command; of `a|b` the first, and no sign for "and so on"."""
    words: list[str] = []
    for word in shlex.split(line, comments=True):
        if word in ("|", "&", "&&", ">", ";"):
            break
        if word not in ("…", "..."):
            words.append(re.sub(r"(=\w+)\|\S+", r"\1", word))
    return words


def lines() -> list[tuple[str, str, bool]]:
    return [(named(page), *found) for page in PAGES for found in command_lines(page.read_text())]


@pytest.mark.parametrize(("page", "line", "whole"), lines())
def test_a_command_line_parses(page: str, line: str, whole: bool, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of(line)
    assert words[0] in BY_NAME, f"{page}: there is no command {words[0]!r}"
    if "--help" not in words:
        words = [*filled(words), "--print-config"] if whole or len(words) > 1 else [*words, "--help"]
    code = cli.main(words)
    assert code == 0, f"{page}: efafnet {line}\n{capsys.readouterr().err}"


def filled(words: list[str]) -> list[str]:
    """A command with a stand-in for each argument that is left out, so that its settings can be resolved."""
    command = BY_NAME[words[0]]
    plain = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
    given = {word.partition("=")[0] for word in words[1:]}
    plain += [word for word in words[1:2] if re.search(r"=\w+\(", word)]  # ranges stand for the space
    left = [name for name in command.positional[len(plain) :] if name not in given]
    stores = ("data.train", "data.val") if command.name in ("train", "tune") else ()
    required = [f"{key}=store" for key in stores if key not in given]
    at = 1 + command.positional.index("preset") if "preset" in command.positional else 0
    if at and words[at : at + 1] and (words[at] == "PRESET" or words[at].endswith(".yaml")):
        words = [*words[:at], "nano_test", *words[at + 1 :]]
    return [*words, *("nano_test" if name == "preset" else f"{name}={name}" for name in left), *required]


@cache
def known_keys() -> frozenset[str]:
    keys: set[str] = set()
    for command in COMMANDS:
        keys.update(row.key for row in describe(command.settings()))
    return frozenset(keys)


GROUPS = (
    "augmentation", "checkpoint", "cluster", "compute", "data", "detector", "encoding", "envelope", "heatmap",
    "imagenet", "loss", "network", "optimizer", "profile", "reader", "schedule", "search", "test", "tracking",
    "validation", "worker", "workers",
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES[:2] + PAGES[3:], ids=named)
def test_a_setting_that_is_named_exists(page: Path) -> None:
    """Not of the changelog, which names settings that were."""
    spans = re.findall(rf"`((?:{'|'.join(GROUPS)})\.[a-z_.]+)(?:=[^`]*)?`", page.read_text())
    unknown = sorted({key for key in spans if key not in known_keys() and not is_module(key)})
    assert not unknown, f"{named(page)} names settings that do not exist: {unknown}"


def is_module(name: str) -> bool:
    return name.endswith((".py", ".yaml", ".json", ".jsonl", ".md", ".parquet", ".pt"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, heading = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{named(page)}: {target}"
        assert not heading or heading in anchors(aim), f"{named(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_file_that_is_named_exists(page: Path) -> None:
    for path in re.findall(
        r"`((?:models|platform|pipelines|tune_spaces|tests|benchmarks|docs)/[\w./]+)`", page.read_text()
    ):
        assert (ROOT / path).exists(), f"{named(page)}: {path}"


@pytest.mark.parametrize("page", PAGES[:2] + PAGES[3:], ids=named)
def test_a_target_of_make_that_is_named_exists(page: Path) -> None:
    """Lines of code blocks, and spans; not of the changelog, which names what was."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "release"} <= targets
    unknown = set(re.findall(r"(?:^ *|`)make ([a-z-]+)", page.read_text(), re.MULTILINE)) - targets
    assert not unknown, f"{named(page)} names targets that do not exist: {sorted(unknown)}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_benchmark_that_is_named_exists(page: Path) -> None:
    for module in re.findall(r"python -m (benchmarks\.\w+)", page.read_text()):
        assert importlib.util.find_spec(module) is not None, f"{named(page)}: {module}"


def test_every_command_stands_on_some_page() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    missing = [command.name for command in COMMANDS if f"efafnet {command.name}" not in text]
    assert missing == [], f"no page shows {missing}"
