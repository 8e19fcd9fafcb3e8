"""A checkpoint whose files name code, other models or files elsewhere: nothing of it is imported, fetched or opened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from and_platform.backends.checkpoint_folder import check_folder
from and_platform.backends.networks import load_network
from and_platform.backends.registry import create
from and_platform.backends.weights import find_weights
from and_platform.errors import BackendError, WeightsMissingError
from tests import checkpoints_networks
from tests.checkpoints_encoders import write_sentence_transformer

ROOT = Path(__file__).parents[2]
_watched: dict[str, list[str]] = {}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event in (
        "open",
        "import",
        "socket.connect",
        "socket.getaddrinfo",
        "subprocess.Popen",
        "os.system",
    ):
        _watched.setdefault(event, []).append(
            os.fsdecode(arguments[0])
            if event == "open" and isinstance(arguments[0], (str, bytes))
            else str(arguments[0])
        )


sys.addaudithook(_hook)


@contextmanager
def watching() -> Iterator[dict[str, list[str]]]:
    """What is opened, imported, connected to and started meanwhile."""
    _watched["on"] = []
    try:
        yield _watched
    finally:
        seen = dict(_watched)
        _watched.clear()
        assert not any(key in seen for key in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"))
        assert not [name for name in seen.get("import", []) if "evil" in name]
        assert not [name for name in seen.get("open", []) if "secret" in name]


@pytest.fixture
def ast(tmp_path: Path) -> Path:
    return checkpoints_networks.ast(tmp_path / "ast")


@pytest.fixture
def secret(tmp_path: Path, ast: Path) -> Path:
    """A file outside the checkpoint that is as good as its own."""
    shutil.copy(ast / "model.safetensors", tmp_path / "secret.safetensors")
    return tmp_path / "secret.safetensors"


def edit(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    content.update(values)
    file.write_text(json.dumps(content))


# What a config.json may not say, wherever in it, whoever loads it.
HOSTILE: list[dict[str, Any]] = [
    {"_attn_implementation": "evil/kernel"},
    {"attn_implementation": "evil/kernel"},
    {"attn_implementation": "evil/kernel@main:function"},
    {"attn_implementation": "paged|evil/kernel"},
    {"attn_implementation": {"": "eager", "audio_config": "evil/kernel"}},
    {"_attn_implementation_internal": "evil/kernel"},
    {"attn_implementation": ["evil/kernel"]},
    {"attn_implementation": "evil"},
    {"experts_implementation": "evil/kernel"},
    {"_experts_implementation": {"x": "evil/kernel"}},
    {"use_kernels": True},
    {"allow_all_kernels": True},
    {"trust_remote_code": True},
    {"kernel_config": {"kernel_mapping": {"X": "evil/kernel:Layer"}}},
    {"backbone": "evil/backbone"},
    {"audio_tokenizer_name_or_path": "evil/tokenizer"},
    {"architecture": "hf-hub:evil/timm"},
    {"tokenizer_class": "evil.Tokenizer"},
    {"tokenizer_class": "pipeline"},
    {"processor_class": "evil/Processor"},
    {"dtype": "hub"},
    {"torch_dtype": "torch.hub"},
    {"num_hidden_layers": 10**9},
    {"num_labels": 10**12},
    {"sampling_rate": 2**31},
]


def _named(values: dict[str, Any]) -> str:
    return json.dumps(values)[:60]


@pytest.mark.parametrize("values", HOSTILE, ids=_named)
@pytest.mark.parametrize("nested", [False, True])
def test_a_network_that_names_code(ast: Path, values: dict[str, Any], nested: bool) -> None:
    edit(ast / "config.json", **({"text_config": {"inner": [values]}} if nested else values))
    with watching(), pytest.raises(BackendError) as failure:
        load_network(ast)
    assert "config.json" in str(failure.value)
    assert "\n" not in str(failure.value)


Maker = Callable[[Path], Any]
BACKENDS: dict[str, tuple[str, Maker]] = {
    "clip": ("clip_dir", lambda path: create("encoder", f"clip:{path}")),
    "clap": ("clap_dir", lambda path: create("encoder", f"clap:{path}")),
    "transformers": ("llama_dir", lambda path: create("llm", f"transformers:{path}", device="cpu")),
    "whisper": ("whisper_dir", lambda path: create("captioner", f"audio-lm:{path}", device="cpu")),
    "qwen-audio": ("qwen_audio_dir", lambda path: create("captioner", f"audio-lm:{path}", device="cpu")),
}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Maker]:
    """A copy of a tiny checkpoint, and how its backend is made."""
    name, make = BACKENDS[request.param]
    return Path(shutil.copytree(request.getfixturevalue(name), tmp_path / "model")), make


@pytest.mark.parametrize("values", HOSTILE[:2] + HOSTILE[8:9] + HOSTILE[14:15], ids=_named)
def test_a_backend_that_names_code(backend: tuple[Path, Maker], values: dict[str, Any]) -> None:
    folder, make = backend
    make(folder)  # as it is, it loads
    edit(folder / "config.json", **values)
    with watching(), pytest.raises(BackendError, match=r"config\.json"):
        make(folder)


def test_code_of_a_model_is_neither_run_nor_asked_for(
    backend: tuple[Path, Maker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `auto_map` transformers would run the file, or ask at the terminal whether it should."""
    folder, make = backend
    code = f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: pass\n"
    (folder / "evil.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoFeatureExtractor")
    named: dict[str, Any] = dict.fromkeys(kinds, "evil.Evil")
    named["AutoTokenizer"] = ["evil.Evil", "evil.Evil"]
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"):
        if (folder / file).exists():
            edit(folder / file, auto_map=named)
    edit(folder / "generation_config.json", custom_generate="evil/generate")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    for kind in ({}, {"model_type": "evil"}):
        edit(folder / "config.json", **kind)
        with watching():
            try:
                make(folder)  # what transformers knows itself is loaded with its own code
            except BackendError as exc:
                assert "\n" not in str(exc)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "how", ["../secret.safetensors", "absolute", "x/../../secret.safetensors", "..\\secret", 3, None]
)
def test_weights_outside_the_folder(ast: Path, secret: Path, how: Any) -> None:
    """A shard that an index names is opened by transformers wherever it is."""
    from safetensors import safe_open

    with safe_open(ast / "model.safetensors", "pt") as tensors:
        names = list(tensors.keys())
    (ast / "model.safetensors").unlink()
    place = str(secret) if how == "absolute" else how
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, place)}
    (ast / "model.safetensors.index.json").write_text(json.dumps(index))
    for load in (load_network, lambda path: find_weights(str(path)), lambda path: create("encoder", f"clip:{path}")):
        with watching(), pytest.raises(BackendError, match=r"index\.json"):
            load(ast)


