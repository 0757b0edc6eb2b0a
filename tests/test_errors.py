"""Every refusal: its class, the value that it names, and what it says to do."""

import copy

import pytest
import torch
import transformers as t
from refusals import refuses
from tiny_models import CONFIGS, LENGTH, VOCABULARY, decoder, language_model, reward_model, tokens
from vocabularies import byte_level

from args_fast import ArgsDecoder, ArgsError, DecodingConfig, errors, ops, reference
from args_fast.errors import (
    BackendError,
    CapacityError,
    CompileError,
    ConfigError,
    DecoderClosedError,
    JobError,
    LengthError,
    LineError,
    LoadError,
    NonFiniteError,
    PairMismatchError,
    PromptError,
    ProofError,
    RewardHeadError,
    UnsupportedModelError,
)
from args_fast.models import loading

CONFIG = DecodingConfig(k=5, max_new_tokens=6, eos_token_ids=[])
NAN, INF = float("nan"), float("inf")


def never(*_):
    raise AssertionError("a model ran before the error")


@pytest.fixture
def idle():
    """A decoder whose models must not run."""
    pair = decoder()
    hooks = [
        module.register_forward_pre_hook(never)
        for model in (pair.language_model, pair.reward_model)
        for module in (model, model.base_model)
    ]
    yield pair
    for hook in hooks:
        hook.remove()


@pytest.fixture
def own():
    """A decoder with models of its own, to be damaged."""
    return ArgsDecoder(copy.deepcopy(language_model()), copy.deepcopy(reward_model()))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError, ValueError),
        (PromptError, ValueError),
        (LengthError, ValueError),
        (CapacityError, LengthError),
        (UnsupportedModelError, ValueError),
        (RewardHeadError, UnsupportedModelError),
        (PairMismatchError, ValueError),
        (ProofError, RuntimeError),
        (CompileError, RuntimeError),
        (NonFiniteError, ArithmeticError),
        (BackendError, RuntimeError),
        (DecoderClosedError, RuntimeError),
        (LineError, ValueError),
        (LoadError, OSError),
        (JobError, ValueError),
    ],
)
def test_every_error_is_ours_and_of_the_kind_one_expects(error, kind):
    assert issubclass(error, ArgsError)
    assert issubclass(error, kind)


def test_there_are_no_other_errors():
    ours = {name for name, x in vars(errors).items() if isinstance(x, type)}
    assert ours == {
        "ArgsError",
        "BackendError",
        "CapacityError",
        "CompileError",
        "ConfigError",
        "DecoderBusyError",
        "DecoderClosedError",
        "EvaluationError",
        "JobError",
        "LengthError",
        "LineError",
        "LoadError",
        "MissingPackageError",
        "NonFiniteError",
        "PairMismatchError",
        "ProofError",
        "PromptError",
        "RewardError",
        "RewardHeadError",
        "UnsupportedModelError",
    }


# ---- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([[]], ["[]", "at least one"]),
        ([[5, 6], []], ["[]", "at least one"]),
        ([5, VOCABULARY], [str(VOCABULARY), f"0 to {VOCABULARY - 1}"]),
        ([5, -1], ["-1", f"0 to {VOCABULARY - 1}"]),
        ([[5], [6, 999]], ["999"]),
        ([[5, 6.0]], ["6.0"]),
        ([["5"]], ["list", "a list of ids"]),
        (17, ["int", "a list of ids"]),
        (None, ["is None", "a list of ids"]),
        ([5, None], ["contains None"]),
        ([None], ["is None", "a list of ids"]),
        ({5, 6}, ["set"]),
        (torch.tensor([5.0, 6.0]), ["5.0"]),
        ("text", ["no tokenizer", "tokenizer="]),
        (["text"], ["no tokenizer", "tokenizer="]),
        ([[5], "text"], ["no tokenizer"]),
    ],
    ids=repr,
)
def test_a_prompt_that_cannot_be_decoded(idle, prompts, said):
    with refuses(PromptError, *said):
        idle.generate(prompts, CONFIG)
    with pytest.raises(PromptError):
        idle.stream(prompts, CONFIG)


def test_an_empty_text():
    pair = ArgsDecoder(language_model(), reward_model(), tokenizer=byte_level())
    with refuses(PromptError, "''", "at least one"):
        pair.generate("", CONFIG)
    with refuses(PromptError, "''", "at least one"):
        pair.generate(["a b", ""], CONFIG)


def test_a_list_without_prompts_gives_a_list_without_generations(idle):
    assert idle.generate([], CONFIG) == []


@pytest.mark.parametrize("prompts", [[], [[5], [6]]], ids=["none", "two"])
def test_a_stream_is_of_one_prompt(idle, prompts):
    with refuses(PromptError, f"{len(prompts)} were given", "use generate"):
        idle.stream(prompts, CONFIG)


# ---- options that do not fit the pair ------------------------------------------------------------


def test_k_above_the_vocabulary(idle):
    config = DecodingConfig(k=VOCABULARY + 1, eos_token_ids=[])
    with refuses(ConfigError, f"k is {VOCABULARY + 1}", f"has {VOCABULARY} tokens"):
        idle.generate([5], config)


