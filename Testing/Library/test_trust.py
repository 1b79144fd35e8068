"""Trust: remembered by checksum for one user, forgotten when a file changes, never taken for granted."""

import sys
from pathlib import Path

import pytest

from KnowledgeTransferLib.records import trust
from KnowledgeTransferLib.records.run_directory import read_json


@pytest.fixture(autouse=True)
def _an_empty_list(tmp_path, monkeypatch):
    monkeypatch.setenv("KT_CONFIG", str(tmp_path / "config"))


def test_nothing_is_trusted_at_first_and_an_empty_checksum_never():
    assert not trust.is_trusted("abc")
    trust.remember(Path("x"), "")
    assert not trust.is_trusted("")


def test_what_was_trusted_is_remembered_with_its_path_and_date():
    trust.remember(Path("model"), "abc")
    trust.remember(Path("other"), "def")
    assert trust.is_trusted("abc") and trust.is_trusted("def") and not trust.is_trusted("abcd")
    entry = read_json(trust.trust_file())["trusted"]["abc"]
    assert entry["path"] == "model" and entry["trusted_on"].startswith("20")


def test_what_is_not_trusted_is_refused_with_the_reason_and_what_to_do():
    with pytest.raises(PermissionError, match="model: it unpickles. .* give --trust once"):
        trust.require(Path("model"), "abc", "it unpickles")
    trust.require(Path("model"), "abc", "")
    trust.remember(Path("model"), "abc")
    trust.require(Path("model"), "abc", "it unpickles")


def test_a_damaged_list_trusts_nothing_and_says_where_it_is():
    trust.remember(Path("model"), "abc")
    for content in ("{", "[]", '{"trusted": ["abc"]}', '{"format_version": 2, "trusted": {"abc": {}}}'):
        trust.trust_file().write_text(content)
        with pytest.raises(ValueError, match="damaged"):
            trust.is_trusted("abc")


def test_the_checksum_of_files_tells_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    files = [tmp_path / "a", tmp_path / "b"]
    before = trust.sha256_of_files(files, tmp_path)
    assert trust.sha256_of_files(files[::-1], tmp_path) == before
    (tmp_path / "b").rename(tmp_path / "c")
    assert trust.sha256_of_files([tmp_path / "a", tmp_path / "c"], tmp_path) != before


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_each_system_has_its_place_for_it(monkeypatch, platform):
    monkeypatch.delenv("KT_CONFIG")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("APPDATA", "roaming")
    monkeypatch.setenv("XDG_CONFIG_HOME", "config")
    place = {"linux": "config", "darwin": "Application Support", "win32": "roaming"}[platform]
    assert trust.trust_file().parts[-3:] == (place, "KnowledgeTransfer", "trusted.json")
