"""Small modules, short functions, telling names. Run with -s to see what lies above the targets."""

import ast
import re
from statistics import median

from tests.architecture.sources import ROOT, functions, shipped, tracked

MODULE_TARGET, MODULE_MOST = 120, 450
FUNCTION_TARGET, FUNCTION_MOST = 8, 60
NAMELESS = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc", "core", "shared", "stuff"}


def test_no_module_is_too_long():
    sizes = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in shipped()}
    print(f"modules: {len(sizes)}, median {median(sizes.values()):.0f} lines; above {MODULE_TARGET}:")
    for name, lines in sorted(sizes.items(), key=lambda item: -item[1]):
        if lines > MODULE_TARGET:
            print(f"  {lines:4} {name}")
    assert median(sizes.values()) <= MODULE_TARGET
    assert not {name: lines for name, lines in sizes.items() if lines > MODULE_MOST}


def test_no_function_is_too_long():
    found = functions()
    lengths = [function.lines for function in found]
    print(f"functions: {len(lengths)}, median {median(lengths):.0f}, p90 {sorted(lengths)[len(lengths) * 9 // 10]} lines; the longest:")
    for function in found[:10]:
        print(f"  {function.lines:4} {function.place}")
    assert median(lengths) <= FUNCTION_TARGET
    assert not [function for function in found if function.lines > FUNCTION_MOST]


def test_no_module_has_a_name_that_says_nothing():
    names = {path: {part.removesuffix(".py") for part in path.relative_to(ROOT).parts} for path in tracked() if path.suffix == ".py"}
    assert not [str(path) for path, parts in names.items() if parts & NAMELESS]


def test_every_module_and_package_says_what_it_is():
    assert not [str(path.relative_to(ROOT)) for path, tree in shipped().items() if not ast.get_docstring(tree)]


def test_every_switched_off_check_has_a_reason_beside_it():
    bare = re.compile(r"#\s*noqa(?!: [A-Z]+[0-9]+(?:, ?[A-Z]+[0-9]+)*\s+(?:#|-) ?\w)|#\s*type: ignore(?!\[[a-z, -]+\]\s+# \w)")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in shipped()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bare.search(line)
    ]
    assert not found


def test_nothing_is_left_for_later_and_nothing_names_a_machine():
    later = re.compile(rb"\b(?:TO" + rb"DO|FIX" + rb"ME)\b")
    machine = re.compile(rb"(?:^|[\s\"'=(])/(?:work|home/[a-z]+|Users)/|index-" + rb"url|artifact" + rb"ory|python" + rb"hosted")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked()
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if later.search(line) or machine.search(line)
    ]
    assert not found
