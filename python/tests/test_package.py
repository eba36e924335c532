"""What ships with the package: generated code, README, examples, the notebook."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import PYTHON, ROOT, Server
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from umaserve import session_pb2 as pb

EXAMPLES = sorted((PYTHON / "examples").glob("*.py"))
NOTEBOOKS = sorted((PYTHON / "examples").glob("*.ipynb"))


def environment(server: Server) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(PYTHON),
        "UMASERVE_URL": str(server.file),
        "MPLBACKEND": "agg",
        "PYTHONWARNINGS": "ignore",
    }


def test_generated_code_is_that_of_the_schema(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", ROOT / "proto"]
    command += [f"--descriptor_set_out={tmp_path / 'set'}", "session.proto"]
    subprocess.run(command, check=True)
    (wanted,) = FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    for file in (wanted, found := FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)):
        file.ClearField("source_code_info")
        for message in [*file.message_type, *(n for m in file.message_type for n in m.nested_type)]:
            for member in message.field:
                member.ClearField("json_name")
    assert found == wanted, "regenerate umaserve/session_pb2.py: README.md says how"
    stub = (PYTHON / "umaserve/session_pb2.pyi").read_text()
    for message in wanted.message_type:
        for member in message.field:
            assert re.search(rf"^\s+{member.name}: ", stub, re.MULTILINE), f"{member.name} is not in session_pb2.pyi"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_run(server: Server, path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, path], env=environment(server), cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    expected = re.findall(r"^# prints: (.*)$", path.read_text(), re.MULTILINE)
    assert expected, "an example says what it prints"
    for line in expected:
        assert re.search(line, done.stdout), f"{line!r} is not in:\n{done.stdout}"


def test_readme_runs(server: Server, tmp_path: Path) -> None:
    text = (PYTHON / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) >= 4
    for number, snippet in enumerate(snippets):
        script = tmp_path / f"snippet{number}.py"
        script.write_text(snippet.replace("http://127.0.0.1:8000/", str(server.file)))
        done = subprocess.run(
            [sys.executable, script], env=environment(server), cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{snippet}\n{done.stderr}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run(server: Server, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_kept_with_small_clean_outputs(path: Path) -> None:
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count, "run it before it is committed"
            assert not [o for o in cell.outputs if o.output_type == "error" or o.get("name") == "stderr"]
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text())
    assert not re.search(r"/(home|root|tmp|work|Users)/|token=|\b[0-9a-f]{32}\b", text)
