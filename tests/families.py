"""The families of pretrained trunks, by their timm names; tests run each at a small width and depth."""

from dataclasses import dataclass

import timm
from timm.models import beit


@dataclass(frozen=True)
class Family:
    """One row of docs/backbones.md.

    Attributes:
        name: Common name of the family.
        archs: timm names; the first is in the table, the others are further layouts of the same family.
        key_bias: Whether the key projection has a bias.
        value_bias: Whether the value projection has a bias.
        license: License of the weights where timm does not state it, as timm's hub does not have them.
    """

    name: str
    archs: tuple[str, ...]
    key_bias: bool = True
    value_bias: bool = True
    license: str = ''


FAMILIES = [
    Family(
        'ViT (augreg, ImageNet-21k)',
        (
            'vit_base_patch16_224.augreg_in21k',
            'vit_small_patch16_224.augreg_in21k',
            'vit_large_patch16_224.augreg_in21k',
            'vit_base_patch8_224.augreg_in21k',
            'vit_base_patch32_224.augreg_in21k',
            'vit_huge_patch14_224.orig_in21k',
        ),
    ),
    Family('DeiT', ('deit_base_patch16_224.fb_in1k', 'deit_base_distilled_patch16_224.fb_in1k')),
    Family('DeiT III', ('deit3_base_patch16_224.fb_in22k_ft_in1k',)),
    Family('DINO', ('vit_base_patch16_224.dino', 'vit_small_patch8_224.dino')),
    Family('DINOv2', ('vit_base_patch14_dinov2.lvd142m', 'vit_giant_patch14_dinov2.lvd142m')),
    Family('DINOv2, registers', ('vit_base_patch14_reg4_dinov2.lvd142m',)),
    Family(
        'DINOv3',
        ('vit_base_patch16_dinov3.lvd1689m', 'vit_small_plus_patch16_dinov3.lvd1689m'),
        key_bias=False,
        value_bias=False,
    ),
    Family('DINOv3, biases of q and v', ('vit_base_patch16_dinov3_qkvb.lvd1689m',), key_bias=False),
    Family('EVA-02', ('eva02_base_patch14_224.mim_in22k', 'eva02_small_patch14_224.mim_in22k'), key_bias=False),
    Family('EVA-02 CLIP', ('eva02_base_patch16_clip_224.merged2b',), key_bias=False),
    Family('MAE', ('vit_base_patch16_224.mae',)),
    Family('MoCo v3', ('vit_base_patch16_224.dino',), license='CC-BY-NC-4.0'),  # same architecture and statistics
    Family('CLIP', ('vit_base_patch16_clip_224.openai', 'vit_base_patch16_clip_quickgelu_224.openai')),
    Family('SigLIP', ('vit_base_patch16_siglip_224.webli', 'vit_base_patch16_siglip_512.v2_webli')),
    Family('BEiT v2', ('beitv2_base_patch16_224.in1k_ft_in22k',), key_bias=False),
    Family('BEiT', ('beit_base_patch16_224.in22k_ft_in22k',), key_bias=False),
    Family('EVA', ('eva_large_patch14_196.in22k_ft_in22k_in1k',)),
    Family('Perception Encoder', ('vit_pe_spatial_tiny_patch16_512.fb', 'vit_pe_core_tiny_patch16_384.fb')),
    Family('RoPE-ViT, mixed', ('vit_base_patch16_rope_mixed_224.naver_in1k',)),
]
ARCHS = sorted({arch for family in FAMILIES for arch in family.archs})
DIMS, DEPTH = 96, 3


def shrink(monkeypatch):
    """Make timm build every architecture 96 wide and 3 deep, with 3 heads; return that builder."""
    create_model = timm.create_model

    def create_small_model(arch, **options):
        return create_model(arch, **{'embed_dim': DIMS, 'depth': DEPTH, 'num_heads': 3, **options})

    monkeypatch.setattr(timm, 'create_model', create_small_model)
    return create_small_model


def image_size(arch):
    """Size of the test images, (height, width) in pixels: 4 x 8 patches."""
    patch = 14 if 'patch14' in arch else 8 if 'patch8' in arch else 32 if 'patch32' in arch else 16
    return 4 * patch, 8 * patch


def is_beit(arch):
    return timm.models.model_entrypoint(arch.split('.')[0]).__module__ == beit.__name__
