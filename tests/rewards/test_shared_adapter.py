"""An adapter on the language model's own weights: the oracle's tokens, with one copy of them."""

import copy
import dataclasses
import gc
import logging

import lora
import oracle
import peft
import pytest
import torch
from cpp_ops import needs_cpp
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_rewards import OnHost, liking
from passes import reads_per_token
from refusals import refuses
from sizes import examples
from tiny_models import ORDERS, language_model, reward_model, tokens
from ways import fused_up_to, rows_by_way

from args_fast import ArgsDecoder, DecodingConfig, quantization
from args_fast.engine.engine import Engine
from args_fast.errors import NonFiniteError
from args_fast.models import low_rank
from args_fast.models.fused import FusedLayers
from args_fast.ops import cpp
from args_fast.rewards import Adapter, Classifier, Head

MARGIN = 1e-5
STEPS = 6


def decoder(lm, model, order="cpu", fused=True, **options):
    """A decoder over an adapter, whose engine works in one of the orders."""
    pair = ArgsDecoder(lm, Adapter(model, **options), fused_layers=fused)
    rewards = pair.engine.panel.rewards
    how = {name: x for name, x in ORDERS[order].items() if name != "recorded"}
    pair.engine = Engine(pair.engine.lm, rewards, pages=60, rows=8, **how)
    return pair


def reward_of(pair):
    (reward,) = pair.engine.panel.rewards.values()
    return reward


# ---- tokens --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    name: str = "llama"
    r: int = 4
    alpha: int = 8
    rslora: bool = False
    bias: str = "none"
    lora_bias: bool = False
    modules: int = 9  # how many of the linear layers
    layers: tuple | None = None
    ranks: bool = False
    k: int = 5
    w: float = 2.0
    temperature: float | None = None
    order: str = "ahead"
    fused: bool = False

    def pair(self):
        modules = lora.MODULES[self.name][: self.modules]
        options = {"r": self.r, "lora_alpha": self.alpha, "use_rslora": self.rslora}
        if self.ranks:
            options |= {"rank_pattern": {modules[0]: 7}, "alpha_pattern": {modules[-1]: 31}}
        if self.lora_bias and self.name in ("opt", "gpt2"):
            options |= {"lora_bias": True}
        if self.layers is not None:
            options |= {"layers_to_transform": list(self.layers)}
        lm = language_model(self.name)
        return lm, lora.adapted(lm, target_modules=modules, bias=self.bias, **options)


CASES = st.builds(
    Case,
    name=st.sampled_from(sorted(lora.MODULES)),
    r=st.integers(1, 9),
    alpha=st.integers(1, 32),
    rslora=st.booleans(),
    bias=st.sampled_from(["none", "lora_only"]),
    lora_bias=st.booleans(),
    modules=st.integers(1, 9),
    layers=st.sampled_from([None, (1,)]),
    ranks=st.booleans(),
    k=st.sampled_from([1, 2, 5, 20]),
    w=st.sampled_from([0.0, 2.0, -1.0]),
    temperature=st.none() | st.just(0.7),
    order=st.sampled_from(["cpu", "bursts", "ahead"]),
    fused=st.booleans(),
)


def check(case):
    """The engine's tokens are the oracle's with peft's own forward, and the rewards those of a
    separate model that is merged by peft, too."""
    lm, model = case.pair()
    pair = decoder(lm, model, case.order, case.fused)
    reward = reward_of(pair)
    assert reward.shares_weights
    known = case.fused and case.name != "gemma2" and cpp.status() == "built"
    assert (reward.adapted.fused_layers() is not None) == known
    assert reward.joins == (case.name != "gemma2")
    options = {"k": case.k, "w": case.w, "temperature": case.temperature}
    config = DecodingConfig(max_new_tokens=STEPS, eos_token_ids=[], **options)
    prompts = [tokens(n, seed=n) for n in (9, 1, 23)]
    close = {"abs": 1e-4, "rel": 1e-4, "nan_ok": True}
    whole = lora.merged(model)
    for prompt, result in zip(prompts, pair.generate(prompts, config), strict=True):
        wanted = oracle.decode(lm, lora.of_text(model), prompt, steps=STEPS, **options)
        if wanted.margin < MARGIN:
            continue
        assert result.token_ids == wanted.tokens
        assert result.rewards == pytest.approx(wanted.rewards, **close)
        texts = [[*prompt, *wanted.tokens[: i + 1]] for i in range(STEPS)]
        merged = [oracle.reward(whole, text) for text in texts]
        assert pair.token_rewards(prompt, result.token_ids) == pytest.approx(merged, **close)
    assert pair.cache.pages_in_use == 0


