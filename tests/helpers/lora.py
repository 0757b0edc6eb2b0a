"""Reward models that are LoRA adapters on a language model's own base."""

import copy
import functools

import peft
import torch
import transformers as t
from tiny_models import attention, decoder, language_model

from args_fast.rewards import Adapter, Head

# The linear layers of an architecture, by name: of the fused layers' families, all of them.
MODULES = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gemma2": ["q_proj", "v_proj", "down_proj"],
    "mistral": ["q_proj", "v_proj", "down_proj"],
    "qwen3": ["q_proj", "k_proj", "o_proj", "up_proj"],
}
SAVED = ["score"]


@torch.no_grad()
def classifier_on(lm, seed=0):
    """A sequence classifier with the base weights of a language model, and a head of its own."""
    torch.manual_seed(seed)
    name = "gemma2" if lm.config.model_type == "gemma2" else ""
    model = t.AutoModelForSequenceClassification.from_config(lm.config, **attention(name))
    model.base_model.load_state_dict(lm.base_model.state_dict())
    return model.to(lm.dtype).eval()


@torch.no_grad()
def adapted(lm, seed=6, **options):
    """A PeftModel on a language model's base. What it has trained is large, biases included."""
    name = next(name for name in MODULES if lm.config.model_type == name)
    options = {"r": 4, "lora_alpha": 8, "target_modules": MODULES[name]} | options
    config = peft.LoraConfig(
        task_type="SEQ_CLS", init_lora_weights=False, modules_to_save=SAVED, **options
    )
    model = peft.get_peft_model(classifier_on(lm, seed), config).eval()
    torch.manual_seed(seed)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.normal_(std=0.3 if "lora" in key else 0.5)
    return model


@functools.cache
def pair(name="llama", layers=2, **options):
    """A language model, and an adapter on it."""
    lm = language_model(name, layers)
    return lm, adapted(
        lm, **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
    )


def of_text(model):
    """What peft's model gives for a text, without merging."""
    whole = model.get_base_model()

    @torch.no_grad()
    def many(texts):
        hidden = whole.base_model(torch.tensor(texts)).last_hidden_state[:, -1]
        return whole.score(hidden)[:, 0].tolist()

    def reward(ids):
        return many([ids])[0]

    reward.many = many
    return reward


def merged(model):
    """A separate model, merged by peft."""
    return copy.deepcopy(model).merge_and_unload().eval()


def head_on(lm):
    """A head on a language model, and what it gives for a text."""
    with torch.no_grad():
        width = lm.base_model(torch.tensor([[5]])).last_hidden_state.shape[2]
    torch.manual_seed(0)
    head = torch.nn.Linear(width, 1)

    @torch.no_grad()
    def many(texts):
        return head(lm.base_model(torch.tensor(texts)).last_hidden_state[:, -1])[:, 0].tolist()

    def reward(ids):
        return many([ids])[0]

    reward.many = many
    return Head(head), reward


@functools.cache
def mixed():
    """A model of its own, two adapters and a head, on one language model, by name; and those of the
    last three as functions of a text."""
    lm = language_model()
    head, of_hidden = head_on(lm)
    models = {"adapter": adapted(lm, seed=3), "other": adapted(lm, seed=4, r=2, use_rslora=True)}
    made = {"reward": decoder().engine.panel.rewards["reward"], "head": head}
    made |= {name: Adapter(model) for name, model in models.items()}
    for reward in made.values():
        reward.attach(decoder().engine.lm, None)
    assert made["adapter"].shares_weights
    assert made["other"].shares_weights
    return made, {"head": of_hidden} | {name: of_text(model) for name, model in models.items()}
