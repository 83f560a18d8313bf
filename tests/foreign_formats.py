"""Weight files of other projects, written from the tensors of a tiny timm trunk by independent renamings."""

import re
from argparse import Namespace
from functools import partial

import numpy as np
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

SIZES = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=0)
vit = partial(VisionTransformer, **SIZES, dynamic_img_size=True)
clip = partial(vit, pre_norm=True)
without_class = partial(vit, class_token=False, global_pool='')
dinov2 = partial(vit, init_values=1e-5)
eva = partial(Eva, **SIZES, dynamic_img_size=True)
dinov3 = partial(
    eva, init_values=1e-5, rope_type='dinov3', rope_rotate_half=True, use_rot_pos_emb=True, use_abs_pos_emb=False
)
dinov3 = partial(dinov3, num_reg_tokens=4, use_fc_norm=False)
eva02 = partial(eva, qkv_fused=False, swiglu_mlp=True, scale_mlp=True, use_rot_pos_emb=True, mlp_ratio=2)
beit = partial(Beit, **SIZES, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1)


def random_(trunk):
    """Set parameters to values that float16 represents exactly, so that no format rounds them."""
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.copy_(torch.randn_like(parameter).half())
    return trunk


def renamed(state, *pairs, prefix=''):
    for pattern, replacement in pairs:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    return {prefix + name: tensor for name, tensor in state.items()}


def some(*names, size=3):
    return {name: torch.randn(size) for name in names}


def noise(state):
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


# --- writers: state of the trunk -> (content of the file, names that the log must list as skipped)


def timm_training(s):
    file = dict(
        epoch=3, arch='x', state_dict=noise(s), state_dict_ema=renamed(s, prefix='module.'), args=Namespace(a=1)
    )
    file['state_dict_ema'] |= some('module.head.weight', 'module.head.bias')
    return file, ['head.weight', 'head.bias']


def dino_full(s):
    head = some('head.mlp.0.weight', 'head.mlp.0.bias', 'head.last_layer.weight_g', 'head.last_layer.weight_v')
    student = noise(renamed(s, prefix='module.backbone.') | renamed(head, prefix='module.'))
    teacher = renamed(s, prefix='backbone.') | head
    rest = dict(optimizer=dict(state={0: some('exp_avg')}), epoch=100, args=Namespace(arch='vit_small', patch_size=8))
    return dict(student=student, teacher=teacher, **rest), ['head (4 tensors)']


def dino_backbone(s):
    return dict(s), []


def dinov2_original(s):
    return s | dict(mask_token=torch.zeros(1, 32)), ['mask_token']


def dinov2_registers(s):
    """The class token has a separate position; timm's model has their sum."""
    s, position = dict(s), torch.full((1, 1, 32), 0.5)
    s['pos_embed'] = torch.cat([position, s['pos_embed']], dim=1)
    s['cls_token'] = s['cls_token'] - position
    return renamed(s, ('^reg_token$', 'register_tokens')) | dict(mask_token=torch.zeros(1, 32)), ['mask_token']


def dinov2_training(s):
    """Chunks of two blocks."""
    chunked = {re.sub(r'^blocks\.(\d+)', lambda m: f'blocks.{int(m[1]) // 2}.{m[1]}', n): t for n, t in s.items()}
    heads = some('dino_head.mlp.0.weight', 'ibot_head.mlp.0.weight')
    return dict(teacher=renamed(chunked, prefix='backbone.') | heads), list(heads)


def dinov2_swiglu(s):
    return dinov2_original(renamed(s, (r'mlp\.fc1', 'mlp.w12'), (r'mlp\.fc2', 'mlp.w3')))


def dinov3_original(s):
    file = renamed(s, ('reg_token', 'storage_tokens'), (r'gamma_([12])', r'ls\1.gamma'))
    for block in range(3):
        q, v = (file.pop(f'blocks.{block}.attn.{part}_bias') for part in 'qv')
        file[f'blocks.{block}.attn.qkv.bias'] = torch.cat([q, torch.randn(32), v])
        file[f'blocks.{block}.attn.qkv.bias_mask'] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(32)
    skipped = ['mask_token', 'rope_embed.periods', 'local_cls_norm.weight']
    return file | some(*skipped), [*skipped, 'blocks.*.attn.qkv.bias_mask (3 tensors)']