@settings(max_examples=examples(12))
@given(CASES)
def test_the_tokens_are_the_oracles(case):
    check(case)


# In the plain order and in one pass; through the modules in that order one is enough.
WAYS = [
    (name, *way)
    for name in sorted(lora.MODULES)
    for way in ((True, "cpu"), (True, "ahead"), (False, "ahead"))
]
WAYS += [("gpt2", False, "cpu")]


@pytest.mark.parametrize(("name", "fused", "order"), WAYS)
def test_architectures(name, fused, order):
    check(Case(name=name, fused=fused, order=order, ranks=True, rslora=True, bias="lora_only"))


@needs_cpp
@pytest.mark.parametrize("layers", [(1,), (0, 2)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_layers_below_the_first_term_are_run_once(name, layers):
    """In one pass; the keys and values of these layers are the same in both caches."""
    lm = language_model(name, 3)
    model = lora.adapted(lm, layers_to_transform=list(layers))
    pair = decoder(lm, model, "ahead")
    reward = reward_of(pair)
    assert reward.joined_share == 1 - layers[0] / 3
    caches = pair.engine.cache, pair.engine.panel.stores[reward.name].cache
    for pages in (pages for cache in caches for pages in (cache.k_pages, cache.v_pages)):
        pages.zero_()  # what is not written
    config = DecodingConfig(k=5, max_new_tokens=STEPS, eos_token_ids=[])
    prompts = [tokens(n, seed=n) for n in (9, 1, 70)]
    for prompt, result in zip(prompts, pair.generate(prompts, config), strict=True):
        wanted = oracle.decode(lm, lora.of_text(model), prompt, k=5, w=1.5, steps=STEPS)
        assert result.token_ids == wanted.tokens
        assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4)
    for ours, adapted in zip(*((c.k_pages, c.v_pages) for c in caches), strict=True):
        shared = slice(0, layers[0])
        assert torch.equal(ours[shared], adapted[shared])
        assert not torch.equal(ours, adapted)


@needs_cpp
@pytest.mark.parametrize(
    ("kernels", "dtype", "rows"),
    [
        ("amx", torch.float32, 21),
        ("amx", torch.bfloat16, 31),
        ("avx512bf16", torch.float32, 13),
        ("avx512bf16", torch.bfloat16, 13),
        ("avx512bf16", torch.float16, 7),
        ("avx512", torch.bfloat16, 7),
        ("avx2", torch.float32, 7.8),
        ("baseline", torch.float32, 0),
    ],
)
def test_by_itself_it_is_one_pass_of_few_rows(monkeypatch, kernels, dtype, rows):
    monkeypatch.setattr(cpp, "kernels", lambda: kernels)
    lm = copy.deepcopy(language_model("llama", 4)).to(dtype)

    def most(rewards, key, **options):
        return ArgsDecoder(lm, rewards, **options).engine.bursts.runner(key).lookahead

    everywhere, above = lora.adapted(lm), lora.adapted(lm, layers_to_transform=[3])
    assert most({"a": Adapter(everywhere)}, "a") == pytest.approx(rows)
    assert most({"a": Adapter(above)}, "a") == pytest.approx(4 * rows)
    assert most({"a": Adapter(above)}, "a", lookahead=False) == 0
    assert most({"a": Adapter(above)}, "a", fused_layers=False) == 0
    several = {"a": Adapter(everywhere), "c": Classifier(copy.deepcopy(reward_model()).to(dtype))}
    assert most(several, "a") == pytest.approx(rows)
    assert most(several, "c") == most(several, ("a", "c")) == 0


@needs_cpp
def test_after_a_long_prefix_it_is_two_passes(monkeypatch):
    """There the language model's k rows attend to more than a reading of the weights takes."""
    monkeypatch.setattr(cpp, "kernels", lambda: "avx512bf16")
    lm = language_model("llama", 4)
    pair = ArgsDecoder(lm, Adapter(lora.adapted(lm)))
    reward = reward_of(pair)
    k, rows = 8, 13
    most = int((rows / k - 1) / reward.attention_per_token)  # tokens
    assert most > 8
    config = DecodingConfig(k=k, w=1.5, max_new_tokens=4, eos_token_ids=[])
    for length, joined in ((most - 4, True), (most - 3, False)):
        prompt = tokens(length, seed=length)
        (result,) = pair.generate(prompt, config)
        assert pair.engine.bursts.runner(reward.name)._batch.joined is joined
        (plain,) = ArgsDecoder(lm, Adapter(lora.adapted(lm)), lookahead=False).generate(
            prompt, config
        )
        assert result.token_ids == plain.token_ids


def test_closing_ids_take_the_plain_order():
    lm, model = lora.pair()
    pair = decoder(lm, model, "ahead", fused=False, closing_ids=[4, 5])
    assert reward_of(pair).shares_weights
    assert not reward_of(pair).joins
    own = lora.of_text(model)
    (result,) = pair.generate(tokens(9), DecodingConfig(k=5, max_new_tokens=8, eos_token_ids=[]))
    wanted = oracle.decode(lm, lambda ids: own([*ids, 4, 5]), tokens(9), k=5, w=1.5, steps=8)
    assert result.token_ids == wanted.tokens
    assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_a_batch_of_everything(fused):
    """Guided by the adapter, by others, by several, by none, in one engine that looks ahead."""
    lm, model = lora.pair()
    torch.manual_seed(0)
    head = torch.nn.Linear(32, 1)
    named = {"a": Adapter(model), "c": Classifier(reward_model()), "l": Head(head)}
    named["h"] = OnHost(poisons=False)
    pair = ArgsDecoder(lm, named, lookahead=True, fused_layers=fused)

    @torch.no_grad()
    def hidden(ids):
        return head(lm.base_model(torch.tensor([ids])).last_hidden_state[0, -1]).item()

    naive = {"a": lora.of_text(model), "h": liking, "l": hidden}
    naive["c"] = lambda ids: oracle.reward(reward_model(), ids)
    mixes = [{"a": 1.0}, {"c": 1.0}, {"a": 0.5, "c": 1.0}, {"h": 1.0}, {"l": 1.0}, {"a": 2.0}]
    configs = [
        DecodingConfig(k=5, w=2.0, max_new_tokens=6, eos_token_ids=[], reward=mix) for mix in mixes
    ]
    configs.append(DecodingConfig(k=1, max_new_tokens=6, eos_token_ids=[]))
    prompts = [tokens(20, seed=3), *(tokens(5 + i, seed=i) for i in range(len(mixes)))]
    for prompt, result, mix in zip(
        prompts, pair.generate(prompts, configs), [*mixes, {}], strict=True
    ):
        total = lambda ids, mix=mix: sum(w * naive[n](ids) for n, w in mix.items())  # noqa: E731
        options = {"k": 5 if mix else 1, "w": 2.0, "steps": 6}
        wanted = oracle.decode(lm, total, prompt, **options)
        assert wanted.margin > MARGIN
        assert result.token_ids == wanted.tokens
        assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4, nan_ok=True)


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "reads"), [("ahead", 1), ("cpu", 2)])
def test_each_weight_is_read_once_per_token(order, reads):
    """In one pass; the plain order, which makes two, shows what the count is worth."""
    lm, model = lora.pair()
    pair = decoder(lm, model, order, fused=False)
    config = DecodingConfig(k=5, eos_token_ids=[])
    counts = reads_per_token(
        lm, lambda n: pair.generate(tokens(9), dataclasses.replace(config, max_new_tokens=n))
    )
    layers = {name: count for name, count in counts.items() if "layers." in name}
    assert len(layers) == 14
    assert set(layers.values()) == {(reads, reads)}
    assert counts["lm_head"] == (1, 1)


