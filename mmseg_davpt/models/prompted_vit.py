"""``PromptedViT``: a frozen timm ViT with prompts, as an mmseg backbone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn

from ..trunks import bias_home, build_trunk, resolve_blocks, weight_home
from ..tuning import (
    AdaptFormer,
    BlockActivations,
    PromptedAttention,
    Prompts,
    ShallowPrompts,
    build_lora,
    freeze_except,
    lora_deltas,
    resolve_policy,
    train_tuned_parts,
    tuned_names,
)
from ..weights import WeightsError, load_trunk_weights


@MODELS.register_module()
class PromptedViT(BaseModule):
    """A pretrained Vision Transformer of timm, frozen, that learns through prompts.

    The trunk is timm's own model under its own parameter names (``backbone.trunk.*``); prompts live beside it
    (``backbone.prompts.tokens.{block}``), as do tuned offsets of split biases (``backbone.biases.{block}.{q|k|v}``),
    low-rank updates (``backbone.lora``) and adapters (``backbone.adapters``).
    VPT: Jia et al., ECCV 2022; DA-VPT: Ren et al., CVPR 2025. Blocks before the first one that learns build no graph.

    Args:
        arch: timm name, e.g. ``vit_base_patch16_224.augreg_in21k``.
        pretrained: ``True`` for timm's hub, a path (formats: ``docs/weights.md``), or ``False``. Read by
            :meth:`init_weights`, never here: a model that gets a full checkpoint asks no hub and no file.
        img_size: Size in pixels that the position table is made for; ``None`` keeps the pretrained table. Every input
            size works with either.
        out_indices: Blocks whose outputs are handed on, ascending; negative ones count from the end.
        prompts: Options of :class:`~mmseg_davpt.prompts.Prompts`: ``num``, ``blocks``, ``init``, ``dropout``, ``kind``.
            ``tuning`` decides whether there are prompts, this says how they look.
        norm_outputs: Apply the trunk's final norm to every output, as timm and DINOv2 do for dense heads.
        tuning: What learns: a preset or a dict, see :class:`~mmseg_davpt.tuning.TuningPolicy`; by default prompts.
        with_cp: Checkpoint the blocks (non-reentrant): less memory, the same gradients.
        drop_path_rate: Stochastic depth of blocks that learn as a whole.
        allow_random: With ``pretrained=False``: train on a trunk with random weights all the same.
        init_cfg: ``dict(type='Pretrained', checkpoint=PATH)`` is the same as ``pretrained=PATH``.

    Raises:
        ValueError: An option that does not fit the trunk; the message names it.
    """

    def __init__(
        self,
        arch: str,
        pretrained: bool | str = True,
        img_size: int | tuple[int, int] | None = None,
        out_indices: Sequence[int] = (2, 5, 8, 11),
        prompts: Mapping | None = None,
        norm_outputs: bool = True,
        tuning: str | Mapping | None = None,
        with_cp: bool = False,
        drop_path_rate: float = 0.0,
        allow_random: bool = False,
        init_cfg: Mapping | None = None,
    ) -> None:
        if init_cfg is not None and init_cfg.get('type') == 'Pretrained':
            if isinstance(pretrained, str):
                raise ValueError('init_cfg and pretrained both name weights: give one of them')
            pretrained, init_cfg = init_cfg['checkpoint'], None
        if allow_random and pretrained:
            raise ValueError(f'allow_random=True goes with pretrained=False, not with pretrained={pretrained!r}')
        super().__init__(init_cfg)
        self.arch, self.pretrained, self.allow_random, self.norm_outputs = arch, pretrained, allow_random, norm_outputs
        self.trunk = build_trunk(arch, img_size, drop_path_rate)
        if norm_outputs and isinstance(self.trunk.norm, nn.Identity):
            raise ValueError(f'norm_outputs=True, but {arch} has no final norm of its own: set norm_outputs=False')
        self.trunk.set_grad_checkpointing(with_cp)
        self.embed_dims = self.trunk.embed_dim
        self.num_prefix_tokens = self.trunk.num_prefix_tokens
        self.patch_size: tuple[int, int] = self.trunk.patch_embed.patch_size
        blocks = len(self.trunk.blocks)
        self.out_indices = resolve_blocks(out_indices, blocks, 'out_indices')
        if list(self.out_indices) != [index % blocks for index in out_indices]:
            raise ValueError(f'out_indices={tuple(out_indices)}: expected ascending block indices')
        self.depth = self.out_indices[-1] + 1
        self._weights_loaded = False
        self.register_load_state_dict_pre_hook(_note_loaded_weights)
        self._set_tuning(tuning or dict(prompts=True), dict(prompts or {}))

    def _set_tuning(self, tuning: str | Mapping, prompts: dict) -> None:
        """Add what learns, freeze the rest. Done once, before any wrapper for distributed training sees the model."""
        policy = resolve_policy(tuning, self.depth)
        names = tuned_names(self.trunk, policy, self.depth, self.norm_outputs)
        self.prompts: Prompts | None = None
        if policy.prompts:
            if policy.prompts is not True and prompts.setdefault('kind', policy.prompts) != policy.prompts:
                raise ValueError(f'tuning={tuning!r} and prompts.kind={prompts["kind"]!r} contradict each other')
            self.prompts = Prompts(self.embed_dims, self.depth, self.patch_size, **prompts)
        # Beside the trunk, and without effect at first: offsets of biases, low-rank lora_deltas, adapters.
        self.biases, self.lora, self.adapters = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for index, block in enumerate(self.trunk.blocks[: self.depth]):
            if policy.split_bias:
                zeros = {part: nn.Parameter(torch.zeros(self.embed_dims)) for part in policy.split_bias}
                self.biases[str(index)] = nn.ParameterDict(zeros)
            if policy.lora is not None:
                self.lora[str(index)] = build_lora(block.attn, **policy.lora)
            if policy.adapter is not None:
                self.adapters[str(index)] = AdaptFormer(block, self.embed_dims, **policy.adapter)
        freeze_except(self.trunk, names)
        self._attentions: dict[int, PromptedAttention] = {}
        deep = self.prompts is not None and self.prompts.kind == 'deep'
        for index, block in enumerate(self.trunk.blocks[: self.depth]):
            own = self.prompts if deep and index in self.prompts.blocks else None
            biases, lora = (part[str(index)] if part else {} for part in (self.biases, self.lora))
            if own is not None or biases or lora:
                self._attentions[index] = PromptedAttention(block, index, own, biases, lora, self.num_prefix_tokens)
        if self.prompts is not None and not deep:
            ShallowPrompts(self.trunk, self.prompts)

    @property
    def prompt_counts(self) -> list[int]:
        """Prompts that join each of the ``depth`` blocks as keys and values; 0 where there are none."""
        if self.prompts is None or self.prompts.kind != 'deep':
            return [0] * self.depth
        return self.prompts.counts(self.depth)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the blocks in ``out_indices``.

        Args:
            x: Normalised images, ``(B, 3, H, W)``; any size, the trunk pads it to whole patches.

        Returns:
            One map ``(B, D, ceil(H / p), ceil(W / p))`` an index, each covering exactly the unpadded image.

        Raises:
            WeightsError: In training, if nobody loaded the trunk.
            ValueError: Larger than ``img_size``, for a trunk of one size (BEiT).
            RuntimeError: In training, if prompts that start as prototypes were given none.
        """
        if self.training:
            self.require_weights()
            self._require_prototypes()
        image = x.shape[-2:]
        x = self._fill_up(x)
        h, w = self.trunk.patch_embed.dynamic_feat_size(x.shape[-2:])
        tokens = self.trunk.forward_intermediates(
            x,
            indices=list(self.out_indices),
            norm=self.norm_outputs,
            stop_early=True,
            output_fmt='NLC',
            intermediates_only=True,
        )
        maps = [t[:, -h * w :].transpose(1, 2).unflatten(2, (h, w)) for t in tokens]  # shallow prompts stand before
        return tuple(_crop_to_image(m, image, self.patch_size) for m in maps)

    def _fill_up(self, x: Tensor) -> Tensor:
        """Images as large as a trunk of one size (BEiT) wants them; zeros to the right and below."""
        if not self.trunk.patch_embed.strict_img_size:
            return x
        height, width = self.trunk.patch_embed.img_size
        right, below = width - x.shape[-1], height - x.shape[-2]
        if min(right, below) < 0 or (self.training and max(right, below) > 0):
            raise ValueError(
                f'{self.arch} got {x.shape[-2]}x{x.shape[-1]} pixels, but its table of relative positions is made for '
                f'{height}x{width}: train on crops of that size, test with test_cfg=dict(mode="slide", crop_size='
                f'({height}, {width}), ...), or set img_size'
            )
        return F.pad(x, (0, right, 0, below))

    @contextmanager
    def record(self, blocks: Sequence[int]) -> Iterator[dict[int, BlockActivations]]:
        """While open, a forward fills the yielded dict: prompted block -> :class:`BlockActivations`."""
        activations: dict[int, BlockActivations] = {}
        for index in blocks:
            self._attentions[index].activations = activations
        try:
            yield activations
        finally:
            for index in blocks:
                self._attentions[index].activations = None

    @contextmanager
    def without_tuning(self) -> Iterator[None]:
        """While open, the trunk runs as if it had no (deep) prompts."""
        if self.prompts is None:
            yield
            return
        self.prompts.enabled = False
        try:
            yield
        finally:
            self.prompts.enabled = True

    def init_weights(self) -> None:
        """Read the pretrained weights (on top of ``init_cfg``, if any).

        Raises:
            WeightsError: They cannot be read or do not fit; see :func:`~mmseg_davpt.trunks.load_trunk_weights`.
        """
        if self.init_cfg is not None:
            super().init_weights()
        if self.pretrained:
            unused = () if self.norm_outputs else ('norm.weight', 'norm.bias')
            print_log(load_trunk_weights(self.trunk, self.arch, self.pretrained, unused), logger='current')
            self._weights_loaded = True

    def require_weights(self) -> None:
        """Refuse a trunk whose weights are random.

        Raises:
            WeightsError: Neither :meth:`init_weights` nor a checkpoint has loaded the trunk.
        """
        if not (self._weights_loaded or self.allow_random):
            raise WeightsError(
                f'The trunk {self.arch} has random weights: nothing was loaded (pretrained={self.pretrained!r}; no '
                'init_weights(), no checkpoint with the trunk). Set pretrained to True or a path, load a full '
                'checkpoint, or write pretrained=False, allow_random=True if random weights are what you want.'
            )

    def _require_prototypes(self) -> None:
        if self.prompts is not None and self.prompts.awaits_prototypes:
            raise RuntimeError(
                "prompts.init='prototype', but nobody wrote prototypes: it needs a PromptedEncoderDecoder with "
                "guidance and dict(type='PromptAssignmentHook') in custom_hooks"
            )

    def train(self, mode: bool = True) -> PromptedViT:
        """Switch what learns to train mode; frozen parts stay in eval mode. Returns self."""
        super().train(mode)
        train_tuned_parts(self.trunk, mode)
        return self

    @torch.no_grad()
    def merged_trunk(self) -> dict[str, Tensor]:
        """The trunk's tensors under timm's names, with offsets of biases and low-rank updates merged in."""
        state = {name: tensor.clone() for name, tensor in self.trunk.state_dict().items()}

        def add(index: str, home: tuple[str, slice], change: Tensor) -> None:
            name, rows = home
            state[f'blocks.{index}.attn.{name}'][rows] += change

        for index, offsets in self.biases.items():
            for part, offset in offsets.items():
                add(index, bias_home(self.trunk.blocks[int(index)].attn, part), offset)
        for index, layers in self.lora.items():
            for part, update in lora_deltas(layers).items():
                add(index, weight_home(self.trunk.blocks[int(index)].attn, part), update)
        return state


def _note_loaded_weights(module: PromptedViT, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """A checkpoint counts as loaded weights if it holds every trunk tensor in its right shape; likewise for prompts."""
    own = module.trunk.state_dict()
    if all(getattr(state.get(f'{prefix}trunk.{name}'), 'shape', None) == own[name].shape for name in own):
        module._weights_loaded = True
    if module.prompts is not None and f'{prefix}prompts.tokens.{module.prompts.blocks[0]}' in state:
        module.prompts.awaits_prototypes = False


def _crop_to_image(x: Tensor, image: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Undo padding: resample a map ``(B, D, h, w)`` of whole patches so that its cells cover exactly the image.

    Heads stretch a map over the image, so a map that also covers padding would shift everything.
    """
    h, w = x.shape[-2:]
    if image == (h * patch[0], w * patch[1]):
        return x.contiguous()
    scale_y, scale_x = image[0] / (h * patch[0]), image[1] / (w * patch[1])
    theta = torch.tensor([[scale_x, 0.0, scale_x - 1.0], [0.0, scale_y, scale_y - 1.0]], device=x.device)
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, padding_mode='border', align_corners=False).to(x.dtype)
