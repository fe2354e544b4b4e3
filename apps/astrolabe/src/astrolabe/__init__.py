"""Online RL alignment of distilled autoregressive video models.

The app that puts the four packages together: `astrolabe.config` holds the settings,
`astrolabe.compose` makes the parts, `astrolabe.train` is the loop, `astrolabe.cli` the commands.
"""