def test_stop_strings_without_a_tokenizer(idle):
    with refuses(ConfigError, "stop strings need a tokenizer"):
        idle.generate([5], DecodingConfig(stop=["x"]))


def test_the_reference_decoder_refuses_stop_strings():
    with refuses(ConfigError, "stop strings"):
        reference.decode(language_model(), reward_model(), [5], DecodingConfig(stop=["x"]))


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_no_size(size):
    with refuses(ConfigError, f"max_batch_size is {size}", "1 or more"):
        ArgsDecoder(language_model(), reward_model(), max_batch_size=size)


@pytest.mark.parametrize("role", ["language", "reward"])
def test_a_model_put_into_training_mode(own, role):
    getattr(own, f"{role}_model").train()
    with refuses(ConfigError, f"the {role} model is in training mode", ".eval()"):
        own.generate([5], CONFIG)


def test_a_reward_model_in_training_mode_is_no_matter_to_greedy(own):
    own.reward_model.train()
    own.generate([5], DecodingConfig(k=1, max_new_tokens=2))


def test_models_given_in_training_mode_are_put_to_eval():
    lm, rm = copy.deepcopy(language_model()).train(), copy.deepcopy(reward_model()).train()
    ArgsDecoder(lm, rm)
    assert not lm.training
    assert not rm.training


# ---- length --------------------------------------------------------------------------------------


def test_over_length_is_an_error_before_the_first_step(idle):
    prompt, new = tokens(90), LENGTH - 90 + 1
    said = [
        "90 tokens",
        f"{new} new",
        f"{LENGTH + 1} together",
        f"takes {LENGTH}",
        f"most {new - 1}",
    ]
    for call in (idle.generate, idle.stream):
        with refuses(LengthError, "language model", *said):
            call(prompt, DecodingConfig(k=5, max_new_tokens=new))


def test_the_longest_that_fits_is_decoded():
    (result,) = decoder().generate(
        tokens(90), DecodingConfig(k=2, max_new_tokens=6, eos_token_ids=[])
    )
    assert len(result.token_ids) == LENGTH - 90


def short_reward_model(name="llama"):
    config = CONFIGS[name]()
    config.max_position_embeddings = 32
    torch.manual_seed(2)
    return t.AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_a_text_longer_than_the_reward_model_takes_is_no_silent_truncation(name):
    # Cut to its maximum length, all k texts [x, v] are the same text and all rewards tie.
    pair = ArgsDecoder(language_model(), short_reward_model(name))
    said = ["reward model takes 32", "30 tokens", "3 new", "33 together", "at most 2"]
    for model in (pair.language_model, pair.reward_model):
        model.register_forward_pre_hook(never)
        model.base_model.register_forward_pre_hook(never)
    try:
        with refuses(LengthError, *said):
            pair.generate([[5], tokens(30)], DecodingConfig(k=5, max_new_tokens=3))
    finally:
        language_model()._forward_pre_hooks.clear()
        language_model().base_model._forward_pre_hooks.clear()


def test_a_prompt_longer_than_a_model_takes_leaves_no_room(idle):
    with pytest.raises(LengthError, match=r"Shorten the prompt\.$"):  # nothing else would help
        idle.generate(tokens(LENGTH + 5), CONFIG)


def test_rewards_are_asked_of_ids_that_exist(idle):
    with refuses(PromptError, "the continuation contains 99999"):
        idle.token_rewards([5], [6, 99999])
    with refuses(PromptError, "2 prompts", "1 continuations"):
        idle.rewards([[5], [6]], [[7]])


def test_greedy_is_not_bound_by_the_reward_model():
    pair = ArgsDecoder(language_model(), short_reward_model())
    for config in (DecodingConfig(k=1, max_new_tokens=8), DecodingConfig(w=0, max_new_tokens=8)):
        pair.generate(tokens(40), config)
    with pytest.raises(LengthError):
        pair.generate(tokens(40), DecodingConfig(max_new_tokens=8))


def test_a_rotary_scaling_that_rewrites_the_past_ends_where_it_begins():
    config = CONFIGS["phi3"]()
    config.original_max_position_embeddings = 24
    short, long = [1.0] * 4, [4.0] * 4
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": 24,
    }
    pair = ArgsDecoder(t.Phi3ForCausalLM(config).eval(), reward_model())
    with refuses(LengthError, "takes 24"):
        pair.generate(tokens(20), DecodingConfig(max_new_tokens=5))


# ---- pairs ---------------------------------------------------------------------------------------


def test_a_reward_model_that_knows_fewer_tokens():
    config = CONFIGS["llama"]()
    config.vocab_size = VOCABULARY - 3
    small = t.LlamaForSequenceClassification(config)
    said = [str(VOCABULARY), str(VOCABULARY - 3), f"resize_token_embeddings({VOCABULARY})"]
    with refuses(PairMismatchError, *said):
        ArgsDecoder(language_model(), small)
    small.resize_token_embeddings(VOCABULARY)  # what the message says mends it
    ArgsDecoder(language_model(), small)


