"""What the engines hold, as far as their events tell: the model of the truth, see ``truth.py``. No I/O and no clock."""
