"""What each drafter proposes, how long its drafts are, and how much it remembers."""

import copy

import peft
import pytest
import torch
from drafters import Watched, always, small_model
from refusals import refuses
from tiny_models import VOCABULARY, decoder, language_model, reward_model, tokens
from transformers import PreTrainedTokenizerFast
from vocabularies import byte_level, unigram

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.drafting import AutoDrafts, Drafts, History, NGrams, SmallLM, worth
from args_fast.drafting.suffixes import BREAK, Suffixes
from args_fast.drafting.worth import MAX_DRAFT, MAX_ROWS, Acceptance, Pass, best_draft
from args_fast.errors import ConfigError, LoadError, PairMismatchError

CONFIG = DecodingConfig(k=4, max_new_tokens=20)


# ---- suffixes ------------------------------------------------------------------------------------


def test_the_longest_suffix_says_what_comes():
    suffixes = Suffixes()
    suffixes.extend([1, 2, 3, 4, 9, 9, 3, 4, 5, 6])
    assert suffixes.continuation([7, 3, 4], 3) == [5, 6]  # the latest of two
    assert suffixes.continuation([1, 2, 3, 4], 3) == [9, 9, 3]  # the longer one
    assert suffixes.continuation([8, 8], 3) == []
    assert suffixes.continuation([4], 3) == []  # too short to mean anything


def test_ones_own_end_is_not_an_earlier_occurrence():
    drafter = NGrams().open([], CONFIG)
    assert drafter.propose([5, 6, 7, 8], 3) == []
    assert drafter.propose([5, 6, 7, 8, 5, 6], 9) == [7, 8, 5, 6]
    assert drafter.propose([5, 6, 7, 8, 5, 6, 1], 9) == []


def test_history_continues_an_earlier_response():
    history = History()
    drafter = history.open([1, 2, 3], CONFIG)
    assert drafter.propose([1, 2, 3], 4) == []
    history.learn([1, 2, 3], [7, 8, 9, 10])
    assert drafter.propose([1, 2, 3], 3) == [7, 8, 9]  # a sample that finished meanwhile
    assert drafter.propose([1, 2, 3, 7, 8], 9) == [9, 10]
    assert drafter.propose([1, 2, 3, 5, 9, 10], 9) == []  # no draft across runs
    history.learn([1, 2, 3], [5, 8, 9, 11])
    assert drafter.propose([1, 2, 3, 7, 8], 1) == [9]
    assert drafter.propose([1, 2, 3, 6, 8, 9], 1) == [11]  # the latest
    assert history.open([1, 2], CONFIG).propose([1, 2], 4) == []  # of another prompt nothing


def test_history_is_bounded_and_forgets_what_was_asked_for_least_recently():
    history = History(max_tokens=100)
    for prompt in range(5):
        history.learn([prompt] * 10, [7] * 9)
        history.open([0] * 10, CONFIG).propose([0] * 10, 3)
    assert history.tokens <= 100
    assert history.open([0] * 10, CONFIG).propose([0] * 10, 3)
    assert not history.open([1] * 10, CONFIG).propose([1] * 10, 3)
    history.learn([9] * 200, [7])
    assert history.tokens <= 100
    for _ in range(50):
        history.learn([0] * 10, [7] * 9)
    assert history.tokens <= 100
    assert BREAK < 0


def test_auto_prefers_earlier_runs():
    auto = AutoDrafts()
    auto.learn([5, 6, 7, 5], [6, 1])
    assert auto.open([5, 6, 7, 5], CONFIG).propose([5, 6, 7, 5], 4) == [6, 1]
    assert auto.open([9, 5, 6, 7, 5, 6], CONFIG).propose([9, 5, 6, 7, 5, 6], 4) == [7, 5, 6]


# ---- the small language model --------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_a_model_drafts_what_it_would_decode(temperature):
    lm = language_model("llama", 1)
    config = DecodingConfig(
        k=5, w=0, max_new_tokens=20, temperature=temperature, seed=4, eos_token_ids=[]
    )
    alone = ArgsDecoder(lm, reward_model()).generate(tokens(9), config)[0].token_ids
    drafter = small_model().open(tokens(9), config)
    text = tokens(9)
    assert drafter.propose(text, 5) == alone[:5]
    text += [*alone[:3], (alone[3] + 1) % VOCABULARY]  # the fourth was not taken
    fresh = small_model().open(tokens(9), config)
    assert drafter.propose(text, 4) == fresh.propose(text, 4)
    assert drafter.propose([*tokens(9), *alone], 3) == []  # nothing may come


def test_a_small_model_by_path_or_object(tmp_path):
    lm = language_model("llama", 1)
    lm.save_pretrained(tmp_path)
    adapted = peft.get_peft_model(copy.deepcopy(lm), peft.LoraConfig(r=2))
    for draft in (lm, tmp_path, str(tmp_path), adapted):
        pair = ArgsDecoder(language_model(), reward_model(), draft=draft)
        config = DecodingConfig(k=4, max_new_tokens=8, eos_token_ids=[])
        result = pair.generate(tokens(9), config)[0]
        assert result.token_ids == decoder().generate(tokens(9), config)[0].token_ids
        assert result.drafted > 0
        assert 0 < pair.engine._drafting.drafts.cost < 1
    with refuses(LoadError):
        ArgsDecoder(language_model(), reward_model(), draft=str(tmp_path / "none"))


def test_another_tokenizer_is_refused(tmp_path):
    language_model("llama", 1).save_pretrained(tmp_path)
    ours, theirs = byte_level(), unigram()
    assert isinstance(theirs, PreTrainedTokenizerFast)
    theirs.save_pretrained(tmp_path)
    with refuses(PairMismatchError, "another tokenizer", "draft=None"):
        ArgsDecoder(language_model(), reward_model(), tokenizer=ours, draft=tmp_path)


