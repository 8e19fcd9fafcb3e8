"""compose.yaml and the manifests of deploy/: valid, in step with the code, and run for real without containers.

What Compose would start in containers is started here as processes: the same commands and settings, with secrets from
files, against a real RabbitMQ and a Postgres of its own. Only hosts, ports and the folder of data are others.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from and_platform.config import Settings
from and_platform.embedded import EmbeddedServer
from tests.homes import new_home
from tests.workers.servers import ProgramMissingError, RabbitMQ, free_port

yaml = pytest.importorskip("yaml")
jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
QUEUES = ("cpu", "gpu", "llm", "db")
OLDEST_KUBERNETES, NEWEST_KUBERNETES = "1.29", "1.37"


# ---------------------------------------------------------------------- as files


def interpolated(value: Any, variables: dict[str, str]) -> Any:
    """Compose's `${NAME}`, `${NAME:-default}` and `${NAME:?message}`, with the variables given."""

    def found(match: re.Match[str]) -> str:
        name, operator, more = match["name"], match["operator"], match["more"]
        if variables.get(name):
            return variables[name]
        assert operator == ":-", f"{name} is not set: {more}"
        return str(more)

    match value:
        case str():
            return re.sub(r"\$\{(?P<name>\w+)(?:(?P<operator>:[-?])(?P<more>[^}]*))?\}", found, value)
        case dict():
            return {key: interpolated(item, variables) for key, item in value.items()}
        case list():
            return [interpolated(item, variables) for item in value]
    return value


def load(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text("utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def compose(data: str = "/srv/andp", **variables: str) -> dict[str, Any]:
    found = interpolated(load(ROOT / "compose.yaml"), {"ANDP_DATA": data, **variables})
    assert isinstance(found, dict)
    return found


def workers() -> dict[str, dict[str, Any]]:
    return {queue: compose()["services"][f"worker-{queue}"] for queue in QUEUES}


def complaints(document: dict[str, Any]) -> list[str]:
    schema = json.loads((ROOT / "tests" / "data" / "compose" / "compose-spec.json").read_text("utf-8"))
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("path", [ROOT / "compose.yaml", DEPLOY / "compose.gpu.yaml"], ids=lambda path: path.name)
def test_compose_files_keep_to_the_specification(path: Path) -> None:
    document = load(path)
    assert complaints(document) == []
    name, service = next(iter(document["services"].items()))
    document["services"][name] = {**service, "depend_on": ["postgres"]}
    assert any("depend_on" in told for told in complaints(document))  # the schema would have told


def test_what_compose_names_is_there() -> None:
    document = compose()
    services, override = document["services"], load(DEPLOY / "compose.gpu.yaml")["services"]
    assert set(override) <= set(services)
    made = made_secrets()
    for secret in document["secrets"].values():
        assert Path(secret["file"]).parent == Path("deploy/secrets") and Path(secret["file"]).name in made
    for config in document["configs"].values():
        assert (ROOT / config["file"]).is_file()
    dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8")
    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        assert {entry if isinstance(entry, str) else entry["source"] for entry in service.get("secrets", [])} <= set(
            document["secrets"]
        )
        if "build" in service:
            assert ROOT / service["build"]["dockerfile"] == DEPLOY / "Dockerfile"
            assert f" AS {service['build']['target']}\n" in dockerfile
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            assert source in document["volumes"] or source == "/srv/andp" or (ROOT / source).is_file()
    mounts = [volume for queue in QUEUES for volume in services[f"worker-{queue}"]["volumes"]]
    assert mounts == services["andp"]["volumes"] * 4 and all(mount["source"] == mount["target"] for mount in mounts)


def made_secrets() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["sh", str(DEPLOY / "secrets.sh"), f"{folder}/new"], check=True)
        return {path.name: path.read_text() for path in Path(folder, "new").iterdir()}


def test_secrets_are_made_once_fit_together_and_are_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    run = ["sh", str(DEPLOY / "secrets.sh"), str(folder)]
    subprocess.run(run, check=True, umask=0o077)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.iterdir())  # another user reads them in there
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert f"andp:{made['postgres_password']}@postgres" in made["andp_owner_url"]
    assert f"andp_host:{made['andp_worker_password']}@postgres" in made["andp_database_url"]
    assert made["andp_broker_url"].split(":")[2].split("@")[0] == made["rabbitmq_user.conf"].split()[-1]
    assert made[".gitignore"] == "*\n"
    assert made["postgres_password"] != made_secrets()["postgres_password"]
    again = subprocess.run(run, capture_output=True, text=True, check=False)
    assert again.returncode == 1 and "has secrets already" in again.stderr
    assert {path.name: path.read_text() for path in folder.iterdir()} == made


