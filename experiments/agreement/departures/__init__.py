"""What PFLlib does differently from this library, undone one by one.

Each is a context in which PFLlib's run does what this library does, and everything else as ever:
that the two then agree shows that nothing else differs.
"""
