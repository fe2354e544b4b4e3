import json
import sys
from types import SimpleNamespace

import pytest

from astrolabe.prompts import prompt_list
from astrolabe.video_list import find_prompts
from astrolabe_rollout.errors import PromptFileError


def test_a_file_that_does_not_fit_is_named_with_its_setting(tmp_path):
    (tmp_path / "p.csv").write_text("prompt\na circle, on black\n")
    with pytest.raises(PromptFileError, match=r"^rollout\.prompts: .*p\.csv', line 2: it has 2"):
        prompt_list(str(tmp_path / "p.csv"), "rollout.prompts")


@pytest.mark.parametrize("found", ["a cat", ["a cat", None]])
def test_a_packaged_list_that_is_no_list_of_texts_is_refused(monkeypatch, found):
    def mine() -> list[str]:
        return found

    def fine() -> tuple[str, ...]:
        return ("a cat", "a dog")

    module = SimpleNamespace(mine=mine, fine=fine)
    monkeypatch.setitem(sys.modules, "some_lists", module)
    assert prompt_list("some_lists:fine", "here") == ["a cat", "a dog"]
    with pytest.raises(PromptFileError, match="here: the list 'some_lists:mine' is no list of"):
        prompt_list("some_lists:mine", "here")


def test_prompts_of_a_manifest_survive_line_breaks_of_unicode_and_null_is_no_word(tmp_path):
    entries = {"a.mp4": ["a\u2028cat", "a\x85dog"], "b.mp4": ["a", None]}
    lines = [
        json.dumps(
            {"file": name, "settings": {"scenes": [{"prompt": text} for text in texts]}},
            ensure_ascii=False,
        )
        for name, texts in entries.items()
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in entries:
        (tmp_path / name).touch()
    found = find_prompts([tmp_path / name for name in entries], [], None)
    assert found == ["a\u2028cat | a\x85dog", ""]