def known_settings() -> set[str]:
    return {f"ANDP_{name.upper()}" for name in Settings.model_fields} | {"ANDP_SECRETS_DIR"}


def test_settings_are_those_that_there_are() -> None:
    given = {name for service in workers().values() for name in service["environment"]}
    given |= {
        variable["name"]
        for deployment in documents("workers.yaml")
        for variable in container(deployment).get("env", [])
    }
    given |= set(documents("settings.yaml")[0]["data"])
    assert {name for name in given if name.startswith("ANDP_")} <= known_settings()
    for secret in (*compose()["secrets"], *(key for found in secrets() for key in found["stringData"])):
        if secret.startswith("andp_") and secret not in ("andp_owner_url", "andp_worker_password"):
            assert secret.upper() in known_settings()


# ---------------------------------------------------------------------- Kubernetes


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text("utf-8")))


def secrets() -> list[dict[str, Any]]:
    return documents("secret.example.yaml")


def template(manifest: dict[str, Any]) -> dict[str, Any]:
    found = manifest["spec"] if manifest["kind"] == "Pod" else manifest["spec"]["template"]["spec"]
    assert isinstance(found, dict)
    return found


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    (found,) = template(manifest)["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("version", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_keep_to_the_schemas_of_kubernetes(path: Path, version: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    for manifest in documents(path.name):
        kubernetes.validate(manifest, version, strict=True)
        with pytest.raises(kubernetes.ValidationError):
            kubernetes.validate({**manifest, "spek": {}}, version, strict=True)


def test_manifests_fit_together() -> None:
    everything = [manifest for path in MANIFESTS for manifest in documents(path.name)]
    named = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in everything}
    pods = [manifest for manifest in everything if manifest["kind"] in ("Deployment", "Job", "Pod")]
    images = set()
    for manifest in pods:
        spec, only = template(manifest), container(manifest)
        images.add(only["image"])
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for mount in only["volumeMounts"]} == set(volumes)
        assert ("Secret", volumes["secrets"]["secret"]["secretName"]) in named
        if "data" in volumes:
            assert ("PersistentVolumeClaim", volumes["data"]["persistentVolumeClaim"]["claimName"]) in named
        assert all(("ConfigMap", source["configMapRef"]["name"]) in named for source in only["envFrom"])
        assert only["securityContext"]["readOnlyRootFilesystem"] and spec["securityContext"]["runAsNonRoot"]
    assert images == {f"and-platform:{version()}"}
    # Who brings data in and who reads it have it at one path; where secrets lie is what the settings say.
    paths = {
        mount["mountPath"]
        for manifest in pods
        for mount in container(manifest)["volumeMounts"]
        if mount["name"] == "data"
    }
    assert paths == {"/srv/andp"}
    (settings,) = documents("settings.yaml")
    secret_paths = {
        mount["mountPath"]
        for manifest in pods
        for mount in container(manifest)["volumeMounts"]
        if mount["name"] == "secrets"
    }
    assert secret_paths == {settings["data"]["ANDP_SECRETS_DIR"]}
    for deployment in documents("workers.yaml"):
        labels = deployment["spec"]["selector"]["matchLabels"]
        assert labels == deployment["spec"]["template"]["metadata"]["labels"]
        (port,) = container(deployment)["ports"]
        assert str(port["containerPort"]) == settings["data"]["ANDP_METRICS_PORT"]