def test_a_model_with_fewer_ids_drafts_only_what_it_knows():
    drafter = small_model().open([5], CONFIG)
    assert drafter.propose([5, VOCABULARY + 3], 3) == []


def test_drafts_on_a_gpu_are_refused():
    class OnGpu:
        device = torch.device("cuda:0")

    from args_fast.drafting import load_drafts

    with refuses(ConfigError, "draft is 'history'", "cuda:0", "CPU only", "draft=None"):
        load_drafts("history", OnGpu(), None, {})
    assert load_drafts("auto", OnGpu(), None, {}) is None
    assert load_drafts(None, OnGpu(), None, {}) is None


# ---- the rule of worth ---------------------------------------------------------------------------

GREEDY = [Pass(1.0, 1)]
ARGS = [Pass(1.0, 1), Pass(1.0, 10)]


def best(passes, rate, requests=1, *, at_least=0, at_most=MAX_DRAFT, token=0.0):
    bounds = {"at_least": at_least, "at_most": at_most}
    return best_draft(passes, rate, requests, **bounds, token=token)


def test_drafts_grow_with_what_is_accepted():
    lengths = [best(ARGS, rate) for rate in (0.0, 0.3, 0.6, 0.8, 0.98)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert lengths[-1] >= 3
    assert best(GREEDY, 0.6) > best(ARGS, 0.6)  # where k rows cost k times as much, less pays


def test_drafts_stop_where_they_cannot_pay():
    assert best(ARGS, 0.2) == 0
    assert best(ARGS, 0.2, at_least=2) == 2  # asked for by name
    assert best(ARGS, 0.9, at_most=0, at_least=2) == 0  # the last token
    assert best(ARGS, 0.6, token=0.9) < best(ARGS, 0.6)
    many = MAX_ROWS // 10 + 1
    assert best(ARGS, 0.98, many, at_least=2) == 0  # capped by rows


def test_the_cost_is_that_of_the_rows():
    row = worth.ROW
    assert worth.cost(GREEDY, 0, 1) == 1
    assert worth.cost(ARGS, 0, 1) == pytest.approx(1 + 1 + 9 * row)
    assert worth.cost(ARGS, 2, 1) == pytest.approx(1 + 2 * row + 1 + 29 * row)
    on_hidden = [Pass(1.0, 1, drafted=True), Pass(1.0, 10)]
    assert worth.cost(on_hidden, 0, 1) == pytest.approx(1 + 9 * row)  # one pass a token


def test_acceptance_follows_what_happens():
    acceptance = Acceptance()
    start = acceptance.rate
    for _ in range(20):
        acceptance.observe(3, 3)
    assert acceptance.rate > 0.85
    for _ in range(20):
        acceptance.observe(0, 1)
    assert acceptance.rate < start


class Wrong(Drafts):
    """Always proposes tokens that are never chosen."""

    def __init__(self, token):
        self.token = token

    def open(self, prompt, config):
        return self

    def propose(self, ids, at_most):
        return [self.token] * at_most


def test_only_auto_may_leave_drafts_off():
    """Each other drafter drafts in every step in which it has something, however wrong that is."""
    config = DecodingConfig(k=5, max_new_tokens=30, eos_token_ids=[])
    prompt = [5, 6, 7, 8] * 4
    plain = decoder().generate(prompt, config)[0].token_ids
    never = min(set(range(3, VOCABULARY)) - set(plain))
    history, auto = History(), AutoDrafts()
    for i in reversed(range(len(plain))):  # the latest run with these tokens continues wrongly
        for earlier in (history, auto):
            earlier.learn(prompt, [*plain[:i], never])
    drafters = {"ngram": NGrams(), "history": history, "model": small_model(seed=9), "auto": auto}
    for name, drafts in (drafters | {"wrong": Wrong(never)}).items():
        watched = Watched(drafts)
        pair = ArgsDecoder(language_model(), reward_model(), draft=watched)
        (result,) = pair.generate(prompt, config)
        steps = len(plain) - result.accepted
        assert result.token_ids == plain
        assert result.accepted < 0.2 * len(plain), name
        assert watched.proposed > 0, name
        if name == "auto":
            assert result.drafted < 0.3 * watched.proposed
        else:
            assert result.drafted >= watched.proposed, name
        if name in ("model", "wrong"):
            assert watched.proposed == steps - 1  # the last token is not drafted


def test_auto_drafts_where_it_pays_and_not_where_it_does_not():
    pair = ArgsDecoder(language_model(), reward_model(), draft="auto")
    config = DecodingConfig(k=3, max_new_tokens=30, eos_token_ids=[])
    first = pair.generate(tokens(9), config)[0]
    again = pair.generate(tokens(9), config)[0]
    assert again.token_ids == first.token_ids
    assert again.accepted > 10  # an earlier run of the same prompt
    assert again.accepted > 0.9 * again.drafted
    others = [pair.generate(tokens(9, seed=i), config)[0] for i in range(1, 5)]
    assert sum(one.drafted for one in others) < 0.3 * sum(len(one.token_ids) for one in others)


def test_a_request_that_failed_is_no_earlier_run():
    history = always(History(), 4)
    pair = ArgsDecoder(language_model(), reward_model(), draft=history)
    stream = pair.stream(tokens(9), DecodingConfig(k=3, max_new_tokens=30, eos_token_ids=[]))
    next(stream)
    stream.close()
    assert history.tokens == 0


def test_small_models_are_proved():
    with torch.inference_mode():
        assert isinstance(small_model(), SmallLM)
