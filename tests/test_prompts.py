"""Whatever people pass as a prompt is taken as what it is, or refused with what to do."""

import copy
import warnings

import numpy as np
import pytest
import torch
from refusals import refuses
from tiny_models import language_model, reward_model
from tokenizers.processors import TemplateProcessing
from vocabularies import byte_level, sentencepiece

from args_fast import ArgsDecoder, DecodingConfig
from args_fast.errors import ConfigError, PromptError
from args_fast.prompts import conversations, split

pytestmark = pytest.mark.filterwarnings("ignore:the prompt is text")

CONFIG = DecodingConfig(k=3, max_new_tokens=3, eos_token_ids=[])
IDS = [5, 17, 42, 9]
OTHER = [33, 12]
TALK = [{"role": "user", "content": "a b"}]
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}. {{ m.content }}, {% endfor %}"
    "{% if add_generation_prompt %}a.{% endif %}"
)


def tokenizer(template=TEMPLATE, base=byte_level, **special):
    made = copy.deepcopy(base())
    made.chat_template = template
    for name, value in special.items():
        setattr(made, name, value)
    return made


@pytest.fixture(scope="module")
def pair():
    return ArgsDecoder(language_model(), reward_model(), tokenizer=tokenizer())


@pytest.fixture(scope="module")
def idle():
    return ArgsDecoder(language_model(), reward_model())


def prompt_ids(pair, prompts):
    return [result.prompt_token_ids for result in pair.generate(prompts, CONFIG)]


def with_tokenizer(pair, tokenizer):
    return ArgsDecoder(pair.language_model, pair.reward_model, tokenizer=tokenizer)


# ---- what tokenizers, torch and numpy return -----------------------------------------------------


@pytest.mark.parametrize(
    "prompts",
    [
        IDS,
        tuple(IDS),
        range(4),
        torch.tensor(IDS),
        torch.tensor([IDS], dtype=torch.int32),
        [torch.tensor(IDS)],
        [torch.tensor([IDS])],
        list(torch.tensor(IDS)),
        np.array(IDS),
        np.array([IDS], dtype=np.uint16),
        list(np.array(IDS)),
        [list(np.array(IDS))],
        {"input_ids": IDS},
        {"input_ids": [IDS], "attention_mask": [[1] * 4]},
        {"input_ids": torch.tensor([IDS]), "attention_mask": torch.ones(1, 4)},
        {"input_ids": [torch.tensor(IDS)], "attention_mask": [torch.ones(4)]},
        [{"input_ids": IDS, "attention_mask": [1] * 4}],
        {"input_ids": [0, 0, *IDS, 0], "attention_mask": [0, 0, 1, 1, 1, 1, 0]},
    ],
    ids=lambda value: repr(value).replace("\n", ""),
)
def test_ids_of_one_prompt(idle, prompts):
    wanted = list(range(4)) if isinstance(prompts, range) else IDS
    (found,) = prompt_ids(idle, prompts)
    assert found == wanted
    assert all(type(token) is int for token in found)
    (token, *_) = idle.stream(prompts, CONFIG)
    assert token.token_id == idle.generate(wanted, CONFIG)[0].token_ids[0]


@pytest.mark.parametrize(
    "prompts",
    [
        [IDS, OTHER],
        (IDS, np.array(OTHER)),
        [torch.tensor([IDS]), {"input_ids": OTHER}],
        {"input_ids": [IDS, OTHER], "attention_mask": [[1] * 4, [1] * 2]},
        {"input_ids": [IDS, [0, 0, *OTHER]], "attention_mask": [[1] * 4, [0, 0, 1, 1]]},
        {
            "input_ids": torch.tensor([IDS, [*OTHER, 0, 0]]),
            "attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0]]),
        },
    ],
    ids=lambda value: repr(value).replace("\n", ""),
)
def test_ids_of_two_prompts(idle, prompts):
    assert prompt_ids(idle, prompts) == [IDS, OTHER]


def test_a_tensor_of_two_rows_is_two_prompts(idle):
    assert prompt_ids(idle, torch.tensor([IDS, IDS[::-1]])) == [IDS, IDS[::-1]]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("returned", ["pt", "np", None])
