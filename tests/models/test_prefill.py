"""A prompt is the same prompt whole and in chunks, whichever attention computes it."""

import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_models import decoder, language_model, tokens
from torch.nn.attention.bias import causal_lower_right

from args_fast import DecodingConfig
from args_fast.kvcache.storage import PAGE_SIZE, CacheLayout, PagedCache, pages_for
from args_fast.models import backbone as backbone_module
from args_fast.models import flash
from args_fast.models import prefill as prefill_module
from args_fast.models.backbone import Backbone
from args_fast.models.prefill import Prefill

CONFIG = DecodingConfig(k=5, max_new_tokens=6, eos_token_ids=[])
PROMPT = 45


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    deterministic=False,
    return_attn_probs=False,
    block_table=None,
):
    """What flash-attn documents (q [total, Hq, D]; causal and windows are aligned to the bottom
    right, a window of (left, right) is i + S - T - left ... i + S - T + right), for one text."""
    for bounds, rows, longest in ((cu_seqlens_q, q, max_seqlen_q), (cu_seqlens_k, k, max_seqlen_k)):
        assert bounds.dtype == torch.int32
        assert bounds.tolist() == [0, len(rows)] == [0, longest]
    T, S = len(q), len(k)
    left, right = (S if side < 0 else side for side in window_size)
    right = 0 if causal else right
    at = torch.arange(T)[:, None] + S - T
    key = torch.arange(S)
    sees = (key >= at - left) & (key <= at + right)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q, k) * (softmax_scale or q.shape[2] ** -0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~sees, -torch.inf).softmax(dim=2)
    return torch.einsum("hts,shd->thd", weights, v)


def lower_right(context, query):
    return causal_lower_right(context.rows, context.start + context.rows)


WAYS = ("op", "torch", "bias", "flash")


def take(way, monkeypatch, model):
    """Force a way to compute attention, as far as it takes what the model asks for."""
    if way == "op":
        monkeypatch.setattr(prefill_module, "_is_plain", lambda options, tokens: False)
    elif way == "bias":  # as on CUDA
        monkeypatch.setattr(Prefill, "_lower_right", lower_right)
    elif way == "flash" and model.config.model_type != "gpt_oss":
        monkeypatch.setattr(backbone_module, "varlen_attention", lambda _: flash_attn_varlen_func)


@torch.inference_mode()
def outputs(name, pieces):
    """The hidden states of a prompt that is stored piece by piece, in pages of which nothing is
    known, and the rows of each pass."""
    model = Backbone(language_model(name), "language model", fused=False)
    cache, pages = PagedCache(model.layout, 8), [5, 2, 7, 1]
    cache.k_pages.fill_(torch.nan)
    cache.v_pages.fill_(torch.nan)
    seen, run = [], model.hidden

    def hidden(*arguments):
        seen.append(run(*arguments)[0])
        return seen[-1]

    model.hidden = hidden
    start, ids = 0, tokens(PROMPT)
    for rows in pieces:
        held = pages[: pages_for(start + rows)]
        model.prefill(cache, ids[start : start + rows], held, start)
        start += rows
    assert start == PROMPT
    return torch.cat(seen), [len(piece) for piece in seen]


NAMES = ("llama", "llama_mqa", "opt", "mistral", "gemma2", "gemma3", "gpt_oss")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_stored_in_pieces_is_the_same_prompt(monkeypatch, name, way):
    text = torch.tensor([tokens(PROMPT)])
    with torch.inference_mode():
        expected = language_model(name).base_model(text, use_cache=False).last_hidden_state[0]
    take(way, monkeypatch, language_model(name))
    for pieces in ([45], [16, 29], [1, 44], [44, 1], [17, 15, 13], [32, 1, 12]):
        for chunk in (7, 512):
            monkeypatch.setattr(backbone_module, "PREFILL_CHUNK", chunk)
            result, _ = outputs(name, pieces)
            torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "mistral", "gemma3", "starcoder2"])