@needs_cpp
@pytest.mark.parametrize("layers", [None, (1,)])
@pytest.mark.parametrize(("order", "reads"), [("ahead", 1), ("cpu", 2)])
def test_fused_layers_are_given_each_weight_once_per_token(order, reads, layers):
    lm, model = lora.pair(**({} if layers is None else {"layers_to_transform": layers}))
    pair = decoder(lm, model, order)
    assert reward_of(pair).adapted.fused_layers() is not None
    config = DecodingConfig(k=5, eos_token_ids=[])
    counts = reads_per_token(
        lm,
        lambda n: pair.generate(tokens(9), dataclasses.replace(config, max_new_tokens=n)),
        through_modules=False,
    )
    layers = {name: count for name, count in counts.items() if "layers." in name}
    assert len(layers) == 14
    assert set(layers.values()) == {(0, reads)}


@needs_cpp
def test_rows_of_one_model_count_where_passes_of_few_are_fused():
    lm, model = lora.pair()
    with fused_up_to(16), rows_by_way() as proof:
        pair = decoder(lm, model, "ahead", fused="auto")
        assert reward_of(pair).joins
        assert reward_of(pair).joined_share == 1
        assert proof["joined"]
        assert proof["modules"]
        for k in (16, 17):
            config = DecodingConfig(k=k, max_new_tokens=STEPS, eos_token_ids=[])
            with rows_by_way() as rows:
                (result,) = pair.generate(tokens(9), config)
            assert (32 in rows["joined"]) == (k == 16)
            assert bool(rows["modules"]) == (k == 17)
            expected = oracle.decode(lm, lora.of_text(model), tokens(9), k=k, w=1.5, steps=STEPS)
            assert expected.margin > MARGIN
            assert result.token_ids == expected.tokens
            assert result.rewards == pytest.approx(expected.rewards, abs=1e-4)


