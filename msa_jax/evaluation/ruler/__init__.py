"""RULER's needle-in-a-haystack subtasks, made to the published definition at any size."""