def test_shards_inside_the_folder_load(ast: Path) -> None:
    from transformers import ASTForAudioClassification

    before = load_network(ast)
    ASTForAudioClassification.from_pretrained(ast).save_pretrained(ast, max_shard_size="5KB")
    (ast / "model.safetensors").unlink()
    assert len(list(ast.glob("model-*.safetensors"))) > 1
    assert load_network(ast).revision == before.revision


def test_links(ast: Path, secret: Path, tmp_path: Path) -> None:
    """The model hub's cache keeps its files behind links; any other link must stay in the folder."""
    hub = tmp_path / "hub" / "models--someone--ast"
    (hub / "blobs").mkdir(parents=True)
    snapshot = hub / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(ast.iterdir())):
        blob = hub / "blobs" / f"{number:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    assert load_network(snapshot).revision == load_network(ast).revision
    (tmp_path / "linked").symlink_to(ast)  # a link to the folder itself
    assert load_network(tmp_path / "linked").revision == load_network(ast).revision
    (ast / "model.safetensors").rename(ast / "weights.safetensors")
    (ast / "model.safetensors").symlink_to("weights.safetensors")
    load_network(ast)
    (ast / "model.safetensors").unlink()
    (ast / "model.safetensors").symlink_to(secret)
    with watching(), pytest.raises(BackendError, match=r"model\.safetensors' is a link out of its folder"):
        load_network(ast)
    (ast / "model.safetensors").unlink()
    (ast / "weights.safetensors").rename(ast / "model.safetensors")
    outside = tmp_path / "outside"
    outside.mkdir()
    (ast / "part").symlink_to(outside)
    with pytest.raises(BackendError, match="is a link out of its folder"):
        load_network(ast)


