"""Reads what ``torch.save`` writes around tensors: pickles and zip archives. Trusts neither, and runs nothing in them.

``machine`` executes pickles, ``names`` lists what they may mention, ``archive`` reads the table of a zip archive, and
``plain`` makes JSON of what a pickle built. The numbers of tensors are read elsewhere.
"""