def test_a_reward_model_that_knows_more_tokens_is_fine():
    config = CONFIGS["llama"]()
    config.vocab_size = VOCABULARY + 3
    ArgsDecoder(language_model(), t.LlamaForSequenceClassification(config))


@pytest.mark.parametrize("role", ["lm", "rm"])
def test_models_in_float64(role):
    models = {"lm": language_model(), "rm": reward_model()}
    models[role] = copy.deepcopy(models[role]).double()
    with refuses(UnsupportedModelError, "float64", "model.float()"):
        ArgsDecoder(**models)


def test_a_name_in_the_place_of_the_tokenizer():
    with refuses(ConfigError, "'gpt2'", "AutoTokenizer.from_pretrained('gpt2')"):
        ArgsDecoder(language_model(), reward_model(), tokenizer="gpt2")


def test_models_on_two_devices():
    elsewhere = t.LlamaForSequenceClassification(CONFIGS["llama"]()).to("meta")
    with refuses(PairMismatchError, "cpu", "meta", "one device"):
        ArgsDecoder(language_model(), elsewhere)


# ---- reward heads --------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [2, 5])
def test_a_classifier_is_no_reward_model(labels):
    config = CONFIGS["llama"]()
    config.num_labels = labels
    with refuses(RewardHeadError, f"{labels} outputs", "labels=1"):
        ArgsDecoder(language_model(), t.LlamaForSequenceClassification(config))


def test_a_language_model_is_no_reward_model():
    with refuses(RewardHeadError, "LlamaForCausalLM", "Autoregressive", "head='lm_head'"):
        ArgsDecoder(language_model(), language_model())


def test_a_head_that_is_not_linear():
    rm = copy.deepcopy(reward_model())
    rm.score = torch.nn.Sequential(rm.score, torch.nn.Sigmoid())
    pair = ArgsDecoder(language_model(), rm)
    (result,) = pair.generate([5, 6], CONFIG)
    assert all(0 < reward < 1 for reward in result.rewards)
    naive = rm(torch.tensor([[5, 6, *result.token_ids]])).logits.item()
    assert result.rewards[-1] == pytest.approx(naive, abs=1e-5)


# ---- values that are not finite ------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_reward_that_is_not_finite(own, bad):
    own.engine.panel.rewards["reward"].head_weight[:] = bad
    with refuses(NonFiniteError, "reward model", "NaN or infinite reward", "dtype='float32'"):
        own.generate([5, 6], CONFIG)
    own.generate([5, 6], DecodingConfig(k=1, max_new_tokens=2))


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("k", [1, 5])
def test_logits_that_are_not_finite(own, bad, k):
    with torch.no_grad():
        own.language_model.lm_head.weight[7] = bad
    with refuses(NonFiniteError, "language model", "NaN or +inf", "dtype='float32'"):
        own.generate([5, 6], DecodingConfig(k=k, max_new_tokens=4))


@pytest.mark.parametrize("damaged", ["lm", "rm"])
def test_nan_left_in_pages_does_not_leak_into_the_next_request(own, damaged):
    model = own.language_model if damaged == "lm" else own.reward_model
    prompts = [tokens(20), tokens(7, seed=3)]
    expected = own.generate(prompts, CONFIG)
    embedding = model.get_input_embeddings().weight
    clean = embedding.detach().clone()
    with torch.no_grad():
        embedding[:] = NAN
    cache = own.engine.caches[damaged == "rm"]
    with pytest.raises(NonFiniteError):
        own.generate([tokens(40), tokens(50)], CONFIG)
    assert own.cache.pages_in_use == 0
    assert cache.k_pages.isnan().any()  # the test would show nothing otherwise
    with torch.no_grad():
        embedding[:] = clean
    assert own.generate(prompts, CONFIG) == expected


# ---- devices, dtypes, backends -------------------------------------------------------------------


@pytest.mark.parametrize("device", ["gpu", "mps", "meta", "cpu:x"])
def test_a_device_that_we_do_not_run_on(device):
    with refuses(ConfigError, repr(device), "cpu", "cuda"):
        loading.resolve_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none():
    with refuses(ConfigError, "'cuda:1'", "device='cpu'"):
        loading.resolve_device("cuda:1")
    assert loading.resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("dtype", ["fp32", "int8", "float64", torch.int64, torch.float64, 32])
def test_a_dtype_that_is_none_of_ours(dtype):
    with refuses(ConfigError, repr(dtype), "auto", "float32, bfloat16, float16"):
        loading.resolve_dtype(dtype, torch.device("cpu"))


def test_a_backend_that_is_not_there(monkeypatch):
    with ops.use_backend("abacus"), refuses(BackendError, "'abacus'", "torch", "doctor"):
        decoder().generate([5], CONFIG)
    monkeypatch.setenv("ARGS_FAST_BACKEND", "sundial")
    with refuses(BackendError, "'sundial'", "ARGS_FAST_BACKEND"):
        decoder().generate([5], CONFIG)
    with ops.use_backend("torch"):  # what is asked for in code wins
        decoder().generate([5], CONFIG)
    monkeypatch.delenv("ARGS_FAST_BACKEND")
    assert decoder().cache.pages_in_use == 0
    decoder().generate([5], CONFIG)