def test_what_a_tokenizer_returns_is_decoded_without_its_padding(pair, returned, padding_side):
    texts = ["a b c d", "ab"]
    batch = pair.tokenizer(texts, padding=True, padding_side=padding_side, return_tensors=returned)
    assert prompt_ids(pair, batch) == [pair.tokenizer(text).input_ids for text in texts]


@pytest.mark.parametrize("options", [{"padding": True}, {"padding": "max_length", "max_length": 9}])
def test_padding_without_a_mask_is_refused(pair, options):
    texts = ["ab", "a b c d"] if options["padding"] is True else "ab"
    batch = pair.tokenizer(texts, return_tensors="pt", **options)
    with refuses(PromptError, "row 0", "padding id 0", "attention_mask"):
        pair.generate(batch.input_ids, CONFIG)
    del batch["attention_mask"]
    with refuses(PromptError, "row 0", "padding id 0"):
        pair.generate(batch, CONFIG)


def test_an_encoding_of_the_tokenizers_library_is_a_prompt(pair):
    backend = copy.deepcopy(pair.tokenizer._tokenizer)
    for padding in (None, 9):
        backend.enable_padding(length=padding)
        encoded = backend.encode("a b")
        assert len(encoded.ids) == (padding or 4)
        assert prompt_ids(pair, encoded) == prompt_ids(pair, [encoded]) == prompt_ids(pair, "a b")


def test_an_array_of_texts_is_a_list_of_them(pair):
    assert prompt_ids(pair, np.array(["a b", "c"])) == prompt_ids(pair, ["a b", "c"])


def test_rewards_take_the_same_prompts(pair):
    wanted = pair.token_rewards(pair.tokenizer("a b").input_ids, [5, 6])
    assert pair.token_rewards(pair.tokenizer("a b", return_tensors="pt"), [5, 6]) == wanted


@pytest.mark.parametrize(
    "continuation", [torch.tensor([5, 6]), np.array([5, 6]), list(np.array([5, 6])), (5, 6)]
)
def test_a_continuation_may_be_an_array_too(pair, continuation):
    assert pair.token_rewards("a b", continuation) == pair.token_rewards("a b", [5, 6])


@pytest.mark.parametrize("continuation", [[5, 6.0], [True], ["a"], b"ab", torch.tensor([5.0])])
def test_a_continuation_of_something_else_is_refused(pair, continuation):
    with refuses(PromptError, "the continuation"):
        pair.token_rewards("a b", continuation)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (b"a b", ["bytes", "decode()"]),
        ([b"a b"], ["bytes", "decode()"]),
        (bytearray(b"a"), ["bytearray"]),
        ([True, False], ["True", "whole number"]),
        ([5, True], ["contains True"]),
        ([np.bool_(True)], ["True"]),
        (torch.tensor([True]), ["True"]),
        ([torch.tensor(True)], ["True"]),
        (torch.tensor([5.0, 6.0]), ["contains 5.0"]),
        (np.array([5.5]), ["contains 5.5"]),
        (torch.tensor(5), ["is 5", "a list of ids"]),
        (torch.zeros(1, 1, 1, dtype=torch.long), ["list", "a list of ids"]),
        ([torch.tensor([IDS, IDS])], ["holds 2 prompts", "rows as a list"]),
        ([5, "text"], ["contains 'text'"]),
        ([5, None], ["contains None"]),
        ([[5], 6], ["int"]),
        ([["a"]], ["list", "a list of ids"]),
        ({"ids": [5]}, ["'input_ids'", "'ids'"]),
        ({"input_ids": 5}, ["is 5"]),
        ({"input_ids": [5, 6], "attention_mask": [1]}, ["2 ids", "attention_mask has 1"]),
        (TALK[0], ["one message", "a list of messages"]),
        ({5}, ["set"]),
    ],
    ids=lambda value: repr(value).replace("\n", ""),
)
def test_what_is_not_a_prompt_is_refused(idle, prompts, said):
    with refuses(PromptError, *said):
        idle.generate(prompts, CONFIG)


