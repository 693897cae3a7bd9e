"""Live streams in, robot commands out.

A frame's way: source -> `align` -> a bundle's `Stream.step` -> `recognise` -> `intent` -> `safety` -> robot. Everything
up to the intent runs in one loop; `safety` has a thread of its own and is the only holder of the robot, so that it
stops the robot whatever becomes of the rest.
"""
