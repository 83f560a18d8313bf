"""Full configs made small enough for a step on a CPU."""

from conftest import DEPTH, DIMS

from mmseg_davpt.reports import build_shapes


def walk(node):
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from walk(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from walk(child)


def shrink(model):
    """Narrow a config's model to timm's test_vit: the same structure with other widths. Returns it."""
    width = build_shapes(model.backbone).embed_dims
    for node in walk(model):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
        for key, value in node.items():
            if value == width:
                node[key] = DIMS
            elif isinstance(value, (list, tuple)) and value and all(item == width for item in value):
                node[key] = [DIMS] * len(value)
        if 'num_heads' in node:
            node['num_heads'] = 4
        if node.get('type') != 'SegmenterMaskTransformerHead' and 'channels' in node:
            node['channels'] = 16
    backbone = model.backbone
    backbone.update(arch='test_vit', pretrained=False, allow_random=True, img_size=None)
    backbone.out_indices = (1, 2, 3, 5)[-len(backbone.get('out_indices', range(4))) :]
    if isinstance((backbone.get('prompts') or {}).get('num'), (list, tuple)):
        backbone.prompts.num = backbone.prompts.num[-DEPTH:]
    return model
