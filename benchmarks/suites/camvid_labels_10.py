# The main table with 10 % of the training images.
_base_ = './camvid_main.py'
fraction = 0.1
