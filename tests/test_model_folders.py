"""What a model folder of a user may do: run nothing, lack nothing, and change nothing unseen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_llm_families import FAMILIES, write_llm

from flows.preflight import check_training
from medad_core.config import load_settings
from medad_core.errors import WeightsError
from medad_core.llm import embeddings
from medad_core.llm.embeddings import find_embeddings
from medad_core.llm.engine import llm_fingerprint, llm_folder
from medad_core.llm.lora import check_lora, merged, save_lora
from medad_core.llm.prompt import Prompt
from medad_core.llm.template import word
from medad_core.llm.transformers_engine import load_llm
from medad_core.models import loading
from medad_core.models.cache import sha256_of
from medad_core.models.encoder import encoder_fingerprint, load_encoder
from medad_core.models.loading import load_tokenizer
from medad_core.models.text import text_encoder_fingerprint, text_encoder_folder
from medad_core.run.fingerprints import answers_fingerprint

DATED = (
    "{{ bos_token }}"
    "{%- if not date_string is defined %}"
    "{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}"
    "Today Date: {{ date_string }}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
)


@pytest.fixture
def llm(tmp_path) -> Path:
    return write_llm(FAMILIES["qwen2"](), tmp_path / "qwen2")


@pytest.fixture
def encoder(tmp_path) -> Path:
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


def rewrite(folder: Path, **facts) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


LOOKS = {
    "encoder": "from medad_core.models.encoder import load_encoder; load_encoder(sys.argv[1])",
    "text encoder": "from medad_core.models.text import load_text_encoder; load_text_encoder(sys.argv[1])",
    "llm": "from medad_core.llm.prompt import Prompt; Prompt(Path(sys.argv[1]))",
    "llm itself": "from medad_core.llm.transformers_engine import load_llm; load_llm(Path(sys.argv[1]))",
}


@pytest.mark.parametrize("role", LOOKS)
def test_code_in_a_folder_is_not_run_and_nobody_is_asked(llm, role):
    own = (
        "from pathlib import Path\n"
        "from transformers import Qwen2Config as Own, Qwen2ForCausalLM as Model\n"
        f"Path({str(llm / 'ran')!r}).touch()\n"
    )
    (llm / "conf.py").write_text(own)
    rewrite(llm, model_type="of_our_own", auto_map={"AutoConfig": "conf.Own", "AutoModelForCausalLM": "conf.Model"})
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from medad_core.errors import WeightsError\n"
        f"try:\n    {LOOKS[role]}\n"
        "except WeightsError as error:\n    print('refused', error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HF_HOME": str(llm.parent / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(llm)], input="y\ny\n", capture_output=True, text=True, env=environment
    )
    assert done.stdout.startswith("refused") and done.stdout.count("\n") == 1, done.stdout + done.stderr
    assert not (llm / "ran").exists()


@pytest.mark.parametrize("lost", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
def test_an_llm_that_lacks_a_weight_is_refused_rather_than_filled_with_random_numbers(llm, lost):
    tensors = load_file(llm / "model.safetensors")
    del tensors[lost]
    save_file(tensors, llm / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=lost):
        load_llm(llm)


def test_more_layers_than_weights_are_refused_before_transformers_reads_of_them(encoder, llm, monkeypatch):
    monkeypatch.setattr(loading, "read_config", lambda _folder: pytest.fail("it makes lists of ten million"))
    for folder, load in ((encoder, load_encoder), (llm, load_llm), (llm, find_embeddings)):
        rewrite(folder, num_hidden_layers=10**7)
        with pytest.raises(WeightsError, match="10000000 layers, and its files hold"):
            load(str(folder) if load is load_encoder else folder)


def test_a_thread_that_asks_for_a_tokenizer_again_gets_the_same_until_a_file_changes(llm):
    read = load_tokenizer(llm)
    assert load_tokenizer(llm) is read
    with ThreadPoolExecutor(1) as other:
        assert other.submit(load_tokenizer, llm).result() is not read, "to pad in one thread would change it in both"
    (llm / "chat_template.jinja").write_text(DATED)
    assert load_tokenizer(llm) is not read and load_tokenizer(llm).chat_template == DATED


def test_transformers_is_asked_once_for_the_embeddings_of_a_configuration(llm, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDAD_CACHE", str(tmp_path / "cache"))
    asked, ask = [], embeddings._ask
    monkeypatch.setattr(embeddings, "_ask", lambda folder: asked.append(folder) or ask(folder))
    found = find_embeddings(llm)
    assert find_embeddings(llm) == found and len(asked) == 1
    rewrite(llm, rms_norm_eps=1e-4)
    assert find_embeddings(llm) == found and len(asked) == 2
    for record in (tmp_path / "cache").glob("embeddings-*.json"):
        record.write_text('{"names": 1}')
    assert find_embeddings(llm) == found and len(asked) == 3
    rewrite(llm, model_type="bert", architectures=["BertModel"])
    for _ in range(2):
        with pytest.raises(WeightsError):
            find_embeddings(llm)


CHECK = """
import sys
from medad_core.config import load_settings
from medad_core.run.run import check_models
check_models(load_settings(None, ["llm.engine=transformers"]))
print(sorted(name for name in sys.modules if name.endswith(("modeling_auto", "generation.utils")) or name == "sklearn"))
"""


def test_the_checks_before_a_run_import_no_models_of_transformers():
    find_embeddings(llm_folder("smollm2-135m"))
    checked = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True)
    assert checked.stdout.strip() == "[]"


def test_tied_heads_are_not_missed(tmp_path):
    config = FAMILIES["qwen2"]()
    config.tie_word_embeddings = True
    folder = write_llm(config, tmp_path / "tied")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    load_llm(folder)


def test_a_chat_template_that_tells_the_date_tells_the_same_one_tomorrow(llm):
    (llm / "chat_template.jinja").write_text(DATED)
    assert "Today Date: 26 Jul 2024<" in word(llm, "chat", False).text


def test_a_truncated_llm_is_one_line_wherever_it_is_looked_into(llm):
    file = llm / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for look in (Prompt, load_llm):
        with pytest.raises(WeightsError, match=r"get (it|the model) again"):
            look(llm)


@pytest.fixture
def adapter(llm, tmp_path) -> Path:
    shape = load_file(llm / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].shape
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora"
    save_lora(
        tmp_path / "adapter",
        {f"{name}_A.weight": torch.randn(4, shape[1]), f"{name}_B.weight": torch.randn(shape[0], 4)},
        alpha=8,
    )
    check_lora(llm, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "text", ['{"r": 4,', "[]", '{"peft_type": "LORA", "r": 4}', '{"peft_type": "LORA", "r": 0, "lora_alpha": 1}']
)
def test_an_adapter_with_a_damaged_configuration_is_one_line(llm, adapter, text):
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"adapter_config\.json"):
        check_lora(llm, adapter)


@pytest.mark.parametrize(
    "facts", [{"init_lora_weights": "pissa"}, {"layer_replication": [[0, 1]]}, {"use_qalora": True}, {"use_dora": True}]
)
def test_an_adapter_of_more_than_plain_lora_is_refused(llm, adapter, facts):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    with pytest.raises(WeightsError, match=f"no plain LoRA.*{next(iter(facts))}"):
        check_lora(llm, adapter)


def test_an_adapter_whose_rank_is_not_the_one_it_says_is_refused(llm, adapter):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 64}))
    with pytest.raises(WeightsError, match=r"says rank 64, its matrix .* has 4"):
        check_lora(llm, adapter)


def test_a_merged_copy_follows_the_chat_template_of_its_model(llm, adapter, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDAD_CACHE", str(tmp_path / "cache"))
    (llm / "source.json").write_text("{}")  # a model that was converted itself
    first = merged(llm, adapter)
    record = json.loads((first / "source.json").read_text())
    assert record["files"] == {file.name: sha256_of(file) for file in first.iterdir() if file.name != "source.json"}
    assert merged(llm, adapter) == first and (first / "model.safetensors").stat().st_mode & 0o044
    (llm / "chat_template.jinja").write_text(DATED)
    assert (merged(llm, adapter) / "chat_template.jinja").read_text() == DATED


def clip_of(folder: Path) -> Path:
    text = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}
    transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=text, vision_config={**text, "image_size": 28, "patch_size": 14}, projection_dim=16
        )
    ).save_pretrained(folder)
    return folder


def test_training_refuses_an_llm_that_cannot_be_asked_before_any_work(llm, tmp_path):
    check_training(load_settings(None, [f"llm.model={llm}"]))
    cases = {
        "no chat template": [f"llm.model={llm}", "llm.template=chat"],
        "no causal language model": [f"llm.model={clip_of(tmp_path / 'clip')}"],
        "lora": [f"llm.model={llm}", f"llm.lora={tmp_path / 'absent'}"],
    }
    for file in [*llm.glob("chat_template*"), llm / "tokenizer_config.json"]:
        if file.suffix == ".json":
            facts = json.loads(file.read_text())
            facts.pop("chat_template", None)
            file.write_text(json.dumps(facts))
        else:
            file.unlink()
    for file in llm.glob("*token*"):
        (tmp_path / "clip" / file.name).write_bytes(file.read_bytes())
    for says, words in cases.items():
        with pytest.raises(WeightsError, match=says):
            check_training(load_settings(None, words))


def test_a_configuration_belongs_to_what_determines_features_and_answers(encoder, llm):
    before = encoder_fingerprint(str(encoder)), llm_fingerprint(str(llm))
    rewrite(encoder, layer_norm_eps=1e-3)
    rewrite(llm, rms_norm_eps=1e-3)
    assert encoder_fingerprint(str(encoder)) != before[0] and llm_fingerprint(str(llm)) != before[1]


def test_who_wrote_a_configuration_does_not_belong_to_it(encoder):
    before = encoder_fingerprint(str(encoder))
    rewrite(encoder, transformers_version="0.0.0", _name_or_path="elsewhere", torch_dtype="float16")
    assert encoder_fingerprint(str(encoder)) == before


def test_a_tokenizer_belongs_to_what_determines_texts(tmp_path):
    folder = Path(shutil.copytree(text_encoder_folder(load_settings(None, []).models.text_encoder), tmp_path / "bert"))
    before = text_encoder_fingerprint(str(folder))
    facts = json.loads((folder / "tokenizer.json").read_text())
    facts["normalizer"]["lowercase"] = not facts["normalizer"]["lowercase"]
    (folder / "tokenizer.json").write_text(json.dumps(facts))
    assert text_encoder_fingerprint(str(folder)) != before


def test_the_shipped_llms_tokenizer_is_that_of_auto_tokenizer_without_what_generates():
    folder = llm_folder(load_settings(None, []).llm.model)
    ours = load_tokenizer(folder)
    auto = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert type(ours) is type(auto) and ours.init_kwargs == auto.init_kwargs
    assert ours.backend_tokenizer.to_str() == auto.backend_tokenizer.to_str()
    assert ours.chat_template == auto.chat_template and ours.special_tokens_map == auto.special_tokens_map
    code = f"""
