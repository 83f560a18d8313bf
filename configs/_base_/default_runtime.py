default_scope = 'mmseg'
custom_imports = dict(imports=['mmseg_davpt'], allow_failed_imports=False)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl', timeout=1800),  # seconds that a rank waits for another one
)
randomness = dict(seed=0)
custom_hooks = [
    dict(type='StepSeedHook'),  # a resumed run takes the same steps as one that was not interrupted
    dict(type='ParamReportHook'),
    dict(type='PromptAssignmentHook', num_batches=200),  # does nothing without guidance
    dict(type='TrainingGuardHook'),  # stops at inf and nan, and names the images
    dict(type='RunRecordHook'),  # writes what tools/report.py shows
    dict(type='PromptAttentionHook'),  # logs the attention to the prompt of a patch's class
    dict(type='PictureGridHook', loop='val'),  # pictures for TensorBoard, W&B and MLflow
]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
tta_model = dict(type='SegTTAModel')