def dinov3_without_bias(s, bias=0.0):
    file = renamed(s, ('reg_token', 'storage_tokens'), (r'gamma_([12])', r'ls\1.gamma'))
    file |= {f'blocks.{block}.attn.qkv.bias': torch.full((96,), bias) for block in range(3)}
    return file, ['blocks.*.attn.qkv.bias (3 tensors)']


def deit3(s):
    return dict(model=renamed(s, (r'ls([12])\.gamma', r'gamma_\1')) | some('head.weight', 'head.bias')), [
        'head.weight',
        'head.bias',
    ]


def mae(s):
    decoder = some('decoder_pos_embed', 'decoder_embed.weight', 'decoder_norm.bias', 'decoder_pred.bias', 'mask_token')
    blocks = some(*(f'decoder_blocks.{block}.norm1.weight' for block in range(4)))
    return dict(model=s | decoder | blocks), [*decoder, 'decoder_blocks (4 tensors)']


def moco(s):
    heads = some('head.0.weight', 'head.1.weight', 'head.3.weight')
    base = renamed(s | heads, prefix='module.base_encoder.')
    file = base | renamed(noise(s), prefix='module.momentum_encoder.') | some('module.predictor.0.weight')
    skipped = [f'momentum_encoder ({len(s)} tensors)', 'predictor.0.weight', 'base_encoder (3 tensors)']
    return dict(epoch=300, arch='vit_base', state_dict=file, optimizer={}, scaler={}), skipped


def clip_state(s):
    file = renamed(
        s,
        (r'^patch_embed\.proj', 'conv1'),
        ('^pos_embed', 'positional_embedding'),
        ('^cls_token', 'class_embedding'),
        (r'^norm_pre\.', 'ln_pre.'),
        (r'^norm\.', 'ln_post.'),
        (r'^blocks\.', 'transformer.resblocks.'),
        (r'\.norm([12])\.', r'.ln_\1.'),
        (r'attn\.qkv\.', 'attn.in_proj_'),
        (r'attn\.proj', 'attn.out_proj'),
        (r'mlp\.fc1', 'mlp.c_fc'),
        (r'mlp\.fc2', 'mlp.c_proj'),
        prefix='visual.',
    )
    file['visual.class_embedding'] = file['visual.class_embedding'].flatten()
    file['visual.positional_embedding'] = file['visual.positional_embedding'][0]
    text = some('positional_embedding', 'text_projection', 'logit_scale', 'token_embedding.weight', 'ln_final.bias')
    text['context_length'] = torch.tensor(77.0)
    blocks = some(*(f'transformer.resblocks.{block}.ln_1.weight' for block in range(5)))
    return file | text | blocks | some('visual.proj'), ['visual.proj', *text, 'transformer (5 tensors)']


def clip_jit(s):
    """As OpenAI published it: a TorchScript archive in half precision, whose modules contain code."""
    state, skipped = clip_state(s)
    root = nn.Module()
    for name, tensor in state.items():
        *path, leaf = name.split('.')
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(leaf, nn.Parameter(tensor.half()))
    return torch.jit.script(root), skipped


def openclip_timm(s):
    rest = some('visual.head.proj.weight', 'logit_scale', 'logit_bias', 'text.token_embedding.weight', 'text.ln.bias')
    file = renamed(s, prefix='visual.trunk.') | rest
    return file, [name for name in rest]


def eva02_mim(s):
    """Pre-training file: a final norm where the fine-tuned trunk pools."""
    file = renamed(
        s,
        (r'^fc_norm\.', 'norm.'),
        (r'([qv])_proj\.bias', r'\1_bias'),
        (r'mlp\.norm', 'mlp.ffn_ln'),
        (r'mlp\.fc1_g', 'mlp.w1'),
        (r'mlp\.fc1_x', 'mlp.w2'),
        (r'mlp\.fc2', 'mlp.w3'),
    )
    rest = some('mask_token', 'lm_head.weight', 'lm_head.bias', 'rope.freqs_cos', 'rope.freqs_sin')
    return dict(module=file | rest), [
        'mask_token',
        'lm_head.weight',
        'lm_head.bias',
        'rope.freqs_cos',
        'rope.freqs_sin',
    ]