@pytest.mark.parametrize(
    "prompts",
    [
        "",
        [""],
        ["a", ""],
        [[]],
        [IDS, []],
        torch.tensor([]),
        torch.zeros(1, 0, dtype=torch.long),
        {"input_ids": []},
        {"input_ids": [0], "attention_mask": [0]},
    ],
    ids=repr,
)
def test_an_empty_prompt_is_refused(pair, prompts):
    assert pair.tokenizer("").input_ids == [1]  # BOS alone is still no prompt
    with refuses(PromptError, "empty", "at least one"):
        pair.generate(prompts, CONFIG)


def test_an_empty_array_is_an_empty_prompt_and_an_empty_list_is_no_prompt():
    assert split(np.array([])) == [[]]
    assert split([]) == []


def test_text_that_is_not_unicode_is_refused(pair):
    with refuses(PromptError, "not Unicode"):
        pair.generate("lone \ud800", CONFIG)
    with refuses(PromptError, "not Unicode"):
        pair.chat("lone \udfff", CONFIG)


def test_options_as_a_dict_are_refused_with_the_way(idle):
    for call in (idle.generate, idle.stream):
        with refuses(ConfigError, "{'k': 3}", "DecodingConfig(k=3)", "DecodingConfig(**options)"):
            call(IDS, {"k": 3})
    ((_, error),) = idle.complete([(IDS, {"k": 3})])
    assert isinstance(error, ConfigError)


# ---- text is never wrapped, messages always are --------------------------------------------------


def rendered(pair, talk):
    return pair.tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)


LONG = [
    {"role": "system", "content": "cd"},
    {"role": "user", "content": "a b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
]


@pytest.mark.parametrize("talk", [TALK, LONG, tuple(TALK)])
def test_a_conversation_is_the_text_of_the_template_everywhere(pair, talk):
    text = rendered(pair, list(talk))
    (wanted,) = pair.generate(text, CONFIG)
    assert pair.chat(talk, CONFIG) == wanted
    assert pair.chat([talk], CONFIG) == [wanted]
    assert pair.generate(talk, CONFIG) == [wanted]
    assert prompt_ids(pair, [talk, text]) == [wanted.prompt_token_ids] * 2
    assert [token.token_id for token in pair.stream(talk, CONFIG)] == wanted.token_ids
    assert list(pair.complete([(talk, CONFIG)])) == [(0, wanted)]
    assert wanted.prompt_token_ids == pair.tokenizer(text).input_ids


def test_chat_makes_a_message_of_a_text(pair):
    assert pair.chat("a b", CONFIG) == pair.chat(TALK, CONFIG)
    both = pair.chat(["a b", LONG], CONFIG)
    alone = [pair.chat(TALK, CONFIG), pair.chat(LONG, CONFIG)]
    assert [each.token_ids for each in both] == [each.token_ids for each in alone]


@pytest.mark.parametrize("text", ["a b", "u. a b, a.", "Human. a\n"])
def test_text_is_never_wrapped(pair, text):
    assert prompt_ids(pair, text) == [pair.tokenizer(text).input_ids]


def test_a_last_message_of_the_assistant_is_continued(pair):
    open_ = [*TALK, {"role": "assistant", "content": "cd a"}]
    assert prompt_ids(pair, [open_]) == prompt_ids(pair, "u. a b, a. cd a")


def test_parts_of_text_are_text(pair):
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert pair.chat([{"role": "user", "content": parts}], CONFIG) == pair.chat(TALK, CONFIG)


def test_a_template_that_wants_parts_gets_them(pair):
    template = (
        "{% for m in messages %}{{ m.role[0] }}. {% for p in m.content %}{{ p.text }}{% endfor %}, "
        "{% endfor %}{% if add_generation_prompt %}a.{% endif %}"
    )
    other = with_tokenizer(pair, tokenizer(template))
    assert other.chat(LONG, CONFIG) == pair.chat(LONG, CONFIG)


def test_samples_of_a_conversation_come_as_a_list(pair):
    config = DecodingConfig(max_new_tokens=2, temperature=2.0, num_return_sequences=2)
    with refuses(ConfigError, "num_return_sequences is 2", "chat([messages], config)"):
        pair.chat(TALK, config)
    assert len(pair.chat([TALK], config)) == 2


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], ["[]", "conversation"]),
        ([[]], ["empty", "conversation"]),
        ("", ["empty"]),
        ([5, 6], ["not a conversation"]),
        (TALK[0], ["type dict", "a list of messages"]),
        (b"a", ["bytes"]),
        ([TALK, 5], ["int"]),
        ([{"role": "user", "content": ""}], ["no message", "content"]),
        ([{"role": "user", "content": 5}], ["content", "5"]),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], ["image_url"]),
        ([{"role": "user", "content": "a"}, {"content": "b"}], ["message 2", "no role"]),
    ],
    ids=repr,
)
def test_what_is_not_a_conversation_is_refused(pair, messages, said):
    with refuses(PromptError, *said):
        pair.chat(messages, CONFIG)


