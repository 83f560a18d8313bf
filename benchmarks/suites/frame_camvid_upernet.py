# Frame B of docs/results.md: CamVid (11 classes), light UPerNet. The rate of neck and head was chosen on the selection
# slice of CamVid (camvid_search_upernet.py); the rates in the trunk are those of frame A.
_base_ = './frame_camvid_linear.py'
config = 'configs/davpt-residual_vit-s14_upernet_400it_camvid-168x224.py'
__head = 4e-3
__lr_mult = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
common = {'optim_wrapper.optimizer.lr': __head, __lr_mult: 2e-3 / __head}
methods = {'full': {__lr_mult: 2e-5 / __head}}
seeds = (0, 1, 2)