@pytest.mark.parametrize("chunk", [1, 7, PAGE_SIZE])
def test_chunks_change_no_token(monkeypatch, name, chunk):
    prompts = [tokens(n) for n in (1, 16, 17, 45)]
    pair = decoder(name, name)
    expected = pair.generate(prompts, CONFIG)
    monkeypatch.setattr(backbone_module, "PREFILL_CHUNK", chunk)
    for result, wanted in zip(pair.generate(prompts, CONFIG), expected, strict=True):
        assert result.token_ids == wanted.token_ids
        assert result.rewards == pytest.approx(wanted.rewards, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "way", "pieces", "passes"),
    [
        ("llama", "torch", [45], [45]),
        ("llama", "torch", [16, 29], [16, 8, 8, 8, 5]),  # a mask for each row and token
        ("llama", "flash", [16, 29], [16, 29]),
        ("gemma2", "torch", [20, 25], [8, 8, 4, 8, 8, 8, 1]),
        ("gemma2", "flash", [20, 25], [20, 25]),
        ("mistral", "torch", [7, 38], [7, 8, 8, 8, 8, 6]),  # its window is 7
        ("mistral", "flash", [7, 38], [7, 38]),
        ("gpt_oss", "flash", [45], [8, 8, 8, 8, 8, 5]),
    ],
)
def test_only_what_holds_something_for_each_row_and_token_is_cut(
    monkeypatch, name, way, pieces, passes
):
    take(way, monkeypatch, language_model(name))
    monkeypatch.setattr(backbone_module, "PREFILL_CHUNK", 8)
    assert outputs(name, pieces)[1] == passes


def test_after_a_prefix_torchs_flash_kernel_takes_all_at_once(monkeypatch):
    take("bias", monkeypatch, language_model())
    monkeypatch.setattr(backbone_module, "torch_has_flash", lambda layout: True)
    monkeypatch.setattr(backbone_module, "PREFILL_CHUNK", 8)
    assert outputs("llama", [16, 29])[1] == [16, 29]
    assert outputs("gemma2", [20, 25])[1] == [8, 8, 4, 8, 8, 8, 1]


@pytest.mark.parametrize(
    ("name", "way", "used"),
    [
        ("llama", "torch", {"torch"}),
        ("opt", "torch", {"torch"}),
        ("gemma3", "torch", {"torch", "op"}),  # layers with a window and without
        ("gemma2", "torch", {"op"}),
        ("gemma2", "flash", {"flash"}),
        ("gpt_oss", "flash", {"op"}),
    ],
)
def test_a_layer_takes_the_first_way_that_computes_it(monkeypatch, name, way, used):
    take(way, monkeypatch, language_model(name))
    taken = set()

    def note(one):
        run = getattr(Prefill, one)
        monkeypatch.setattr(Prefill, one, lambda *rest: (taken.add(one), run(*rest))[1])

    for one in ("_by_flash", "_by_torch", "_by_op"):
        note(one)
    outputs(name, [20, 25])
    assert taken == {f"_by_{one}" for one in used}


# ---- flash-attn ----------------------------------------------------------------------------------


def layout(device="cuda", dtype=torch.bfloat16, head_size=128):
    return CacheLayout(2, 4, head_size, dtype, torch.device(device))


@pytest.fixture
def package(monkeypatch):
    """Puts a module in the place of flash_attn, on a GPU that has what it needs."""

    def put(module):
        flash._varlen.cache_clear()
        monkeypatch.setattr(flash, "find_spec", lambda name: module)
        monkeypatch.setitem(sys.modules, "flash_attn", module)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    yield put
    flash._varlen.cache_clear()


def test_flash_attn_is_used_where_it_is_and_takes_the_rows(monkeypatch, package):
    package(SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func))
    assert flash.status() == "used"
    for taken in (layout(), layout(dtype=torch.float16), layout(head_size=256)):
        assert flash.varlen_attention(taken) is flash_attn_varlen_func
    for other in (layout("cpu"), layout(dtype=torch.float32), layout(head_size=512)):
        assert flash.varlen_attention(other) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert flash.varlen_attention(layout()) is None


def test_without_flash_attn_torch_serves(package):
    package(None)
    assert flash.varlen_attention(layout()) is None
    assert "pip install" in flash.status()


def test_a_flash_attn_that_is_too_old_is_not_used(package):
    package(SimpleNamespace(flash_attn_varlen_func=lambda q, k, v, causal: q))
    assert flash.varlen_attention(layout()) is None
    assert "older than 2.6" in flash.status()


def test_a_flash_attn_for_another_torch_is_named_and_not_used(monkeypatch, package):
    package(SimpleNamespace())

    def fails(name):
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(flash, "import_module", fails)
    assert flash.varlen_attention(layout()) is None
    assert "undefined symbol" in flash.status()
