"""`rlhf serve-reward`: start, token, port and end, as somebody at a terminal meets them."""

import os
import signal
import socket
import subprocess
import sys

import httpx2
import pytest

from rlhf import cli

CONFIG = "reward:\n  - {kind: regex, pattern: a}\nport: 0\n"
READY = "Ctrl-C stops"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return str(path)


def start_and_read(config, environment):
    """The server in a process of its own, and what it said until it was ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf.cli", "serve-reward", config],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RLHF_REWARD_TOKEN"} | environment,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[str] = []
    while not lines or READY not in lines[-1]:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        lines.append(line.strip())
    return process, lines


def ask(address, token):
    wire = {"requests": [{"prompt": "", "response": text} for text in ("a", "b")]}
    return httpx2.post(address, json=wire, headers={"Authorization": f"Bearer {token}"}, timeout=10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "ending"), [({}, signal.SIGINT), ({"RLHF_REWARD_TOKEN": "from-outside"}, signal.SIGTERM)]
)
def test_a_server_shows_how_to_reach_it_scores_and_ends_clean(config, environment, ending):
    process, lines = start_and_read(config, environment)
    try:
        address = lines[0].removeprefix("serving regex at ")
        assert address.startswith("http://127.0.0.1:")
        if environment:
            assert lines[1] == "token: the one in RLHF_REWARD_TOKEN"
            token = environment["RLHF_REWARD_TOKEN"]
        else:
            said, _, token = lines[1].rpartition(" ")
            assert said == "token, shown this once; clients read it from RLHF_REWARD_TOKEN:"
            assert len(token) >= 40
        assert ask(address, token).json()["scores"] == [1.0, 0.0]
        assert ask(address, "another").status_code == 401
    finally:
        process.send_signal(ending)
        output, errors = process.communicate(timeout=60)

    assert process.returncode == 0
    assert output == "stopped after 1 calls in 1 passes: 2 responses, 0 without a score\n"
    assert errors == ""


def error_line(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_port_that_is_taken_is_named(config, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve-reward", config, f"port={port}"]) == 2
    assert f"error: host='127.0.0.1', port={port}: Address already in use" in error_line(capsys)


def test_an_address_that_does_not_exist_is_named(config, capsys):
    assert cli.main(["serve-reward", config, "host=999.1.1.1"]) == 2
    assert error_line(capsys).startswith("error: host='999.1.1.1', port=0: ")


def test_a_missing_package_names_the_extra(config, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["serve-reward", config]) == 2
    assert "pip install 'rlhf[serve]'" in error_line(capsys)


def test_a_token_that_fits_no_header_is_refused_without_showing_it(config, capsys, monkeypatch):
    monkeypatch.setenv("RLHF_REWARD_TOKEN", "two words")
    assert cli.main(["serve-reward", config]) == 2
    line = error_line(capsys)
    assert "RLHF_REWARD_TOKEN" in line
    assert "two words" not in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("reward=[]", "reward"),
        ("port=70000", "port: received 70000"),
        ("reward.0.patern=b", "did you mean reward.0.pattern"),
        ("reward.0.kind=regexp", "did you mean regex"),
        ("token_variable=two-words", "token_variable"),
    ],
)
def test_a_bad_configuration_is_one_line(config, capsys, change, message):
    assert cli.main(["serve-reward", config, change]) == 2
    assert message in error_line(capsys)
