"""User, password and query of a URL, and secrets of the environment, reach the server and nothing else: no file of a
run, no log, no line on the screen. Run: pytest tests/test_secrets.py
"""

from shards.script import run_cli

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from faulty_server import FaultyServer, serve
from made_runs import arguments

from analysis import knn
from shards.__main__ import main as tools
from train import doctor, models, sbatch
from train import run as trainer
from train.config import Config
from train.config_file import load
from train.rundir import open_run
from train.study import name_of
from train.study_table import cell

pytestmark = pytest.mark.usefixtures("one_rank")
SECRETS = ("alice", "wonderland", "topsecret", "hunter2hunter2")
FAST = ["--model", "test_vit", "--start", "ri", "--image-size", "32", "--global-batch", "16", "--threads", "1"]
FAST += ["--order", "windowed", "--cache", "fetched"]


@pytest.fixture(autouse=True)
def secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")


@pytest.fixture
def server(tiny_set: Path) -> Iterator[FaultyServer]:
    with serve(tiny_set) as state:
        yield state


def with_secrets(server: FaultyServer) -> str:
    return server.url.replace("://", "://alice:wonderland@") + "/?sig=topsecret"


def leaks(*texts: str) -> list[str]:
    """Secrets in these texts, and files below the working folder that hold one."""
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert files
    held = [f"{path}: {secret}" for path in files for secret in SECRETS if secret.encode() in path.read_bytes()]
    return held + [secret for secret in SECRETS if any(secret in text for text in texts)]


def test_a_training_and_its_analyses_tell_none(server: FaultyServer, capfd: pytest.CaptureFixture[str]) -> None:
    url = with_secrets(server)
    assert trainer.main(["--shards", url, "--mix", f"{url}=1", "--name", "r", "--epochs", "1", *FAST]) == 0
    assert {request.query for request in server.requests} == {"sig=topsecret"}
    assert all(request.authorization for request in server.requests)
    run = Path("runs/r")
    assert open_run(run).config.data.shards == server.url  # type: ignore[union-attr]
    knn.main(arguments(run, "--shards", url, script="knn"))
    assert tools(["info", url]) == 0
    assert leaks(*capfd.readouterr()) == []


