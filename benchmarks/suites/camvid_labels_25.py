# The main table with 25 % of the training images.
_base_ = './camvid_main.py'
fraction = 0.25