def eva_clip(s):
    file = renamed(eva02_mim(s)[0]['module'], prefix='visual.')
    file = {n: t for n, t in file.items() if not re.search('mask_token|lm_head', n)}
    rest = some('visual.head.weight', 'visual.head.bias', 'logit_scale', 'text.ln_final.weight')
    return file | rest, [*rest, 'visual.rope.freqs_cos', 'visual.rope.freqs_sin']


def beit_finetuned(s):
    index = {f'blocks.{block}.attn.relative_position_index': torch.zeros(17, 17).long() for block in range(3)}
    skipped = ['head.weight', 'head.bias', 'blocks.*.attn.relative_position_index (3 tensors)']
    return dict(model=s | index | some('head.weight', 'head.bias')), skipped


def mmpretrain(s, fc1=r'ffn.layers.0.0', fc2='ffn.layers.1'):
    """Names of mmpretrain's VisionTransformer and of its converters (deit3_to_mmpretrain and others)."""
    file = renamed(
        s,
        (r'^patch_embed\.proj', 'patch_embed.projection'),
        (r'^norm\.', 'ln1.'),
        (r'^norm_pre\.', 'pre_norm.'),
        (r'\.norm([12])\.', r'.ln\1.'),
        (r'mlp\.fc1', fc1),
        (r'mlp\.fc2', fc2),
        (r'ls1\.gamma', 'attn.gamma1.weight'),
        (r'ls2\.gamma', 'ffn.gamma2.weight'),
        (r'^blocks\.', 'layers.'),
        prefix='backbone.',
    )
    rest = some('head.layers.head.weight', 'neck.norm.bias')
    return dict(meta=dict(epoch=1), state_dict=file | rest), list(rest)


def jax_arrays(s, big_vision=False, stacked=False, heads=2):
    """Arrays of Google's ViTs: transposed kernels, one axis per head; stacked over blocks in newer files."""
    head_dim = 32 // heads
    attention, mlp, norm2 = (0, 0, 1) if big_vision else (1, 3, 2)
    out = {
        'embedding/kernel': s['patch_embed.proj.weight'].permute(2, 3, 1, 0),
        'embedding/bias': s['patch_embed.proj.bias'],
        'Transformer/encoder_norm/scale': s['norm.weight'],
        'Transformer/encoder_norm/bias': s['norm.bias'],
        'pos_embedding' if big_vision else 'Transformer/posembed_input/pos_embedding': s['pos_embed'],
    }
    if 'cls_token' in s:
        out['cls'] = s['cls_token']
    for i in range(3):
        layer = {name.removeprefix(f'blocks.{i}.'): tensor for name, tensor in s.items()}
        block = {}
        for part, kernel, bias in zip(
            ('query', 'key', 'value'), layer['attn.qkv.weight'].chunk(3), layer['attn.qkv.bias'].chunk(3), strict=True
        ):
            block[f'MultiHeadDotProductAttention_{attention}/{part}/kernel'] = kernel.T.reshape(32, heads, head_dim)
            block[f'MultiHeadDotProductAttention_{attention}/{part}/bias'] = bias.reshape(heads, head_dim)
        kernel = layer['attn.proj.weight'].T.reshape(heads, head_dim, 32)
        block[f'MultiHeadDotProductAttention_{attention}/out/kernel'] = kernel
        block[f'MultiHeadDotProductAttention_{attention}/out/bias'] = layer['attn.proj.bias']
        for index, name in ((0, 'norm1'), (norm2, 'norm2')):
            block[f'LayerNorm_{index}/scale'] = layer[f'{name}.weight']
            block[f'LayerNorm_{index}/bias'] = layer[f'{name}.bias']
        for i_dense in (0, 1):
            block[f'MlpBlock_{mlp}/Dense_{i_dense}/kernel'] = layer[f'mlp.fc{i_dense + 1}.weight'].T
            block[f'MlpBlock_{mlp}/Dense_{i_dense}/bias'] = layer[f'mlp.fc{i_dense + 1}.bias']
        for name, tensor in block.items():
            if stacked:
                out.setdefault(f'Transformer/encoderblock/{name}', []).append(tensor)
            else:
                out[f'Transformer/encoderblock_{i}/{name}'] = tensor
    return {name: np.stack(tensor) if isinstance(tensor, list) else tensor.numpy() for name, tensor in out.items()}


