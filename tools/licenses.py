#!/usr/bin/env python3
"""Checks licenses and sources of all dependencies against deny.toml, without cargo-deny.

cargo-deny takes minutes to build; this reads `cargo metadata` in a second. It knows the part of
deny.toml that matters here: every package comes from crates.io, carries a license that is
allowed, and is not banned by name.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"


def section(text, name):
    match = re.search(rf"^\[{name}\]$(.*?)(?=^\[|\Z)", text, re.M | re.S)
    return match[1] if match else ""


def strings(text, key):
    match = re.search(rf"^{key} = \[(.*?)^\]", text, re.M | re.S)
    return re.findall(r'"([^"]+)"', match[1]) if match else []


def allowed(expression, licenses):
    """Whether an SPDX expression can be met with `licenses` alone."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def peek():
        return tokens[position] if position < len(tokens) else None

    def take():
        nonlocal position
        position += 1
        return tokens[position - 1]

    def one():
        if peek() == "(":
            take()
            value = any_of()
            take()
            return value
        name = take()
        if peek() == "WITH":
            take()
            name = f"{name} WITH {take()}"
        return name in licenses

    def all_of():
        value = one()
        while peek() == "AND":
            take()
            value = one() and value
        return value

    def any_of():
        value = all_of()
        while peek() == "OR":
            take()
            value = all_of() or value
        return value

    return any_of()


def main():
    deny = (ROOT / "deny.toml").read_text()
    licenses = set(strings(section(deny, "licenses"), "allow"))
    banned = set(re.findall(r'\{ name = "([^"]+)"', section(deny, "bans")))
    assert licenses and banned, "deny.toml is not as expected"
    assert allowed("(MIT OR GPL-3.0-only) AND Zlib", {"MIT", "Zlib"})
    assert not allowed("MIT AND GPL-3.0-only", {"MIT"})

    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--all-features"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    wrong = []
    for package in metadata["packages"]:
        name = f"{package['name']} {package['version']}"
        if package["source"] not in (None, CRATES_IO):
            wrong.append(f"{name}: comes from {package['source']}")
        if package["name"] in banned:
            wrong.append(f"{name}: banned in deny.toml")
        if not allowed(package["license"] or "none", licenses):
            wrong.append(f"{name}: license {package['license']} is not allowed in deny.toml")
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    print(f"licenses: {len(metadata['packages'])} packages, {len(wrong)} not allowed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
