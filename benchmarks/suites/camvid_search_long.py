# The methods of the main table with three times the iterations, on the selection slice.
_base_ = './camvid_main.py'
common = {'train_cfg.max_iters': 1200, 'param_scheduler.1.end': 1200}
seeds = (0,)
select = True
