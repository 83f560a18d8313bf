"""Slow, literal references: what the fast code is held against. Nothing here calls the package's functions."""

import math
from functools import partial

import numpy as np
import torch


def vpt_deep(trunk, prompts, x, indices, norm=True):
    """VPT-Deep word for word: blocks run on [prefix, prompts, patches], prompt outputs are thrown away.

    timm's own forward does everything else. Prompts have no position: rotary attention is told that the prefix is
    longer, and a table of relative positions gets zeros for them.

    prompts: block -> (M, D). Returns the maps of timm's forward_intermediates.
    """
    prefix, handles = trunk.num_prefix_tokens, []
    for index, p in prompts.items():
        block, end = trunk.blocks[index], prefix + len(p)

        def join(_, args, p=p):
            return (torch.cat([args[0][:, :prefix], p.expand(len(args[0]), -1, -1), args[0][:, prefix:]], dim=1),)

        def leave(_, args, out, end=end):
            return torch.cat([out[:, :prefix], out[:, end:]], dim=1)

        handles += [block.register_forward_pre_hook(join), block.register_forward_hook(leave)]
        if hasattr(block.attn, 'num_prefix_tokens'):
            block.attn.num_prefix_tokens = end
        if getattr(block.attn, 'relative_position_bias_table', None) is not None:
            block.attn._get_rel_pos_bias = partial(_without_positions, block.attn._get_rel_pos_bias, prefix, len(p))
    try:
        return trunk.forward_intermediates(x, indices=list(indices), norm=norm, intermediates_only=True)
    finally:
        for handle in handles:
            handle.remove()


def gated_vpt(trunk, prompts, gates, x, indices):
    """Two attentions in every block, head by head: of the tokens among themselves, and g times of tokens to prompts."""
    for index, tokens in prompts.items():
        block = trunk.blocks[index]
        block.attn.forward = partial(_attend_twice, block, tokens, gates[index])
    return trunk.forward_intermediates(x, indices=list(indices), intermediates_only=True, norm=True)


def _attend_twice(block, prompts, gate, z, **_):
    heads = []
    for q, k, v, k_p, v_p in _heads(block, prompts, z):
        weights, prompt_weights = (torch.exp(q @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])) for keys in (k, k_p))
        out = weights @ v / weights.sum(-1, keepdim=True)
        heads.append(out + gate * (prompt_weights @ v_p) / prompt_weights.sum(-1, keepdim=True))
    return block.attn.proj(torch.cat(heads, dim=-1))


def residual_vpt(trunk, prompts, values, x, indices):
    """timm's blocks as they are; behind each, the difference that residual values make to its first half is added.

    x1 = x + LS1(attention(LN1(x))) + sum_m a_nm V_m, x2 = x1 + LS2(MLP(LN2(x1))), one token and one prompt at a time.
    """
    for index, tokens in prompts.items():
        block = trunk.blocks[index]
        block.forward = partial(_residual_block, block, tokens, values[index])
    return trunk.forward_intermediates(x, indices=list(indices), intermediates_only=True, norm=True)


def _residual_block(block, prompts, values, x, **_):
    z = block.norm1(x)
    update = torch.zeros_like(x)
    heads = _heads(block, prompts, z)
    for q, _k, _v, k_p, _v_p in heads:
        weights = torch.exp(torch.einsum('bnd,md->bnm', q, k_p) / math.sqrt(q.shape[-1]))
        for prompt, value in enumerate(values):
            update = update + (weights[..., prompt] / weights.sum(-1))[..., None] * value / len(heads)
    x = x + block.ls1(block.attn(z)) + update
    return x + block.ls2(block.mlp(block.norm2(x)))


def _heads(block, prompts, z):
    """Queries, keys and values of the tokens, keys and values of the prompts; of each head."""
    attn, projected = block.attn, block.norm1(prompts)
    d = z.shape[-1] // attn.num_heads
    heads = []
    for head in range(attn.num_heads):
        rows = slice(head * d, (head + 1) * d)
        (q, k, v), (_, k_p, v_p) = ([t[..., rows] for t in attn.qkv(x).chunk(3, dim=-1)] for x in (z, projected))
        heads.append((q, k, v, k_p, v_p))
    return heads


