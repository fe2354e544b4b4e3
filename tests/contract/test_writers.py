"""All that is written goes through the module ``files`` of its package, which leaves no parts."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("packages/*/src/*"), *ROOT.glob("apps/*/src/*")])

#: Calls that write, by their last name. Of `open` only with a mode that writes.
WRITES = {
    *("write_text", "write_bytes", "save_file", "savetxt", "to_csv", "imwrite", "savefig"),
    *("save_pretrained", "symlink_to", "copyfile", "copytree", "mkstemp", "NamedTemporaryFile"),
}
#: What writes by itself, and why.
ALLOWED = {
    "astrolabe_eval.files": "the one place",
    "astrolabe_eval.plots": "savefig into memory",
    "astrolabe_eval.video_io": "inside `replacing`",
    "astrolabe_eval.vbench_run": "links in a temporary folder",
    "astrolabe_rollout.export": "inside `replacing`",
    "astrolabe_rollout.lora_formats": "inside `replacing`",
    "astrolabe_rewards.cards": "the README of a working copy, which git has",
    "astrolabe_rewards.cache": "its lock; the scores are SQLite's, with transactions",
    "astrolabe.tracking": "metrics.jsonl, whose lines wait while the disk is full",
    "astrolabe.run_lock": "its lock",
    "astrolabe.rank_log": "a log, which a full disk ends without ending the run",
}


def modules():
    for package in SOURCES:
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package.parent).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def writes(tree):
    """Names of the calls in a module that write files."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        mode = {
            word
            for one in (*node.args, *(key.value for key in node.keywords))
            for part in ast.walk(one)
            for word in [getattr(part, "attr", getattr(part, "value", None))]
            if isinstance(word, str)
        }
        opens = name == "open" and mode & {
            *("w", "a", "x", "wb", "ab", "xb", "w+", "r+", "rb+", "ab+", "wb+", "O_CREAT", "wt")
        }
        saves = name == "save" and ast.unparse(node.func) == "torch.save"
        if name in WRITES or opens or saves:
            yield name


def test_no_other_module_writes():
    found = {module: set(writes(ast.parse(path.read_text()))) for module, path in modules()}
    writing = {module: names for module, names in found.items() if names}
    assert {name: writing[name] for name in writing.keys() - ALLOWED.keys()} == {}
    assert ALLOWED.keys() - writing.keys() == set(), "these write no more"
