"""What the events add up to: views of memories, folded from the log and thrown away at will.

Nothing here is kept on disk, and nothing here writes to the log: a view can always be folded again from the beginning.
"""
