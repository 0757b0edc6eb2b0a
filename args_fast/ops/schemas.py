"""The signatures of the ops, in one place: every implementation in every language has these.

Sizes: B sequences, N tail rows, k candidates, V vocabulary, H hidden size, L layers, Hq query
heads, Hkv key/value heads, D head size, P pages per sequence. What each op
computes is written in ``args_fast.ops.plain``.
"""

SCHEMAS = {
    # logits [B, V] f32|bf16|f16 -> logprobs [B, k] f32, ids [B, k] i64
    "topk_logprobs": "(Tensor logits, int k) -> (Tensor logprobs, Tensor ids)",
    # q [B, N, Hq, D]; tail_k, tail_v [B, N, Hkv, D]; k_pages, v_pages [pages, page_size, Hkv, D];
    # page_table [B, P] i32; prefix_lengths [B] i32; tail_mask [N, N] bool; sinks [Hq]
    # -> out [B, N, Hq, D]
    "branch_attention": (
        "(Tensor q, Tensor tail_k, Tensor tail_v, Tensor k_pages, Tensor v_pages, "
        "Tensor page_table, Tensor prefix_lengths, Tensor tail_mask, float scale, "
        "int sliding_window, float softcap, Tensor? sinks) -> Tensor"
    ),
    # hidden [B, k, H]; head_weight [H]; head_bias [1]; logprobs [B, k] f32; w, temperature [B] f32;
    # noise [B, k] f32 -> branch [B] i64, reward [B] f32, score [B] f32
    "select": (
        "(Tensor hidden, Tensor head_weight, Tensor? head_bias, Tensor logprobs, Tensor w, "
        "Tensor temperature, Tensor noise) -> (Tensor branch, Tensor reward, Tensor score)"
    ),
    # tail_k, tail_v [L, B, N, Hkv, D]; branch [B] i64; k_pages, v_pages
    # [L, pages, page_size, Hkv, D]; page_table [B, P] i32; lengths [B] i32
    "commit": (
        "(Tensor tail_k, Tensor tail_v, Tensor branch, Tensor(a!) k_pages, Tensor(b!) v_pages, "
        "Tensor page_table, Tensor(c!) lengths) -> ()"
    ),
    # select, then commit of the branch that it chose; the arguments are theirs
    "select_commit": (
        "(Tensor hidden, Tensor head_weight, Tensor? head_bias, Tensor logprobs, Tensor w, "
        "Tensor temperature, Tensor noise, Tensor tail_k, Tensor tail_v, Tensor(a!) k_pages, "
        "Tensor(b!) v_pages, Tensor page_table, Tensor(c!) lengths) "
        "-> (Tensor branch, Tensor reward, Tensor score)"
    ),
}

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")

# The tensors of a decoder layer in the order in which decoder_layers takes them. Matrices are
# [out, in]; an empty tensor stands for what a layer does not have. Matrices of int8 have a scale
# [out] f32.
LAYER_WEIGHTS = (
    *("norm1", "norm1_bias", "q", "q_bias", "k", "k_bias", "v", "v_bias", "q_norm", "k_norm"),
    *("o", "o_bias", "norm2", "norm2_bias", "gate", "gate_bias", "up", "up_bias"),
    *("down", "down_bias"),
    *(f"{name}_scale" for name in MATRICES),
)

# What an adapter adds to the product of x [.., K] with a matrix [N, K]: (x · aᵀ) · b + bias, where
# a is [r, K], of the type of everything else, b [r, N] f32 and bias [N] f32; each empty where there
# is none.
TERM = ("a", "b", "bias")
# Those of a layer, in the order in which decoder_layers takes them.
TERM_NAMES = tuple(f"{matrix}_term_{part}" for matrix in MATRICES for part in TERM)

# hidden [B, N, H] f32; weights: LAYER_WEIGHTS of each layer; tail_k, tail_v [L, B, N, Hkv, D];
# k_pages, v_pages [L, pages, page_size, Hkv, D]; page_table [B, P] i32; prefix_lengths [B] i32;
# tail_mask [N, N] bool, or None of a prompt's rows (not in Triton); cos, sin [B, N, R] f32; scales,
# windows [L]; final_norm [H]; low_rank: TERM of each of MATRICES of each layer, or nothing;
# adapted: nothing, or tail_k, tail_v, k_pages and v_pages of as many rows again, which follow in
# hidden [2 B, N, H] and alone get the terms.
# Weights and low_rank are held by the library before, as the layers of this number.
HOLD_LAYERS = "(Tensor[] weights, Tensor[] low_rank) -> int"
RELEASE_LAYERS = "(int layers) -> ()"
DECODER_LAYERS = (
    "(Tensor(a!) hidden, int layers, Tensor(b!) tail_k, Tensor(c!) tail_v, "
    "Tensor k_pages, Tensor v_pages, Tensor page_table, Tensor prefix_lengths, "
    "Tensor? tail_mask, Tensor? cos, Tensor? sin, float[] scales, int[] windows, str norm, "
    "float eps, str activation, bool pre_norm, Tensor? final_norm, Tensor? final_norm_bias, "
    "Tensor(d!)[] adapted) -> ()"
)

# x [..., K]; weight [N, K]; bias [N] -> [..., N], all of one type; or weight i8 and scale [N] f32
LINEAR = "(Tensor x, Tensor weight, Tensor? bias, Tensor? scale=None) -> Tensor"

# As ``args_fast.ops.record.record`` says.
RECORD = (
    "(Tensor ids, Tensor logprobs, Tensor branch, Tensor reward, Tensor score, Tensor noise, "
    "Tensor(a!) step_index, Tensor(b!) token, Tensor(c!) tokens, Tensor(d!) stats, "
    "Tensor(e!) draws) -> ()"
)

# Ops that are others one after the other: whoever has the parts has the whole.
FUSED = {"select_commit": ("select", "commit")}