FORMATS = {
    'timm_training': (vit, timm_training, "'state_dict_ema' (beside arch, args, epoch, state_dict)"),
    'dino_full': (vit, dino_full, "'teacher' (beside args, epoch, optimizer, student), backbone.*"),
    'dino_backbone': (vit, dino_backbone, ''),
    'dinov2': (dinov2, dinov2_original, '4x4 -> 4x4'),
    'dinov2_registers': (partial(dinov2, reg_tokens=4, no_embed_class=True), dinov2_registers, '4x4 -> 4x4'),
    'dinov2_training': (dinov2, dinov2_training, "'teacher', backbone.*"),
    'dinov2_swiglu': (partial(dinov2, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU), dinov2_swiglu, ''),
    'dinov3': (dinov3, dinov3_original, 'without biases of keys'),
    'dinov3_without_bias': (partial(dinov3, qkv_bias=False), dinov3_without_bias, ''),
    'deit3': (partial(dinov2, no_embed_class=True), deit3, '4x4 -> 4x4'),
    'mae': (vit, mae, "'model'"),
    'moco_v3': (vit, moco, 'base_encoder.*'),
    'clip': (clip, clip_state, 'visual.*, position grid 4x4 -> 4x4'),
    'clip_jit': (clip, clip_jit, 'visual.*, position grid 4x4 -> 4x4'),
    'siglip_openclip': (partial(vit, class_token=False, global_pool='map'), openclip_timm, 'visual.trunk.*'),
    'eva02_mim': (eva02, eva02_mim, "'module'"),
    'eva_clip': (partial(eva02, use_fc_norm=False), eva_clip, 'visual.*'),
    'beit': (beit, beit_finetuned, '4x4 -> 4x4'),
    'mmpretrain': (vit, mmpretrain, 'OpenMMLab names, position grid 4x4 -> 4x4'),
    'mmpretrain_clip': (clip, mmpretrain, 'OpenMMLab'),
    'mmpretrain_dinov2': (
        partial(dinov2, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU),
        partial(mmpretrain, fc1='ffn.w12', fc2='ffn.w3'),
        'OpenMMLab',
    ),
}


def write(file, path):
    if isinstance(file, torch.jit.ScriptModule):
        file.save(path)
    elif path.suffix == '.safetensors':
        save_file({name: tensor.contiguous() for name, tensor in file.items()}, path, metadata={'format': 'pt'})
    else:
        torch.save(file, path)
    return str(path)


def skipped_in(line):
    match = re.search(r'; skipped: (.*?)(;|\. (Not c|C)hecked: )', line)
    return sorted(match[1].split(', ')) if match else []


def assert_same(trunk, expected, ignored=()):
    for name, value in trunk.state_dict().items():
        assert name in ignored or torch.equal(value, expected[name]), name


# --- hostile files


class Call:
    """Pickled as a call of ``function`` on ``args``, which an unsafe reader makes."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def _call_through_torch(function, result_type, *args):
    """``torch._tensor._rebuild_from_type_v2`` is always allowed and calls its first argument."""
    return Call(torch._tensor._rebuild_from_type_v2, function, result_type, args, None)


def hostile_objects(marker):
    """Attack -> object whose loading makes the folder ``marker`` if plain ``getattr`` is allowed."""
    code = f'__import__("os").mkdir({str(marker)!r})'
    builtins = Call(getattr, getattr, '__self__')
    module_globals = Call(getattr, torch._utils._rebuild_tensor_v2, '__globals__')
    builtins_dict = _call_through_torch(
        Call(getattr, module_globals, 'get'), Call(getattr, {}, '__class__'), '__builtins__'
    )
    eval_from_dict = _call_through_torch(
        Call(getattr, builtins_dict, 'get'), Call(getattr, getattr, '__class__'), 'eval'
    )
    return {
        '__self__': _call_through_torch(Call(getattr, builtins, 'eval'), None, code),
        '__globals__': _call_through_torch(eval_from_dict, None, code),
    }
