"""`make demo`: the main job on real components, told so that a newcomer learns the product from it."""