def version() -> str:
    import tomllib

    return str(tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"])


def commands() -> list[tuple[str, list[str]]]:
    """Every `andp worker …` that is written down, by queue."""
    found = [(queue, service["command"]) for queue, service in workers().items()]
    gpu = interpolated(load(DEPLOY / "compose.gpu.yaml"), {})["services"]
    found += [(name.removeprefix("worker-"), service["command"]) for name, service in gpu.items()]
    found += [
        (manifest["metadata"]["name"].removeprefix("andp-"), container(manifest)["args"])
        for manifest in documents("workers.yaml")
    ]
    return found


def test_every_queue_has_a_worker_and_every_command_is_one() -> None:
    from and_platform.cli.main import cli

    assert sorted({queue for queue, _ in commands()}) == sorted(QUEUES) and len(commands()) == 4 + 2 + 4
    for queue, arguments in commands():
        context = cli.make_context("andp", list(arguments), resilient_parsing=False)
        name, command, rest = cli.resolve_command(context, [*context._protected_args, *context.args])
        assert name == "worker" and command is not None
        assert command.make_context(name, rest).params["queues"] == queue


# ---------------------------------------------------------------------- as processes


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    """A server of its own, for roles are a server's; made ready as the image's entry point does. Yields its socket's folder."""
    from sqlalchemy.engine import make_url

    home = new_home("andpd")
    try:
        url = make_url(EmbeddedServer(home).ensure_running())
        socket = str(url.query["host"])
        psql = EmbeddedServer(home).binaries
        superuser = {
            **os.environ,
            "PATH": f"{psql}{os.pathsep}{os.environ['PATH']}",
            "PGHOST": socket,
            "PGPASSFILE": str(home / "pgpass"),
        }
        # Users of the test's own have no passwords here.
        rules = EmbeddedServer(home).data / "pg_hba.conf"
        rules.write_text("local all postgres scram-sha-256\nlocal all all trust\n")
        made = subprocess.run(
            ["psql", "-U", "postgres", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c", "CREATE ROLE andp SUPERUSER LOGIN",
             "-c", "ALTER DATABASE andp OWNER TO andp", "-c", "SELECT pg_reload_conf()"],
            env=superuser, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        (home / "password").write_text("it's a 'secret'")
        script = compose()["services"]["postgres"]["volumes"][1].split(":")[0]
        subprocess.run(
            ["sh", str(ROOT / script)],
            env={**superuser, "POSTGRES_USER": "andp", "POSTGRES_DB": "andp",
                 "ANDP_WORKER_PASSWORD_FILE": str(home / "password")},
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        yield Path(socket)
    finally:
        EmbeddedServer(home).stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A node with the settings of deploy/rabbitmq.conf."""
    lines = (DEPLOY / "rabbitmq.conf").read_text("utf-8").splitlines()
    given = dict(line.split(" = ") for line in lines if not line.startswith("#"))
    pytest.importorskip("amqp", reason="the extra 'workers' is not installed")
    try:
        server = RabbitMQ(settings=given).start()
    except ProgramMissingError as missing:
        pytest.skip(str(missing))
    with_settings = server.control("environment")
    assert f"{{consumer_timeout,{given['consumer_timeout']}}}" in with_settings
    yield server
    server.close()


class Composed:
    """The services of compose.yaml, each as a process with its command, its environment and its secrets."""

    def __init__(self, folder: Path, hosts: dict[str, str]) -> None:
        self.folder = folder
        self.services = compose(str(folder / "data"))["services"]
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.metrics = {name: free_port() for name in self.services if name.startswith("worker-")}
        self.flower = free_port()
        made = folder / "secrets"
        subprocess.run(["sh", str(DEPLOY / "secrets.sh"), str(made)], check=True)
        self.secrets = {path.name: path.read_text() for path in made.iterdir()}
        for name in ("andp_owner_url", "andp_database_url", "andp_broker_url"):  # what stands for the containers' hosts
            self.secrets[name] = hosts[name]

    def environment(self, name: str) -> dict[str, str]:
        service = self.services[name]
        mounted = self.folder / f"secrets of {name}"
        mounted.mkdir(exist_ok=True)
        for secret in service["secrets"]:
            given = secret if isinstance(secret, dict) else {"source": secret, "target": secret}
            (mounted / given["target"]).write_text(self.secrets[given["source"]])
        kept = ("PATH", "LANG", "TZ", "HOME", "LD_LIBRARY_PATH")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            **{key: str(value) for key, value in service.get("environment", {}).items()},
            "ANDP_HOME": str(self.folder / "home"),
            "ANDP_SECRETS_DIR": str(mounted),
            "PYTHONPATH": str(ROOT),
            "PATH": f"{self._programs()}{os.pathsep}{os.environ['PATH']}",
            # Beside each other on one machine; what is on at the machine is not for a test to use up.
            **({"ANDP_METRICS_PORT": str(self.metrics[name])} if name in self.metrics else {}),
            "OMP_NUM_THREADS": "1",
            "ANDP_UNIT_SIZE": "0.2",
        }

    def _programs(self) -> Path:
        folder = self.folder / "bin"
        if not folder.exists():
            folder.mkdir()
            for program, module in (("andp", "and_platform.cli.main"), ("celery", "celery")):
                path = folder / program
                path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
                path.chmod(0o755)
        return folder

    def argv(self, name: str, *given: str) -> list[str]:
        """What the container runs: the image's entry point where the service names none."""
        service = self.services[name]
        dockerfile = (DEPLOY / "Dockerfile").read_text("utf-8")
        stage = dockerfile.split(f" AS {service['build']['target']}\n")[1].split("\nFROM ")[0]
        (entry,) = re.findall(r"^ENTRYPOINT (.*)$", stage, re.MULTILINE)
        port = {"--port=5555": f"--port={self.flower}"}
        command = list(given) or service.get("command", [])
        return [*(service.get("entrypoint") or json.loads(entry)), *(port.get(part, part) for part in command)]

    def run(self, name: str, *given: str) -> str:
        done = subprocess.run(
            self.argv(name, *given), env=self.environment(name), cwd=self.folder, capture_output=True, text=True, timeout=240,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name} {given}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.started[name] = subprocess.Popen(
                self.argv(name), env=self.environment(name), cwd=self.folder, stdout=log, stderr=subprocess.STDOUT
            )

    def healthy(self, name: str) -> bool:
        """The service's own health check, on its port here."""
        kind, *probe = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD" and self.started[name].poll() is None, self.log(name)
        ports = {"9464": str(self.metrics.get(name)), "5555": str(self.flower)}
        code = re.sub("9464|5555", lambda match: ports[match[0]], probe[-1])
        return subprocess.run([sys.executable, *probe[1:-1], code], capture_output=True, check=False).returncode == 0

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def stop(self) -> dict[str, int]:
        """Ask all to end, and wait as long as Compose would for the most impatient."""
        for process in self.started.values():
            process.terminate()
        return {name: process.wait(60) for name, process in self.started.items()}

    def kill(self) -> None:
        import psutil

        for process in self.started.values():
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
                process.kill()
                process.wait()


@pytest.fixture
def composed(postgres: Path, rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Composed]:
    hosts = {
        "andp_owner_url": f"postgresql://andp@/andp?host={postgres}",
        "andp_database_url": f"postgresql://andp_host@/andp?host={postgres}",
        "andp_broker_url": rabbitmq.url,
    }
    made = Composed(tmp_path, hosts)
    yield made
    made.kill()
    for name in made.started:
        sys.stdout.write(f"--- {name}\n{made.log(name)}\n")  # pytest shows it where a test failed


def wait(done: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not after {seconds:.0f} s"
        time.sleep(0.3)


@pytest.mark.timeout(600)  # eight programs that load torch, on few cores
def test_the_services_of_compose_dissect_as_processes(composed: Composed) -> None:
    for package in ("celery", "prometheus_client"):
        pytest.importorskip(package, reason="the extra 'workers' is not installed")
    from tests.workers.test_workers import N_CLIPS, NETWORK, save_network, tones

    data = composed.folder / "data"
    tones(data / "tones")
    save_network(data / "network")

    composed.run("setup")  # as the owner; what follows is not
    names = [f"worker-{queue}" for queue in QUEUES]
    for name in names:
        composed.start(name)
    composed.run("andp", "ingest", "folder", str(data / "tones"))
    composed.run("owner", "networks", "add", NETWORK, str(data / "network"))
    wait(lambda: all(composed.healthy(name) for name in names))

    told = composed.run(
        "andp", "dissect", NETWORK, "--dataset", "tones", "--captioner", "describer", "--distributed", "--json"
    )
    run = json.loads(told)["run"]
    with psycopg.connect(composed.secrets["andp_database_url"]) as connection:
        used = connection.execute(
            "SELECT u.queue, array_agg(DISTINCT w.queues), sum((u.step = 'record')::int * u.size), array_agg(DISTINCT u.state)"
            " FROM work_units u JOIN workers w ON w.id = u.worker_id WHERE u.run_id = %s GROUP BY 1 ORDER BY 1",
            [run],
        ).fetchall()
    assert [(queue, by) for queue, by, _, _ in used] == [(queue, [[queue]]) for queue in ("cpu", "db", "gpu")]  # no LLM
    assert sum(clips for _, _, clips, _ in used) == N_CLIPS and {*(tuple(row[3]) for row in used)} == {("done",)}
    findings = json.loads(composed.run("andp", "broker", "check", "--json"))
    assert {finding["level"] for finding in findings} == {"ok"}, findings
    assert set(composed.stop().values()) == {0}


@pytest.mark.timeout(600)
def test_flower_sees_the_workers(composed: Composed) -> None:
    pytest.importorskip("flower", reason="flower is not installed")
    composed.run("setup")
    for name in ("worker-db", "flower"):
        composed.start(name)
    wait(lambda: composed.healthy("flower"))

    def seen() -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{composed.flower}/workers?json=1", timeout=10) as answer:
            found = json.load(answer)["data"]
        assert isinstance(found, list)
        return found

    wait(lambda: any(worker["hostname"].startswith("db.") and worker["status"] for worker in seen()))
    assert composed.secrets["andp_broker_url"] not in composed.log("flower")  # its password is not in the log
