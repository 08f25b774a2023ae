"""Pre-training written from its definition in torch's float64: slow, by gather, sharing no code with the package.

Parameters are the package's trees; the model is v3's (shared keys, buckets, normalised relative table).
"""

import math

import numpy as np
import torch

F64 = torch.float64


def tensors(tree):
    """A tree of float64 tensors that want gradients."""
    if isinstance(tree, dict):
        return {name: tensors(value) for name, value in tree.items()}
    return torch.tensor(np.asarray(tree, np.float64), requires_grad=True)


def gradients(tree):
    """The gradients of such a tree, zero where there is none."""
    if isinstance(tree, dict):
        return {name: gradients(value) for name, value in tree.items()}
    return np.zeros(tuple(tree.shape)) if tree.grad is None else tree.grad.numpy()


def bucket_rows(length, buckets, longest):
    """Row of the relative table for every query and key [T,S]."""
    middle = buckets // 2
    rows = torch.zeros(length, length, dtype=torch.long)
    for i in range(length):
        for j in range(length):
            distance = i - j
            if abs(distance) > middle:
                far = math.log(abs(distance) / middle) / math.log((longest - 1) / middle) * (middle - 1)
                distance = int(math.copysign(middle + math.ceil(far), distance))
            rows[i, j] = min(max(distance + buckets, 0), 2 * buckets - 1)
    return rows


def norm(x, p, eps=1e-7):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * p["scale"] + p["bias"]


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def heads(x, p):
    return torch.einsum("...d,dnh->...nh", x, p["kernel"]) + p["bias"]


def layer(p, i, query_states, source, relative, rows, visible, head_size):
    pick = lambda tree: {n: pick(v) for n, v in tree.items()} if isinstance(tree, dict) else tree[i]
    p = pick(p)
    own = p["attention"]["self"]
    q, k = heads(query_states, own["query_proj"]), heads(source, own["key_proj"])
    v = heads(source, own["value_proj"])
    pos_k, pos_q = heads(relative, own["key_proj"])[rows], heads(relative, own["query_proj"])[rows]
    scores = torch.einsum("btnh,bsnh->bnts", q, k)
    scores = scores + torch.einsum("btnh,tsnh->bnts", q, pos_k) + torch.einsum("tsnh,bsnh->bnts", pos_q, k)
    scores = (scores / math.sqrt(3 * head_size)).masked_fill(~visible[:, None], -1e300)
    weights = torch.softmax(scores, -1) * visible[:, None]
    context = torch.einsum("bnts,bsnh->btnh", weights, v)
    out = p["attention"]["output"]
    x = torch.einsum("btnh,nhd->btd", context, out["dense"]["kernel"]) + out["dense"]["bias"]
    x = norm(x + query_states, out["LayerNorm"])
    wide = dense(gelu(dense(x, p["intermediate"]["dense"])), p["output"]["dense"])
    return norm(wide + x, p["output"]["LayerNorm"])


def encode(config, params, tables, ids, segments, decoder=False):
    """States [B,T,D] of the last layer, or of the enhanced mask decoder; segments number the texts, 0 for padding.

    ``tables``: of words and, where there are any, of absolute positions."""
    ids, segments = torch.as_tensor(ids).long(), torch.as_tensor(segments).long()
    real = segments != 0
    p = params["deberta"]
    x = tables["word_embeddings"][ids]
    x = torch.where((ids == config.pad_token_id)[..., None], x.detach(), x)  # torch's padding_idx; it may be drawn
    places = torch.arange(ids.shape[1])[None] - starts(segments)
    if config.position_biased_input:
        x = x + tables["position_embeddings"][places]
    x = norm(x, p["embeddings"]["LayerNorm"]) * real[..., None]
    relative = norm(p["encoder"]["rel_embeddings"]["embedding"], p["encoder"]["LayerNorm"])
    rows = bucket_rows(ids.shape[1], config.position_buckets, config.max_position_embeddings)
    visible = (segments[:, :, None] == segments[:, None]) & real[:, :, None]
    run = lambda i, q, s: layer(p["encoder"]["layers"], i, q, s, relative, rows, visible, config.head_size)
    last = config.num_hidden_layers - 1
    for i in range(last):
        x = run(i, x, x)
    if not decoder:
        return run(last, x, x)
    return run(last, run(last, x + tables["position_embeddings"][places], x), x)


def tables_of(params):
    """The embedding tables of a model by name."""
    return {name: p["embedding"] for name, p in params["deberta"]["embeddings"].items() if "embedding" in p}


def starts(segments):
    """The first place of each place's text."""
    out = torch.zeros_like(segments)
    for b in range(segments.shape[0]):
        for t in range(1, segments.shape[1]):
            out[b, t] = out[b, t - 1] if segments[b, t] == segments[b, t - 1] else t
    return out


def generator_loss(config, params, batch):
    """Mean cross-entropy over the targets."""
    tables = tables_of(params)
    states = encode(config, params, tables, batch["input_ids"], batch["segment_ids"], config.mask_decoder)
    head = params["lm_predictions"]["lm_head"]
    row, slot = np.nonzero(batch["labels"] >= 0)
    x = states[row, batch["positions"][row, slot]]
    logits = norm(gelu(dense(x, head["dense"])), head["LayerNorm"]) @ tables["word_embeddings"].T + head["bias"]
    labels = torch.as_tensor(batch["labels"][row, slot]).long()
    return -torch.log_softmax(logits, -1)[torch.arange(len(labels)), labels].mean()


def discriminator_loss(config, params, tables, batch, drawn):
    """Mean binary cross-entropy over the real tokens."""
    ids, truth = np.array(batch["input_ids"]), np.zeros(batch["input_ids"].shape)
    for row, slot in zip(*np.nonzero(batch["labels"] >= 0), strict=True):
        place = batch["positions"][row, slot]
        ids[row, place] = drawn[row, slot]
        truth[row, place] = drawn[row, slot] != batch["labels"][row, slot]
    states = encode(config, params, tables, ids, batch["segment_ids"])
    segments = torch.as_tensor(batch["segment_ids"]).long()
    first = torch.gather(states, 1, starts(segments)[..., None].expand_as(states))
    head = params["mask_predictions"]
    logits = dense(gelu(dense(norm(states + first, head["LayerNorm"]), head["dense"])), head["classifier"])[..., 0]
    truth = torch.as_tensor(truth)
    each = torch.clamp(logits, min=0) - logits * truth + torch.log1p(torch.exp(-logits.abs()))
    return each[segments != 0].mean()