def test_an_interrupted_training_goes_on_with_the_secrets_given_again(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = with_secrets(server)
    given = ["--shards", url, "--mix", f"{url}=1", "--name", "r", "--epochs", "1", *FAST]
    assert trainer.main([*given, "--checkpoint-every", "1"]) == 0
    Path("runs/r/results.json").unlink()
    server.requests.clear()
    assert trainer.main(["--resume", "runs/r", "--shards", url, "--mix", f"{url}=1"]) == 0
    assert {request.query for request in server.requests} <= {"sig=topsecret"}
    Path("runs/r/results.json").unlink()
    with pytest.raises(ValueError, match="--mix") as caught:
        trainer.main(["--resume", "runs/r", "--mix", f"{url.replace('/?', '/other?')}=1"])
    assert leaks(str(caught.value)) == []


def test_a_learning_rate_search_tells_none(server: FaultyServer, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--shards", with_secrets(server), "--lr-finder", "range", "--finder-steps", "10", "--name", "f", *FAST]
    assert trainer.main(flags) == 0
    assert leaks(*capfd.readouterr()) == []


def test_a_printed_config_tells_none(server: FaultyServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = with_secrets(server)
    assert trainer.main(["--shards", url, "--mix", f"{url}=.5,data/other=.5", "--print-config"]) == 0
    told = json.loads(capsys.readouterr().out)["config"]["data"]
    assert (told["shards"], told["mix"]) == (server.url, f"{server.url}=.5,data/other=.5")


@pytest.mark.parametrize("mistake", ["mix", "place", "another set"])
def test_a_mistake_is_told_without(
    mistake: str, server: FaultyServer, make_set: Callable[..., object], tiny_set: Path
) -> None:
    url = with_secrets(server)
    with pytest.raises(ValueError, match=server.url if mistake != "mix" else "positive shares") as caught:
        if mistake == "mix":
            load({}, {"mix": f"{url}=many"})
        elif mistake == "place":
            trainer.main(["--shards", url.replace("/?", "/nothing?"), "--name", "r", *FAST])
        else:
            run = Path("runs/r")
            assert trainer.main(["--shards", str(tiny_set), "--name", "r", "--epochs", "1", *FAST]) == 0
            opened = open_run(run, url)
            object.__setattr__(opened.info, "num_classes", 7)
            _ = opened.shards
    assert not any(secret in str(caught.value) for secret in SECRETS)


@pytest.mark.parametrize("flag", ["--shards", "--mix"])
def test_a_batch_script_holds_none(flag: str, server: FaultyServer, capsys: pytest.CaptureFixture[str]) -> None:
    url = with_secrets(server)
    words = ["--dry-run", "--", flag, url if flag == "--shards" else f"{url}=1", "--name", "r", *FAST]
    with pytest.raises(ValueError, match=f"{server.url}: the job's script would hold") as caught:
        sbatch.main(sbatch.parse_args(words))
    assert not any(secret in text for secret in SECRETS for text in (str(caught.value), *capsys.readouterr()))


def test_names_of_runs_and_cells_of_tables_tell_none(server: FaultyServer) -> None:
    url = with_secrets(server).replace("/?", "/set?")
    assert name_of({"shards": url, "seed": 1}, {"shards": [url, "b"], "seed": [1, 2]}) == "set-1"
    assert cell("shards", url) == "set"


def test_a_public_config_is_the_same_where_there_is_nothing_to_hide() -> None:
    config = Config.model_validate({"data": {"shards": "data/a=b?c", "mix": "data/a = 0.50,b=2"}})
    assert config.public() == config


SECRET_URL = "https://alice:wonderland@h/x?sig=topsecret"


def failing() -> NoReturn:
    """As a client of a hub or a store, whose words stay in the chain behind ours."""
    try:
        raise RuntimeError(f"401 for url '{SECRET_URL}', key hunter2hunter2")
    except RuntimeError as error:
        raise ValueError(f"no weights: {error}") from error


def test_an_error_and_its_traceback_tell_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_cli(failing, debug=True)
    told = capsys.readouterr().err
    assert told.count("401 for url 'https://h/x', key …") == 3 and "Traceback" in told
    assert not any(secret in told for secret in SECRETS)


def test_a_traceback_of_a_mistake_of_ours_tells_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    error = RuntimeError(SECRET_URL)
    with pytest.raises(RuntimeError):
        run_cli(lambda: (_ for _ in ()).throw(error))
    sys.excepthook(RuntimeError, error, error.__traceback__)
    told = capsys.readouterr().err
    assert told.endswith("RuntimeError: https://h/x\n") and not any(secret in told for secret in SECRETS)


def test_what_libraries_log_tells_none(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit):
        run_cli(lambda: logging.getLogger("hub").warning("503 from %s with %s", SECRET_URL, "hunter2hunter2"))
    assert caplog.messages == ["503 from https://h/x with …"]


def test_a_hub_that_refuses_is_told_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> NoReturn:
        raise OSError(f"Client error '401 Unauthorized' for url '{SECRET_URL}'")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    with pytest.raises(ValueError, match=r"could not be had \(.*401 Unauthorized' for url 'https://h/x'\)"):
        models.create("resnet18.a1_in1k", 2, 3, img_size=32, pretrained=True)


@pytest.mark.parametrize(
    ("endpoint", "host", "port"),
    [(SECRET_URL, "h", 443), ("http://alice:wonderland@h/hf", "h", 80), ("https://alice:wonderland@h:8443", "h", 8443)],
)
def test_the_doctor_tells_the_hubs_host_alone(
    endpoint: str, host: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(doctor, "reaches", lambda *place: asked.append(place))
    (finding,) = doctor.hub()
    assert asked == [(host, port)] and str(finding).startswith("! weights        h is out of reach")


@pytest.mark.parametrize("name", ["AZURE_STORAGE_CONNECTION_STRING", "MLFLOW_AUTH", "DB_PASSPHRASE", "WANDB_API_KEY"])
def test_names_that_tell_a_secret(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "topsecret")
    with pytest.raises(SystemExit):
        run_cli(lambda: (_ for _ in ()).throw(ValueError("refused: topsecret")))
    assert capsys.readouterr().err == "error: refused: …\n"
