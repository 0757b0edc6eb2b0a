"""Responses are cut as the published scripts cut them, in text and in tokens."""

import pytest
from naive_decoder import tiny_models

from args_fast.eval.cuts import cut_for_diversity, cut_for_reward, keep_tokens


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Yes. \n\nHuman: And?", "Yes. \n\n"),
        ("Yes. ###Human: And?", "Yes. ###"),
        ("Yes. HUMAN: and human: again", "Yes. "),
        ("Humans: are many", "Humans: are many"),
        ("", ""),
    ],
)
def test_cut_for_reward_at_human_in_any_case(response, expected):
    assert cut_for_reward(response) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Yes. \n\nHuman: And?", "Yes. "),
        ("Yes. ###Human: And?", "Yes. "),
        ("a\n\nHuman: b###Human: c", "a"),
        ("Yes. human: and?", "Yes. human: and?"),
        ("###Human: b", " "),
        ("", " "),
    ],
)
def test_cut_for_diversity_at_turn_marks_and_never_empty(response, expected):
    assert cut_for_diversity(response) == expected


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", [" Yes. Water it often.\n\nHuman: And?", " ünïcödé 🌱 Human: x"])
def test_keep_tokens_keeps_what_lies_within_the_cut(text):
    tokenizer = tiny_models()[2]
    ids = tokenizer(text).input_ids
    for cut in range(len(text) + 1):
        kept = keep_tokens(tokenizer, ids, text[:cut])
        assert kept == ids[: len(kept)]
        assert len(decode(tokenizer, kept)) <= cut
        if len(kept) < len(ids):
            assert len(decode(tokenizer, ids[: len(kept) + 1])) > cut


def test_keep_tokens_keeps_the_end_token_of_a_whole_text():
    tokenizer = tiny_models()[2]
    ids = [*tokenizer(" Yes.").input_ids, tokenizer.eos_token_id]
    assert keep_tokens(tokenizer, ids, " Yes.") == ids
    assert keep_tokens(tokenizer, ids, " Yes") == ids[:-2]