def _without_positions(bias, prefix, m):
    """A relative position bias (1, H, N, N) with rows and columns of zeros for m prompts behind the prefix."""
    own = bias()
    n = own.shape[-1]
    rows = [*range(prefix), *range(prefix + m, n + m)]
    wide = own.new_zeros(1, own.shape[1], n + m, n + m)
    wide[:, :, torch.tensor(rows)[:, None], torch.tensor(rows)] = own
    return wide


def vpt_shallow(trunk, prompts, x, indices):
    """VPT-Shallow word for word: prompts enter before the first block, between prefix and patches, and stay."""
    b, _, height, width = x.shape
    prefix, m = trunk.num_prefix_tokens, len(prompts)
    x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(x)))
    x = torch.cat([x[:, :prefix], prompts.expand(b, -1, -1), x[:, prefix:]], dim=1)
    activations = []
    for index, block in enumerate(trunk.blocks):
        x = block(x)
        if index in indices:
            activations.append(trunk.norm(x)[:, prefix + m :])
    h, w = height // trunk.patch_embed.patch_size[0], width // trunk.patch_embed.patch_size[1]
    return [t.transpose(1, 2).reshape(b, -1, h, w) for t in activations]


def attention_output(block, x, prompts, prefix):
    """Heads concatenated, before the output projection, of one block on its input ``x`` (B, T + N, D); patches only."""
    attn = block.attn
    z = block.norm1(torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1))
    b, n, d = z.shape
    q, k, v = attn.qkv(z).reshape(b, n, 3, attn.num_heads, d // attn.num_heads).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(d // attn.num_heads)
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d)
    return out[:, prefix : x.shape[1]]


def proxy_anchor(samples, labels, proxies, assignment, alpha=32.0, margin=0.1):
    """Equation 4, one exponential at a time, in Python floats."""

    def cosine(a, b):
        return float(a @ b / (a.norm() * b.norm()))

    prompts = [int(assignment[y]) if y >= 0 else -1 for y in labels.tolist()]
    with_class = sorted({int(k) for k in assignment.tolist() if k >= 0})
    with_sample = [k for k in with_class if k in prompts]
    pull = push = 0.0
    for k in with_class:
        cosines = [(prompt, cosine(z, proxies[k])) for prompt, z in zip(prompts, samples) if prompt >= 0]
        pull += math.log1p(sum(math.exp(-alpha * (s - margin)) for prompt, s in cosines if prompt == k))
        push += math.log1p(sum(math.exp(alpha * (s + margin)) for prompt, s in cosines if prompt != k))
    return (pull / len(with_sample) if with_sample else 0.0) + (push / len(with_class) if with_class else 0.0)


def kept_evidence(old, new):
    """Share of its sums and weight that a class keeps at a refresh, given the mass before and since the last one."""
    if new == 0:
        return 1.0
    return max(0.5, old / (old + new))


def class_means(tokens, fractions):
    """Mean over all images, class by class, each patch with its label fraction; None where a class is absent."""
    tokens = np.asarray(tokens, np.float64).reshape(-1, tokens.shape[-1])
    fractions = np.asarray(fractions, np.float64).reshape(-1, fractions.shape[-1])
    return prototypes(tokens[None], fractions[None])[0]


def class_fractions(gt, patch, num_classes, ignore=255):
    """Patch by patch with numpy."""
    gt = np.asarray(gt)
    b, height, width = gt.shape
    ph, pw = patch
    h, w = math.ceil(height / ph), math.ceil(width / pw)
    fractions = np.zeros((b, h * w, num_classes))
    for image in range(b):
        for i in range(h):
            for j in range(w):
                cell = gt[image, i * ph : (i + 1) * ph, j * pw : (j + 1) * pw]
                for c in range(num_classes):
                    fractions[image, i * w + j, c] = np.count_nonzero(cell == c) / (ph * pw)
    return fractions


def prototypes(tokens, fractions):
    """Class by class with numpy; None where a class is absent."""
    tokens, fractions = np.asarray(tokens, np.float64), np.asarray(fractions, np.float64)
    return [
        [
            None
            if fractions[b, :, c].sum() == 0
            else (fractions[b, :, c, None] * tokens[b]).sum(0) / fractions[b, :, c].sum()
            for c in range(fractions.shape[2])
        ]
        for b in range(len(tokens))
    ]