import sys
from pathlib import Path
from medad_core.models.loading import load_tokenizer
load_tokenizer(Path({str(folder)!r}))
print([name for name in ("sklearn", "transformers.generation", "torch._dynamo") if name in sys.modules])
"""
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_chat_template_belongs_to_what_determines_answers(llm):
    settings = load_settings(None, [f"llm.model={llm}", "llm.template=chat"])
    before = answers_fingerprint(settings)
    (llm / "chat_template.jinja").write_text(DATED)
    assert answers_fingerprint(settings) != before


def test_packaged_models_keep_the_fingerprints_that_embedded_weights_were_made_for():
    settings = load_settings(None, [])
    assert "wording" not in answers_fingerprint(settings)
    for prints in (
        encoder_fingerprint(settings.models.encoder),
        text_encoder_fingerprint(settings.models.text_encoder),
        llm_fingerprint(settings.llm.model),
    ):
        assert all(len(value) == 64 for name, value in prints.items() if name.endswith("sha256"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
            "5 s or 1024 MiB",
        ),
        ("{{ 'a' * 10 ** 10 }}", "5 s or 1024 MiB"),
        ("{% if %}", "cannot be used"),
        ("{{ raise_exception('system is not supported') }}", "system is not supported"),
        ("{{ messages[9].content }}", "cannot be used"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be used"),
        ("Hello.", "does not give the question once"),
        ("{% for message in messages * 2 %}{{ message.content }}{% endfor %}", "does not give the question once"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_one_line_before_any_work(llm, template, said):
    (llm / "chat_template.jinja").write_text(template)
    started = time.monotonic()
    with pytest.raises(WeightsError, match=said) as refusal:
        word(llm, "chat", False)
    assert "\n" not in str(refusal.value) and time.monotonic() - started < 60