def held():
    """Bytes of all tensors on the CPU that are alive."""
    gc.collect()
    # Tensors of other types are those of a compiler, which hold nothing.
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
    real = (x for x in tensors if not torch._is_functional_tensor(x) and x.device.type == "cpu")
    storages = (x.untyped_storage() for x in real)
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@pytest.mark.parametrize("shared", [True, False])
def test_memory_is_that_of_one_model(tmp_path, shared):
    """The pair holds the language model, the adapter and the caches; merged, twice the model."""
    lm = copy.deepcopy(language_model("llama", hidden=256))
    lm.save_pretrained(tmp_path / "lm")
    model = lora.adapted(lm)
    model.save_pretrained(tmp_path / "adapter")
    del model
    if not shared:
        with torch.no_grad():
            lm.model.norm.weight += 1
    before = held()
    reward = Adapter(tmp_path / "adapter", base=tmp_path / "lm")
    options = {"cache_bytes": 200_000, "max_batch_size": 1, "fused_layers": False}
    pair = ArgsDecoder(lm, reward, **options)
    pair.generate(tokens(9), DecodingConfig(k=5, max_new_tokens=6, eos_token_ids=[]))
    weights = sum(p.nbytes for p in lm.parameters())
    terms = sum(x.nbytes for x in reward.adapted.terms.tensors()) if shared else 0
    beyond = held() - before - terms - pair.cache.bytes
    if shared:
        assert reward.shares_weights
        assert beyond <= 0.03 * weights
    else:
        assert beyond > 0.8 * weights


def test_a_merged_copy_is_had_on_request():
    lm, model = lora.pair()
    pair = decoder(lm, model)
    before = [p.clone() for p in lm.parameters()]
    whole = oracle.reward(pair.reward_model, tokens(9))
    assert whole == pytest.approx(lora.of_text(model)(tokens(9)), abs=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, lm.parameters(), strict=True))


# ---- where it is merged --------------------------------------------------------------------------


def assert_merged(lm, model, caplog, *words, **options):
    with caplog.at_level(logging.INFO, "args_fast"):
        reward = Adapter(copy.deepcopy(model))
        pair = ArgsDecoder(lm, reward, **options)
    assert not reward.shares_weights
    (line,) = [m for m in caplog.messages if "merged into a model of its own" in m]
    for word in words:
        assert word in line
    (result,) = pair.generate(tokens(9), DecodingConfig(k=5, max_new_tokens=6, eos_token_ids=[]))
    wanted = oracle.decode(lm, lora.of_text(model), tokens(9), k=5, w=1.5, steps=6)
    assert result.token_ids == wanted.tokens
    assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("changed", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_fine_tuned_language_model_is_not_the_raw_base(caplog, changed):
    """One number in one tensor is another: the adapter was not trained on that."""
    raw = language_model()
    tuned = copy.deepcopy(raw)
    tuned.get_parameter(changed).view(-1)[-1] += 1e-4
    assert_merged(tuned, lora.adapted(raw), caplog, changed.removeprefix("model."), "other values")


def test_another_configuration(caplog):
    raw = language_model("mistral")
    other = copy.deepcopy(raw)
    other.config.sliding_window = 5
    for layer in other.model.layers:
        layer.self_attn.config = other.config
        layer.self_attn.sliding_window = 5
    assert_merged(other, lora.adapted(raw), caplog, "sliding_window")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"use_dora": True}, "Dora"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
        ({"modules_to_save": ["score", "norm"]}, "norm"),
    ],
)
def test_more_than_low_rank_terms(caplog, options, word):
    lm = language_model()
    saved = options.pop("modules_to_save", None)
    if saved:
        model = lora.classifier_on(lm)
        config = peft.LoraConfig(
            task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=saved,
            init_lora_weights=False,
        )  # fmt: skip
        model = peft.get_peft_model(model, config).eval()
        with torch.no_grad():
            model.base_model.model.model.norm.modules_to_save.default.weight += 0.5
    else:
        model = lora.adapted(lm, **options)
    assert_merged(lm, model, caplog, word)


