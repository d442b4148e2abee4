"""Model directories that must be refused: each is a small good model with one thing changed.

``python tests/hostile.py FOLDER`` makes all of them in an empty FOLDER, loads each in this process, and writes a line of JSON
for each: its name, the kind of error, and its text. It limits its own memory, and prints which one is next, so that whoever
runs it sees which one hangs.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_models import random_model
from safetensors.torch import load_file, save_file

MEMORY = 8 << 30
"""Bytes of address space, of which torch and transformers have four."""
EVIL = "import sys\nsys.evil = True\n"

Change = Callable[[Path], object]


def text(file: str, content: str | bytes) -> Change:
    return lambda d: (d / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def said(file: str, **options: Any) -> Change:
    """Change options of a JSON file; ``json`` writes NaN and Infinity as Python does."""

    def change(folder: Path) -> None:
        path = folder / file
        old = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(old | options))

    return change


def config(**options: Any) -> Change:
    return said("config.json", **options)


def raw(name: str, value: str) -> Change:
    """Add an option to config.json in its own spelling, after one that it has already."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(path.read_text().rstrip().rstrip("}") + f', "{name}": {value}}}')

    return change


def without(name: str) -> Change:
    def change(folder: Path) -> None:
        kept = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != name}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def huge(file: str, size: int) -> Change:
    """A file of ``size`` bytes that takes no room on the disk."""
    return lambda d: ((d / file).touch(), os.truncate(d / file, size))


def gone(*files: str) -> Change:
    return lambda d: [(d / file).unlink() for file in files]


def both(*changes: Change) -> Change:
    return lambda d: [change(d) for change in changes]


def link(file: str, to: str) -> Change:
    def change(folder: Path) -> None:
        (folder.parent / "secret").write_text("{{ messages[0].content }} a secret")
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(to)

    return change