def test_conversations_need_a_template_and_a_tokenizer(pair, idle):
    with refuses(PromptError, "no chat template", "as text"):
        with_tokenizer(pair, tokenizer(None)).chat(TALK, CONFIG)
    with refuses(PromptError, "no tokenizer", "tokenizer="):
        idle.chat(TALK, CONFIG)
    with refuses(PromptError, "no tokenizer", "lists of ids"):
        idle.generate("a", CONFIG)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ 'a' + 5 }}", "int"),
        ("{% for %}", "xpected"),
    ],
)
def test_a_template_that_fails_is_an_error_of_the_prompt(pair, template, said):
    broken = with_tokenizer(pair, tokenizer(template))
    with refuses(PromptError, "chat template", said):
        broken.chat(TALK, CONFIG)
    (refused, wanted) = broken.complete([(TALK, CONFIG), (IDS, CONFIG)])
    assert isinstance(refused[1], PromptError)
    assert wanted[1] == broken.generate(IDS, CONFIG)[0]


def test_conversations_of_chat():
    assert conversations("a b") == ([TALK], True)
    assert conversations(TALK) == ([TALK], True)
    assert conversations([TALK, "a b"]) == ([TALK, TALK], False)


# ---- the warning ---------------------------------------------------------------------------------


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if each.category is UserWarning]


def test_bare_text_for_a_chat_model_is_warned_of_once(pair):
    fresh = with_tokenizer(pair, tokenizer())
    (message,) = warned(lambda: fresh.generate(["a b", "c"], CONFIG))
    assert "decoder.chat(" in message
    assert "--chat" in message
    assert warned(lambda: fresh.generate("d", CONFIG)) == []
    assert len(warned(lambda: with_tokenizer(pair, tokenizer()).generate("d", CONFIG))) == 1


@pytest.mark.parametrize("prompt", [IDS, TALK, "u. a b, a.", "s. c, u. a b, a. d"])
def test_what_is_wrapped_already_or_cannot_be_is_not_warned_of(pair, prompt):
    fresh = with_tokenizer(pair, tokenizer())
    assert warned(lambda: fresh.generate([prompt], CONFIG)) == []


def test_without_a_template_there_is_nothing_to_warn_of(pair):
    bare = with_tokenizer(pair, tokenizer(None))
    assert warned(lambda: bare.generate("a b", CONFIG)) == []


# ---- BOS once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [byte_level, sentencepiece])
@pytest.mark.parametrize("front", ["", "<s>"])
def test_bos_comes_once(pair, base, front):
    made = tokenizer("{{ bos_token }}" * bool(front) + TEMPLATE, base)
    pair = with_tokenizer(pair, made)
    text = rendered(pair, TALK)
    assert text.startswith("<s>") == bool(front)
    for prompt in (text, front + "a b", TALK):
        (ids,) = prompt_ids(pair, [prompt])
        assert ids[0] == made.bos_token_id
        assert ids.count(made.bos_token_id) == 1
    assert prompt_ids(pair, [TALK]) == prompt_ids(pair, text)
    assert prompt_ids(pair, "a b") == [made("a b").input_ids]
    assert prompt_ids(pair, "<s>a b") == [made("<s>a b", add_special_tokens=False).input_ids]