def test_a_kernel_is_not_fetched(ast: Path, tmp_path: Path) -> None:
    """In an environment that has the package `kernels`, the hub's code would be fetched and imported."""
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import pathlib\n"
        f"def get_kernel(name, *a, **k): pathlib.Path({str(tmp_path / 'fetched')!r}).write_text(name)\n"
        "class _Any:\n    def __init__(self, *a, **k): pass\n"
        "    def __getattr__(self, name): return _Any()\n    def __call__(self, *a, **k): return _Any()\n"
        "    def __or__(self, other): return _Any()\n    def __iter__(self): return iter(())\n"
        "def __getattr__(name):\n    if name.startswith('__'): raise AttributeError(name)\n    return _Any\n"
    )
    metadata = tmp_path / "site" / "kernels-0.18.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.5\n")
    (metadata / "RECORD").write_text("kernels/__init__.py,,\n")
    code = (
        "import sys\nfrom and_platform.backends.networks import load_network\n"
        "from and_platform.backends.weights import refuse_code\n"
        "from and_platform.errors import BackendError\n"
        "try: load_network(sys.argv[1])\nexcept BackendError as exc: print('refused', exc)\n"
        "from transformers.integrations import hub_kernels\nrefuse_code()\n"
        "try: hub_kernels.get_kernel('evil/kernel')\nexcept (FileNotFoundError, ImportError) as exc: print('refused', exc)\n"
    )
    edit(ast / "config.json", _attn_implementation="evil/kernel")
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(ast)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])},
    )
    assert done.stdout.count("refused") == 2, done.stderr
    assert not (tmp_path / "fetched").exists()


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    folder = tmp_path / "sentences"
    folder.mkdir()
    write_sentence_transformer(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("evil.Pooling", "1_Pooling"),
        ("os.system", "1_Pooling"),
        ("sentence_transformers.util.http_get", "1_Pooling"),
        ("sentence_transformers.models.Pooling", "../1_Pooling"),
        ("sentence_transformers.models.Pooling", "/etc"),
        (3, "1_Pooling"),
        ("sentence_transformers.models.Pooling.evil", "1_Pooling"),
    ],
)
def test_modules_of_a_sentence_encoder(sentences: Path, kind: Any, path: str) -> None:
    create("encoder", f"sentence-transformers:{sentences}")
    modules = json.loads((sentences / "modules.json").read_text())
    modules[1] |= {"type": kind, "path": path}
    (sentences / "modules.json").write_text(json.dumps(modules))
    with watching(), pytest.raises(BackendError, match=r"modules\.json"):
        create("encoder", f"sentence-transformers:{sentences}")


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("sentence_bert_config.json", {"model_args": {"trust_remote_code": True}}),
        ("sentence_bert_config.json", {"model_args": {"gguf_file": "../secret.gguf"}}),
        ("sentence_bert_config.json", {"model_args": {"attn_implementation": "evil/kernel"}}),
        ("sentence_bert_config.json", {"processor_kwargs": {"tokenizer_file": "../secret.json"}}),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "evil/tokenizer"}),
        ("sentence_bert_config.json", {"config_args": {"_attn_implementation": "evil/kernel"}}),
        ("sentence_bert_config.json", {"model_args": []}),
        ("1_Pooling/config.json", {"activation_function": "evil.Function"}),
        ("1_Pooling/config.json", {"activation_function": "torch.hub.load"}),
        ("1_Pooling/config.json", {"structure": {}, "types": {"0": "evil.Module"}}),
        ("1_Pooling/config.json", {"structure": {}, "types": {"../x": "sentence_transformers.models.Pooling"}}),
        ("adapter_config.json", {"base_model_name_or_path": "evil/base", "peft_type": "LORA"}),
        ("adapter_config.json", {"megatron_config": {"x": 1}, "megatron_core": "evil"}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../secret.safetensors"]}),
        ("tokenizer_config.json", {"vocab_file": "../secret.safetensors"}),
        ("open_clip_config.json", {"model_cfg": {"text_cfg": {"hf_model_name": "evil/text"}}}),
        ("open_clip_config.json", {"model_cfg": {"vision_cfg": {"timm_model_name": "hf-hub:evil/vision"}}}),
    ],
    ids=str,
)
def test_other_files_of_a_checkpoint(sentences: Path, secret: Path, file: str, values: dict[str, Any]) -> None:
    edit(sentences / file, **values)
    with (
        watching(),
        pytest.raises(BackendError, match=file.replace(".", r"\.") if "adapter" not in file else "adapter|megatron"),
    ):
        create("encoder", f"sentence-transformers:{sentences}")