def test_a_language_model_of_integers(caplog):
    """Shared only where the reward is asked for in the same integers."""
    raw = language_model()
    quantized = copy.deepcopy(raw)
    quantization.quantize(quantized, "int8")
    model = lora.adapted(raw)
    assert_merged(quantized, model, caplog, "CompactLinear")
    reward = Adapter(copy.deepcopy(model))
    reward.prepare("int8")
    pair = ArgsDecoder(quantized, reward)
    assert reward.shares_weights
    dequantized = copy.deepcopy(model)
    quantization.quantize(dequantized.get_base_model().base_model, None)
    (result,) = pair.generate(tokens(9), DecodingConfig(k=5, max_new_tokens=6, eos_token_ids=[]))
    own = lora.of_text(on_dequantized(model, quantized))
    wanted = oracle.decode(quantized, own, tokens(9), k=5, w=1.5, steps=6)
    assert result.token_ids == wanted.tokens
    assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4)


def on_dequantized(model, quantized):
    """The adapter over the numbers that the integers stand for."""
    model = copy.deepcopy(model)
    for name, layer in model.get_base_model().base_model.named_modules():
        if hasattr(layer, "base_layer"):
            integers = quantized.base_model.get_submodule(name)
            layer.base_layer.weight.data = integers.dequantized()
    return model


def test_an_adapter_moves_to_another_language_model():
    """To one with equal weights; merged for one with others, and the first stays as it is."""
    lm, model = lora.pair()
    reward = Adapter(copy.deepcopy(model))
    first = ArgsDecoder(lm, reward)
    second = copy.deepcopy(lm)
    ArgsDecoder(second, reward)
    assert reward.shares_weights
    assert reward.model.base_model is second.base_model
    before = [p.clone() for p in second.parameters()]
    third = language_model(seed=9)
    pair = ArgsDecoder(third, reward)
    assert not reward.shares_weights
    assert all(torch.equal(a, b) for a, b in zip(before, second.parameters(), strict=True))
    wanted = oracle.decode(third, lora.of_text(model), tokens(9), k=5, w=1.5, steps=6)
    (result,) = pair.generate(tokens(9), DecodingConfig(k=5, max_new_tokens=6, eos_token_ids=[]))
    assert result.token_ids == wanted.tokens
    assert first.language_model is lm


@pytest.mark.parametrize(
    ("part", "options"),
    [("lora_A", {}), ("lora_B", {}), ("modules_to_save", {}), ("lora_B", {"use_dora": True})],
    ids=["lora_A", "lora_B", "head", "merged"],
)
@torch.no_grad()
def test_a_broken_adapter_is_refused_as_a_broken_model_is(part, options):
    lm = language_model()
    model = lora.adapted(lm, **options)
    next(x for name, x in model.named_parameters() if part in name).view(-1)[0] = torch.nan
    name = part if part.startswith("lora") and not options else ".weight"
    with refuses(NonFiniteError, "the reward model (Llama", "its weights hold NaN", name):
        ArgsDecoder(lm, Adapter(model))


@pytest.mark.parametrize("fused", [pytest.param(True, marks=needs_cpp), False])
def test_one_pass_that_is_wrong_is_not_used(monkeypatch, fused):
    """Terms that reach the language model's rows too: noticed at load, and two passes are made."""
    if fused:
        joined = FusedLayers.hidden_with
        wrong = lambda *args: joined(*args)[1:] * 2  # noqa: E731
        monkeypatch.setattr(FusedLayers, "hidden_with", wrong)
    else:
        add = low_rank._add
        monkeypatch.setattr(low_rank, "_add", lambda term, _, *rest: add(term, False, *rest))
    lm, model = lora.pair()
    pair = decoder(lm, model, "ahead", fused=fused)
    assert reward_of(pair).shares_weights
    assert not reward_of(pair).joins
    (result,) = pair.generate(tokens(9), DecodingConfig(k=5, max_new_tokens=6, eos_token_ids=[]))
    wanted = oracle.decode(lm, lora.of_text(model), tokens(9), k=5, w=1.5, steps=6)
    assert result.token_ids == wanted.tokens