def test_several_tokens_in_front_come_once(pair):
    made = tokenizer()
    made._tokenizer.post_processor = TemplateProcessing(
        single="<pad> <s> $A </s>", special_tokens=[("<pad>", 0), ("<s>", 1), ("</s>", 2)]
    )
    pair = with_tokenizer(pair, made)
    bare = made("a b", add_special_tokens=False).input_ids
    for text in ("a b", "<pad><s>a b"):
        assert prompt_ids(pair, text) == [[0, 1, *bare, 2]]
    assert prompt_ids(pair, "<s>a b") == [[0, 1, 1, *bare, 2]]  # not what stands in front
    (ids,) = prompt_ids(pair, [TALK])
    assert ids[:2] == [0, 1]
    assert ids[-1] != 2  # an answer cannot begin after the end


def test_a_tokenizer_that_adds_nothing_leaves_all_as_it_is(pair):
    made = tokenizer()
    made._tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    pair = with_tokenizer(pair, made)
    assert prompt_ids(pair, "<s><s>a") == [[1, 1, *made("a").input_ids]]


# ---- stop strings that are special tokens --------------------------------------------------------


def greedy(pair, **options):
    given = {"k": 1, "max_new_tokens": 12, "eos_token_ids": []} | options
    return pair.generate(IDS, DecodingConfig(**given))[0]


def test_a_stop_string_that_is_a_special_token_stops_at_its_id(pair):
    free = greedy(pair)
    made = tokenizer()
    token = made.convert_ids_to_tokens(free.token_ids[5])
    made.add_special_tokens({"additional_special_tokens": [token]})
    pair = with_tokenizer(pair, made)
    end = free.token_ids.index(free.token_ids[5])
    for stop in (token, ["never", token]):
        result = greedy(pair, stop=stop)
        assert result.token_ids == free.token_ids[: end + 1]
        assert result.finish_reason == "stop"
        assert result.text == greedy(pair, max_new_tokens=end + 1).text
        pieces = list(
            pair.stream(IDS, DecodingConfig(k=1, max_new_tokens=12, stop=stop, eos_token_ids=[]))
        )
        assert [piece.token_id for piece in pieces] == result.token_ids
        assert "".join(piece.text for piece in pieces) == result.text


def test_the_end_token_as_a_stop_string_stops_too(pair):
    free = greedy(pair)
    made = tokenizer()
    made.eos_token = made.convert_ids_to_tokens(free.token_ids[3])
    result = greedy(with_tokenizer(pair, made), stop=made.eos_token)
    assert result.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[3]) + 1]
    assert result.finish_reason == "stop"


def test_an_end_token_that_is_a_stop_string_too_is_a_stop(pair):
    free = greedy(pair)
    made = tokenizer()
    made.eos_token = made.convert_ids_to_tokens(free.token_ids[3])
    result = greedy(
        with_tokenizer(pair, made), stop=made.eos_token, eos_token_ids=[free.token_ids[3]]
    )
    assert result.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[3]) + 1]
    assert result.finish_reason == "stop"  # what the request asks for itself


def test_a_stop_string_around_a_special_token_is_refused_with_the_way(pair):
    with refuses(ConfigError, "'</s>\\n'", "stop='</s>'"):
        greedy(pair, stop="</s>\n")


def test_stop_none_is_no_stop(pair):
    assert greedy(pair, stop=None).token_ids == greedy(pair).token_ids


# ---- rewards and other readers get the text and the messages -------------------------------------


def test_the_encoder_keeps_where_a_prompt_came_from(pair, idle):
    encoder = pair._encoder
    text = encoder.encode("a b")
    assert (text.text, text.messages) == ("a b", None)
    talk = encoder.encode([{"role": "user", "content": [{"type": "text", "text": "a b"}]}])
    assert (talk.text, talk.messages) == (rendered(pair, TALK), TALK)
    ids = encoder.encode([1, *talk.ids[1:], 2])
    assert (ids.text, ids.messages) == (rendered(pair, TALK), None)
    assert idle._encoder.encode(IDS).text is None