def pipe(file: str) -> Change:
    return lambda d: ((d / file).unlink(missing_ok=True), os.mkfifo(d / file))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def changed(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", {"format": "pt"})

    return changed


def header(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change what the header of the safetensors file says of its tensors."""

    def changed(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        told = json.loads(data[8 : 8 + size])
        change(told)
        new = json.dumps(told).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(new)) + new + data[8 + size :])

    return changed


def sharded(names: Callable[[str], Any]) -> Change:
    """Replace the weights by two equal shards and an index in which ``names(tensor)`` says where each tensor is."""

    def change(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        for place in ("a.safetensors", "b.safetensors", "../b.safetensors"):
            shutil.copy(folder / "model.safetensors", folder / place)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {x: names(x) for x in held}}))

    return change


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Change:
    def changed(folder: Path) -> None:
        told = json.loads((folder / "tokenizer.json").read_text())
        change(told)
        (folder / "tokenizer.json").write_text(json.dumps(told))

    return changed


def more_tokens(told: dict[str, Any]) -> None:
    vocabulary = told["model"]["vocab"]
    vocabulary |= {f"more{i}": max(vocabulary.values()) + 1 + i for i in range(1000)}


def template(content: str) -> Change:
    return text("chat_template.jinja", content)


def sealed(change: Callable[[dict[str, Any]], object]) -> Change:
    """Make a checkpoint of the directory, and change its manifest."""

    def changed(folder: Path) -> None:
        from twofold.models import checkpoints

        (folder / "trainer").mkdir()
        checkpoints.seal(folder, 1)
        file = folder / checkpoints.MANIFEST
        told = json.loads(file.read_text())
        change(told)
        file.write_text(json.dumps(told, indent=1) + "\n")

    return changed


def head(kind: str, *shape: int) -> Change:
    def change(folder: Path) -> None:
        (folder / "head").mkdir()
        held = {"weight": torch.zeros(shape), "bias": torch.zeros(1)}
        save_file(held, folder / "head" / "value_head.safetensors", {"kind": kind})

    return change


def state(content: str) -> Change:
    return text("trainer_state.json", content)


LOOP = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set ns = namespace(x='aa') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
CUSTOM = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", "evil.T"]}
NORM, EMBED = "model.norm.weight", "model.embed_tokens.weight"


def first(told: dict[str, Any]) -> dict[str, Any]:
    return next(v for k, v in told.items() if k != "__metadata__")


LLAMA: dict[str, Change] = {
    "config: not JSON": text("config.json", "{"),
    "config: empty": text("config.json", ""),
    "config: a list": text("config.json", "[]"),
    "config: deep": text("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000),
    "config: large": huge("config.json", 65 << 20),
    "config: not UTF-8": text("config.json", b'{"a": "\xff"}'),
    "config: NUL": text("config.json", b"\0" * 100),
    "config: not there": gone("config.json"),
    "config: a folder": both(gone("config.json"), lambda d: (d / "config.json").mkdir()),
    "config: a name twice": raw("num_hidden_layers", "2"),
    "config: a number of 10,000 digits": raw("x", "1" * 10_000),
    "config: eps NaN": config(rms_norm_eps=float("nan")),
    "config: eps infinite": config(rms_norm_eps=float("inf")),
    "config: eps 1e999": both(without("rms_norm_eps"), raw("rms_norm_eps", "1e999")),
    "config: eps a text": config(rms_norm_eps="1e-6"),
    "config: eps negative": config(rms_norm_eps=-1e-6),
    "config: eps a flag": config(rms_norm_eps=True),
    "config: hidden size negative": config(hidden_size=-32),
    "config: hidden size a text": config(hidden_size="32"),
    "config: hidden size 33": config(hidden_size=33),
    "config: hidden size 2.5": config(hidden_size=2.5),
    "config: hidden size 2^40": config(hidden_size=2**40),
    "config: hidden size a million": config(hidden_size=1_000_000),
    "config: layers 10^9": config(num_hidden_layers=10**9),
    "config: layers 9000": config(num_hidden_layers=9000),
    "config: layers 1 of 2": config(num_hidden_layers=1),
    "config: layers 3 of 2": config(num_hidden_layers=3),
    "config: layers a flag": config(num_hidden_layers=True),
    "config: vocabulary 10^9": config(vocab_size=10**9),
    "config: vocabulary 500 of 512": config(vocab_size=500),
    "config: feed-forward 10^9": config(intermediate_size=10**9),
    "config: heads 0": config(num_attention_heads=0),
    "config: heads 3": config(num_attention_heads=3),
    "config: heads 8 of 4": config(num_attention_heads=8, head_dim=None),
    "config: positions -1": config(max_position_embeddings=-1),
    "config: rope a text": config(rope_parameters="default"),
    "config: rope of a kind that is none": config(rope_parameters={"rope_type": "evil", "rope_theta": 1e4}),
    "config: rope 0": config(rope_parameters={"rope_type": "default", "rope_theta": 0}),
    "config: architectures a number": config(architectures=7, model_type="evil"),
    "code: model": both(config(model_type="evil", auto_map=CUSTOM), text("evil.py", EVIL)),
    "code: tokenizer": both(
        config(model_type="evil", architectures=["Evil"]),
        said("tokenizer_config.json", tokenizer_class="Evil", auto_map=CUSTOM),
        text("evil.py", EVIL),
    ),
    "code: attention of a hub": config(attn_implementation="evil/kernel"),
    "code: attention of a hub, as it is saved": config(_attn_implementation="evil/kernel"),
    "code: flash attention": config(attn_implementation="flash_attention_2"),
    "code: attention of a part": config(attn_implementation={"text_config": "evil/kernel"}),
    "code: experts of a hub": config(text_config={"experts_implementation": "evil/kernel"}),
    "code: quantised": config(quantization_config={"quant_method": "mxfp4"}),
    "code: pickle": both(gone("model.safetensors"), text("pytorch_model.bin", b"\x80\x04cos\nsystem\n")),
    "code: an adapter": text("adapter_config.json", '{"base_model_name_or_path": "evil/model"}'),
    "weights: in another file": config(transformers_weights="../b.safetensors"),
    "weights: not there": gone("model.safetensors"),
    "weights: empty": text("model.safetensors", b""),
    "weights: header of 2^60 bytes": text("model.safetensors", struct.pack("<Q", 2**60) + b"{}"),
    "weights: header not JSON": text("model.safetensors", struct.pack("<Q", 4) + b"}{}{"),
    "weights: cut": lambda d: os.truncate(d / "model.safetensors", 5000),
    "weights: overlapping": header(lambda h: first(h).update(data_offsets=[0, 8])),
    "weights: beyond the end": header(lambda h: first(h).update(data_offsets=[0, 2**50])),
    "weights: offsets negative": header(lambda h: first(h).update(data_offsets=[-4, 0])),
    "weights: a type that is none": header(lambda h: first(h).update(dtype="EVIL")),
    "weights: a shape of 2^60": header(lambda h: first(h).update(shape=[2**60])),
    "weights: whole numbers": weights(lambda w: w.update({EMBED: w[EMBED].to(torch.int8)})),
    "weights: NaN": weights(lambda w: w[NORM].fill_(float("nan"))),
    "weights: one infinite": weights(lambda w: w[EMBED][3].fill_(float("-inf"))),
    "weights: one missing": weights(lambda w: w.pop(NORM)),
    "weights: one more": weights(lambda w: w.update({"model.layers.1.extra": torch.zeros(3)})),
    "weights: another shape": weights(lambda w: w.update({NORM: torch.zeros(31)})),
    "index: outside": sharded(lambda x: "../b.safetensors"),
    "index: absolute": sharded(lambda x: "/etc/passwd"),
    "index: pickle": sharded(lambda x: "a.bin"),
    "index: no text": sharded(lambda x: 7),
    "index: a file that is not there": sharded(lambda x: "c.safetensors"),
    "index: a tensor in two files": sharded(lambda x: "a.safetensors" if "norm" in x else "b.safetensors"),
    "index: no map": both(gone("model.safetensors"), text("model.safetensors.index.json", '{"weight_map": []}')),
    "tokenizer: not there": gone("tokenizer.json", "tokenizer_config.json"),
    "tokenizer: not JSON": text("tokenizer.json", "{"),
    "tokenizer: large": huge("tokenizer.json", 3 << 30),
    "tokenizer: deep": text("tokenizer.json", '{"a":' * 100_000 + "1" + "}" * 100_000),
    "tokenizer: no model": tokenizer(lambda t: t.pop("model")),
    "tokenizer: a merge of nothing": tokenizer(lambda t: t["model"].update(merges=[["zz", "qq"]])),
    "tokenizer: more tokens than embeddings": tokenizer(more_tokens),
    "tokenizer: a list": text("tokenizer_config.json", "[]"),
    "tokenizer: no end": said("tokenizer_config.json", eos_token=None),
    "tokenizer: an end that is no text": said("tokenizer_config.json", eos_token={"a": {"b": []}}),
    "template: 2 GB": huge("chat_template.jinja", 2 << 30),
    "template: 2 MB in the tokenizer's config": both(
        gone("chat_template.jinja"), said("tokenizer_config.json", chat_template="a" * (2 << 20))
    ),
    "template: a loop": template(LOOP),
    "template: an attribute": template("{{ ''.__class__.__mro__ }}"),
    "template: raises": template("{{ raise_exception('no') }}"),
    "template: memory": template("{{ 'a' * 10**10 }}"),
    "template: doubling": template(DOUBLING),
    "template: writes too much": template("{% for a in range(90000) %}{{ 'a' * 1000 }}{% endfor %}"),
    "template: calls itself": template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    "template: no template": template("{% for"),
    "template: leaves the question out": template("hello"),
    "template: a number": both(gone("chat_template.jinja"), said("tokenizer_config.json", chat_template=7)),
    "stop: a text": said("generation_config.json", eos_token_id="</s>"),
    "stop: negative": said("generation_config.json", eos_token_id=-1),
    "stop: a list in a list": said("generation_config.json", eos_token_id=[[3]]),
    "stop: a flag": said("generation_config.json", eos_token_id=True),
    "stop: beyond the vocabulary": said("generation_config.json", eos_token_id=[3, 10**6]),
    "stop: not JSON": text("generation_config.json", "nonsense"),
    "file: a link outside": link("chat_template.jinja", "../secret"),
    "file: a link to nothing": link("generation_config.json", "nothing"),
    "file: a link to itself": link("config.json", "config.json"),
    "file: a pipe for the config": pipe("config.json"),
    "file: a pipe for the weights": pipe("model.safetensors"),
    "file: a device": link("tokenizer_config.json", "/dev/zero"),
    "checkpoint: another hash": sealed(lambda m: m["files"].update({"config.json": "0" * 64})),
    "checkpoint: a file outside": sealed(lambda m: m["files"].update({"../secret": "0" * 64})),
    "checkpoint: a list of files": sealed(lambda m: m.update(files=[])),
    "checkpoint: a step that is none": sealed(lambda m: m.update(step="1")),
    "checkpoint: deep": both(
        lambda d: (d / "trainer").mkdir(), text("trainer/manifest.json", '{"a":' * 100_000 + "1" + "}" * 100_000)
    ),
    "state: a question that is no text": state('{"question": 5}'),
    "state: a score that is no number": state('{"recipe": {"last_token": 0, "scale": "x", "reference": -20}}'),
    "state: a score of a token that is none": state('{"recipe": {"last_token": -1, "scale": 1, "reference": -20}}'),
    "state: deep": state("[" * 100_000),
    "head: another width": head("bce", 1, 31),
    "head: another kind": head("evil", 1, 32),
}  # fmt: skip
PHI3: dict[str, Change] = {
    f"by transformers: {name}": LLAMA[f"config: {name}"]
    for name in (
        "eps NaN", "eps a text", "hidden size negative", "hidden size 33", "hidden size a million", "layers 10^9",
        "layers 9000", "layers 1 of 2", "vocabulary 10^9", "heads 3", "rope a text",
    )
} | {
    f"by transformers: {name}": LLAMA[f"weights: {name}"]
    for name in ("NaN", "one missing", "one more", "another shape", "cut", "overlapping")
}  # fmt: skip


def string(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def gguf(tensors: int, fields: int, rest: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + rest


ARCHITECTURE = string(b"general.architecture") + struct.pack("<I", 8) + string(b"llama")
GGUF: dict[str, Callable[[bytes], bytes]] = {
    "not GGUF": lambda good: b"EVIL" + good[4:],
    "version 99": lambda good: good[:4] + struct.pack("<I", 99) + good[8:],
    "cut": lambda good: good[: len(good) // 2],
    "2^40 tensors": lambda good: good[:8] + struct.pack("<Q", 2**40) + good[16:],
    "2^60 fields": lambda good: good[:16] + struct.pack("<Q", 2**60) + good[24:],
    "a name of 2^60 bytes": lambda good: gguf(0, 1, struct.pack("<Q", 2**60) + b"general.architecture"),
    "a text of 2^60 bytes": lambda good: gguf(
        0, 1, string(b"general.architecture") + struct.pack("<IQ", 8, 2**60) + b"llama"),
    "a list of 2^50 numbers": lambda good: gguf(
        0, 2, ARCHITECTURE + string(b"x") + struct.pack("<IIQ", 9, 4, 2**50) + b"\0" * 64),
    "a list of 2^50 texts": lambda good: gguf(
        0, 2, ARCHITECTURE + string(b"x") + struct.pack("<IIQ", 9, 8, 2**50) + b"\0" * 64),
    "lists in lists": lambda good: gguf(
        0, 2, ARCHITECTURE + string(b"x") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000),
    "a type of value that is none": lambda good: gguf(0, 2, ARCHITECTURE + string(b"x") + struct.pack("<IQ", 77, 1)),
    "no fields": lambda good: gguf(0, 1, ARCHITECTURE),
    "a tensor of 2^32 dimensions": lambda good: gguf(
        1, 1, ARCHITECTURE + string(b"token_embd.weight") + struct.pack("<IQ", 2**32 - 1, 1)),
    "layers 10^9": lambda good: good.replace(
        b"llama.block_count" + struct.pack("<II", 4, 2), b"llama.block_count" + struct.pack("<II", 4, 10**9)),
    "layers 3 of 2": lambda good: good.replace(
        b"llama.block_count" + struct.pack("<II", 4, 2), b"llama.block_count" + struct.pack("<II", 4, 3)),
    "an end beyond the vocabulary": lambda good: good.replace(
        b"eos_token_id" + struct.pack("<II", 4, 3), b"eos_token_id" + struct.pack("<II", 4, 10**6)),
    "NaN": lambda good: good[:-64] + b"\xff" * 64,
}  # fmt: skip


def make(folder: Path) -> dict[str, Path]:
    """Make the directories and files in ``folder``. Return their places by their names."""
    found = {}
    bases = {"Llama": (LLAMA, {"head_dim": 8}), "Phi3": (PHI3, {"layer_types": None})}
    for family, (changes, options) in bases.items():
        base = random_model(family, folder / family, **options)
        for i, (name, change) in enumerate(changes.items()):
            found[name] = folder / f"{family}{i}" / "m"
            shutil.copytree(base, found[name])
            change(found[name])
    from gguf_files import write_gguf

    good = write_gguf(folder / "Llama", folder / "good.gguf").read_bytes()
    for i, (name, told) in enumerate(GGUF.items()):
        assert told(good) != good, name
        found[f"GGUF: {name}"] = folder / f"{i}.gguf"
        found[f"GGUF: {name}"].write_bytes(told(good))
    os.mkfifo(folder / "pipe.gguf")
    return found | {"GGUF: a pipe": folder / "pipe.gguf"}


def main(folder: Path, only: str = "") -> None:
    import twofold as tf

    found = make(folder)
    for base in ("Llama", "Phi3", "good.gguf"):
        tf.load(folder / base)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for name, path in found.items():
        if only not in name:
            continue
        print(json.dumps({"next": name}), flush=True)
        began, kind, line = time.process_time(), "", ""
        try:
            tf.load(path)
        except BaseException as error:  # also a panic of Rust, which is no Exception
            kind, line = type(error).__name__, str(error)
        seconds = round(time.process_time() - began, 2)
        print(json.dumps({"name": name, "kind": kind, "line": line, "path": str(path), "seconds": seconds}), flush=True)
    print(json.dumps({"ran": hasattr(sys, "evil")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