def test_what_published_checkpoints_say_is_no_harm(sentences: Path) -> None:
    """Stale paths of whoever made it, names of transformers' own, values without effect."""
    edit(
        sentences / "config.json",
        _name_or_path="/home/someone/models/base",
        attn_implementation="sdpa",
        dtype="float32",
        _attn_implementation=None,
        auto_map={"AutoModel": "modeling_bert.BertModel"},
        cache_implementation="hybrid",
    )
    edit(
        sentences / "tokenizer_config.json",
        special_tokens_map_file="/root/.cache/huggingface/x",
        model_max_length=10**30,
        tokenizer_file="/root/.cache/none",
        name_or_path="someone/base",
    )
    edit(sentences / "sentence_bert_config.json", model_args={"attn_implementation": "eager"})
    create("encoder", f"sentence-transformers:{sentences}")
    (sentences / "data_config.json").write_text("[]")  # of the training, as all-MiniLM-L6-v2 has it
    (sentences / "README.md").symlink_to("/etc/hostname")  # not a part of the model
    check_folder(sentences)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"3",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b'{"num_hidden_layers": ' + b"9" * 6000 + b"}",
        b'{"num_labels": Infinity}',
        b'{"num_hidden_layers": NaN}',
        b"\x00" * 100,
        b'{"model_type": "\\ud800"}',
        b'{"model_type": 3}',
        b'{"model_type": []}',
        b'{"model_type": null, "architectures": 3}',
    ],
    ids=lambda content: repr(content[:24]),
)
def test_a_configuration_that_is_none(ast: Path, content: bytes) -> None:
    (ast / "config.json").write_bytes(content)
    for load in (
        load_network,
        lambda path: create("encoder", f"clip:{path}"),
        lambda path: create("llm", f"transformers:{path}"),
    ):
        with pytest.raises(BackendError) as failure:
            load(ast)
        assert "\n" not in str(failure.value)
        assert str(ast) in str(failure.value)
    with pytest.raises(WeightsMissingError):
        (ast / "preprocessor_config.json").write_bytes(b"[]")
        check_folder(ast)


def test_a_command_tells_it_in_one_line(ast: Path, andp: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    edit(ast / "config.json", _attn_implementation="evil/kernel")
    done = andp("networks", "add", "hostile", str(ast), check=False)
    assert done.returncode == BackendError.exit_code
    assert done.stderr.strip().count("\n") == 0
    assert "config.json" in done.stderr
    assert "evil/kernel" in done.stderr
    assert "hostile" not in andp("networks", "list").stdout
