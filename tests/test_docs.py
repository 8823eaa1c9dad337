"""What the documents show works, and what they ship is what they say."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import platformdirs
import pytest

from latent_memory import __version__
from latent_memory.importers import jsonl

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# What the pages take for granted that their reader has; other commands are given files of the reader's own.
FILES = {
    "conversations.jsonl": (ROOT / "examples" / "conversations.jsonl").read_text(encoding="utf-8"),
    "memories.json": '[{"conversation_id": "1", "title": "Spirals", "summary": "A drawing of recursive processes."}]',
    "notes.yaml": "- conversation_id: milk\n  title: Yoghurt\n  summary: The milk must not be too warm.\n",
    "conversations.json": json.dumps(
        [
            {
                "id": "c1",
                "mapping": {
                    "r": {"parent": None},
                    "a": {
                        "parent": "r",
                        "message": {
                            "id": "a",
                            "author": {"role": "user"},
                            "content": {"content_type": "text", "parts": ["Hello there"]},
                        },
                    },
                },
            }
        ]
    ),
}
SHELL = ("README.md", "formats.md", "keys.md", "summaries.md")


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs_from_its_top(
    page: Path, cli: Callable[..., CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda *_, **__: str(tmp_path / "user"))
    for name, content in FILES.items():
        Path(name).write_text(content, encoding="utf-8")
    with zipfile.ZipFile("chatgpt-export.zip", "w") as archive:
        archive.write("conversations.json")
    database = sqlite3.connect("notes.db")
    database.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, body TEXT)")
    database.execute("INSERT INTO notes VALUES (7, 'They like green tea.')")
    database.commit()
    database.close()
    for language, block in blocks(page):
        if language == "python":
            exec(compile(block, str(page), "exec"), {"__name__": "__main__"})
        elif not language and page.name in SHELL:
            for line in block.splitlines():
                # A server goes on until it is stopped; tests/server starts it.
                if line.startswith("latent-memory ") and not line.startswith("latent-memory serve"):
                    result = cli(*shlex.split(line)[1:])
                    assert result.returncode == 0, (line, result.stderr)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_every_command_and_option_is_documented() -> None:
    told = subprocess.run(
        [Path(sys.executable).with_name("latent-memory"), "--help"], check=True, capture_output=True, text=True
    ).stdout
    commands = set(re.findall(r"^  ([a-z]+) ", told.partition("Commands:")[2], re.MULTILINE))
    assert commands == {
        *("add", "recall", "context", "show", "list", "scopes", "stats", "forget", "reembed", "tune", "convert"),
        *("demo", "chat", "prepare", "finetune", "bridge", "export", "keys", "mcp", "check", "serve"),
    }
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in commands:
        assert f"latent-memory {command}" in page


def test_the_manifest_has_every_key() -> None:
    manifest = json.loads((ROOT / "symbiotic_manifest.json").read_text(encoding="utf-8"))
    assert {key: set(value) if isinstance(value, dict) else None for key, value in manifest.items()} == {
        "manifestVersion": None,
        "protocolCompliance": {
            "protocolVersionAdheredTo",
            "adheresToAllPrinciples",
            "propagatesCorrectSignalMeaning",
            "commitmentStatement",
        },
        "implementationDetails": {
            "identifier",
            "version",
            "purpose",
            "description",
            "main_maintainer",
            "cloner_maintainer",
            "github_mainframe",
            "contact",
            "forkedFrom",
            "creationDate",
        },
        "ethicalConsiderations": {"nonHarmStatement", "alignmentApproach"},
        "bindingDeclaration": None,
    }
    assert manifest["manifestVersion"] == "2.1.2"
    assert manifest["implementationDetails"]["purpose"] == "research"
    assert manifest["implementationDetails"]["version"] == __version__


def test_the_examples_are_varied() -> None:
    conversations = list(jsonl.read(ROOT / "examples" / "conversations.jsonl"))
    assert len(conversations) >= 60
    assert len({c.conversation_id for c in conversations}) == len(conversations)
    assert all(4 <= len(c.turns) <= 20 for c in conversations)
    times = sorted(c.timestamp for c in conversations if c.timestamp)
    assert (times[-1] - times[0]).days > 690
    assert len(Counter(c.type for c in conversations)) >= 8
    (loops,) = (c for c in conversations if c.conversation_id == "0328711")
    assert loops.title == "Visualization of Algorithmic Loops"
    assert loops.type == "image generation"
    assert loops.timestamp is not None
    assert (loops.timestamp.month, loops.timestamp.day, loops.timestamp.hour) == (3, 28, 11)


def test_an_installed_copy_carries_manifest_examples_and_vocabulary(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "latent_memory/symbiotic_manifest.json",
        "latent_memory/examples/conversations.jsonl",
        "latent_memory/embedders/minilm/vocab.txt",
        "latent_memory/embedders/minilm/NOTICE",
        "latent_memory/py.typed",
    } <= names
